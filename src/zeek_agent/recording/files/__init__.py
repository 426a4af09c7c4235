"""File events: created, written, deleted, renamed and executed files, from a helper process that uses fanotify."""
