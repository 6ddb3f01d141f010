"""What can be read off weights: norms, near-duplicates, Gabor fits, pictures."""
