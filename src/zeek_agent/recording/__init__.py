"""Records events in the background, by the best backend that works on this host."""
