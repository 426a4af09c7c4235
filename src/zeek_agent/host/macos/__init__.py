"""macOS: parsers of what its programs write, and readers that run these programs or call the C library."""
