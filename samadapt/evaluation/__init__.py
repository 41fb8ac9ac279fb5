"""From label maps to numbers and pictures: inference, metrics, report, overlays, plots."""
