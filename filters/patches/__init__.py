"""What drives each filter most."""
