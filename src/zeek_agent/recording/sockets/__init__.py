"""Socket events: rows, owners, address translation, and one module per backend."""
