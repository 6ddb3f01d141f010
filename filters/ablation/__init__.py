"""Filters switched off, and what breaks."""
