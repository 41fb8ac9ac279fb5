"""Prompts: simulated from ground truth, read from annotations, or given by a user."""
