"""The pictures of a map."""
