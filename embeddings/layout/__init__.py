"""Vectors to places in the plane."""
