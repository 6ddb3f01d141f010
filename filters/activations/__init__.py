"""What a layer makes of one picture."""
