"""From predicted and true masks to scores of classes, objects and confidence, and their means."""
