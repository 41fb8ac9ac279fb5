"""An adapter's life: combine methods, inject, save, load, check and describe."""
