"""From an adapter directory and image files to masks, in memory and on disk."""
