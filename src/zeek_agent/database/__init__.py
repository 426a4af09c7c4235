"""SQL over all tables, in a sandbox."""
