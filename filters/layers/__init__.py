"""Which layers there are (`inventory`) and what they do on data (`statistics`)."""
