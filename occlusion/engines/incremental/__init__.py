"""Only what a mask can reach."""
