"""The COCO format: JSON files with the outlines of objects."""
