"""The configuration of a run: its keys, and how a recipe and a command line set them."""
