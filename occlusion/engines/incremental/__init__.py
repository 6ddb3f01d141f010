"""The incremental engine: computes only what a mask can reach."""
