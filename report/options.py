"""The options of `report`; imports nothing heavy."""

EXTRA = "report"
MEGABYTES = 10.0
"""Default maximum size of a page."""
PAGE = "report.html"
