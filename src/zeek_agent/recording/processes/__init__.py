"""Process events: rows, the process cache, and one module per backend."""
