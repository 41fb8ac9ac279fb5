"""What several formats use: folder layouts, decoding of pictures, guards against hostile files."""
