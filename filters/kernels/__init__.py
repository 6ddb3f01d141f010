"""What can be read off weights."""
