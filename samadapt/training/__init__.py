"""The training loop and its parts: batches, losses, features, checkpoints and progress."""
