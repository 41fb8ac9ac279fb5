"""Losses, the one loop, frozen-prefix features, checkpoints and progress."""
