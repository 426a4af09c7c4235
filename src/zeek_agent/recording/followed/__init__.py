"""Followed files of own tables: a reader that rotation does not confuse, and the event source."""
