"""Entries of the system's log: rows, and one module per backend."""
