"""Worker processes that run SQL: pool, messages, privileges."""
