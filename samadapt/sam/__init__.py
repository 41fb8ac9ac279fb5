"""The Segment Anything model of the papers: no files but weights, no training."""
