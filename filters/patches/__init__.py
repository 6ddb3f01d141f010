"""The strongest patches of each filter: `scan` finds the units, `max_patches` cuts the patches."""
