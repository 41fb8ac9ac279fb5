"""DICOM series, pictures, segmentations (SEG) and structure sets (RTSTRUCT), through pydicom."""
