"""What every analysis stands on: models, images, layers, graphs, results, drawing."""
