"""From ground truth, or from what a person gave, to prompts."""
