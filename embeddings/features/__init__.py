"""One vector per image: what goes into the head, or any layer's output."""
