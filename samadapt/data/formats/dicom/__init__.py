"""DICOM series, RTSTRUCT and SEG."""
