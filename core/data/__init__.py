"""Pictures: files, data sets, streams."""
