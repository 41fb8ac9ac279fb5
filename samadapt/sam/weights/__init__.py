"""Pretrained weights: the models that exist, where their files are, and how they are read."""
