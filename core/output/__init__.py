"""What a run leaves: folders, figures, numbers."""
