"""What a person looks at after a run: tables, overlays, plots and the HTML page."""
