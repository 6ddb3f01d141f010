"""Running covered images: whole passes (`full`), or only what a mask can reach (`incremental`)."""
