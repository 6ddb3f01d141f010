"""What a layer makes of one picture: its maps, their numbers, their pictures."""
