"""Readers of a Windows host."""
