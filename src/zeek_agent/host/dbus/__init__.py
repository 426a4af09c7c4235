"""A client of a D-Bus message bus: method calls with texts as arguments, of which many can be on their way at a time."""
