"""Reads host state when asked: no threads, no events."""
