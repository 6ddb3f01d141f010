"""What each command is called with: its arguments, options and help. Nothing heavy is imported."""
