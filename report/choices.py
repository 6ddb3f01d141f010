"""What `report` lets its user choose; imports nothing heavy."""

EXTRA = "report"
MEGABYTES = 10.0
"""A page is no larger, unless something else is asked for."""
PAGE = "report.html"
