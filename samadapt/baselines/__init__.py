"""What a user would pick instead of SAM: models that train from scratch on the same slices."""
