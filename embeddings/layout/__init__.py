"""Vectors to places in the plane: PCA, neighbours, t-SNE."""
