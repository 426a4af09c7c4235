"""The command line: `program.py` begins; the other modules have the commands."""
