"""Masking of secrets in command lines: the option stays, its value becomes `***`."""
