"""A client of a D-Bus message bus: method calls with texts as arguments, many at a time."""
