"""Login events: who logged in, failed to, changed the user, and logged out."""
