"""eBPF programs, their loader, and readers of their records."""
