"""Running covered images."""
