"""The machine: files, memory, processors, processes and downloads. Knows nothing of SAM."""
