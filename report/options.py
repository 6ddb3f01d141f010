"""The options of `report`; imports nothing heavy."""

MEGABYTES = 10.0
"""Default maximum size of a page."""
PAGE = "report.html"
