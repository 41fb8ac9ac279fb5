"""File formats, one module or folder each; each registers its reader beside its code."""
