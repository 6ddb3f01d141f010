"""Which channels are meant (`spec`), and how many a layer has (`shapes`)."""
