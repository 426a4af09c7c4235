"""Configuration: its sections, the declarations of all settings, and reading it."""
