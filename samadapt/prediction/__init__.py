"""From an adapted model to files of labels: slices, prompts carried through a volume, outputs."""
