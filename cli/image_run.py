"""The former place of `ImageRun`, until every command is on `per_image`."""

from cnnviz.cli.per_image import ImageRun

__all__ = ["ImageRun"]
