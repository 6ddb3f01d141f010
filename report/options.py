"""The options of `report`; imports nothing heavy."""

MEGABYTES = 10.0
"""Default maximum size of a page."""
PAGE = "report.html"
GENERATOR = '<meta name="generator" content="cnnviz">'
"""In the first lines of every page, by which `--overwrite` knows one."""
