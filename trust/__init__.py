"""How far a map can be believed: removal curves, randomisation, agreement, stability."""
