"""One vector per image."""
