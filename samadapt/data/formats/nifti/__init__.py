"""NIfTI volumes, through nibabel."""
