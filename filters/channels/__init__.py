"""Which channels are meant."""
