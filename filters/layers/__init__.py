"""Which layers there are and what they do on data."""
