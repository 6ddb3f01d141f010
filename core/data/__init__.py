"""Images: files, data sets, streams.

`images` makes working images of files, `sources` lists the images of a data set, `datasets` streams
them.
"""
