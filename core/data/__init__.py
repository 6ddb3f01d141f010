"""Pictures: files, data sets, streams.

`images` makes working images of files, `sources` lists what a data set holds, `datasets` streams
it.
"""
