"""File formats: one module or folder for each; each registers its reader beside its code."""
