"""The event store: every recorded event, kept on disk until its retention ends."""
