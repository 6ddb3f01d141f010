"""Networks: by name, file or checkpoint, with weights, preprocessing and class names."""
