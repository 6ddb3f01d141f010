"""What the gradient says about an image: saliency and Grad-CAM."""
