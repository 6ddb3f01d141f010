"""Which parts of an image carry the prediction: cover them one by one and watch the scores."""
