"""Readers of host state, without threads and events."""
