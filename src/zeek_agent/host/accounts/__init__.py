"""User accounts and groups."""
