"""The model that ships with cnnviz: its network, its training, its weights and its card."""
