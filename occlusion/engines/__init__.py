"""Engines that run occluded images: whole passes (`full`), or only what changes (`incremental`)."""
