"""NRRD, MetaImage and 3D Slicer segmentations, through SimpleITK."""
