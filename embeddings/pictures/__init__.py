"""The pictures of a map: points, thumbnails, a grid, its quality."""
