"""Code that several formats share: folder layouts, pictures, masks, and safe decompression."""
