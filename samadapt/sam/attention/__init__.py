"""Attention with decomposed relative position: the reference form, in tiles, and compiled."""
