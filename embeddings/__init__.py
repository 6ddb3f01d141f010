"""How a network groups images: penultimate features, PCA, t-SNE, and how far to trust them."""
