"""What the filters of a network are: kernels, feature maps, strongest patches, ablation."""
