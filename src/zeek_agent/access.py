"""What statements may see: tables, files, and what of a command line."""
