"""Event sources of Windows: its event logs, mapped to the rows of the event tables."""
