"""TIFF stacks, through tifffile."""
