"""Process and socket events from the kernel's audit system."""
