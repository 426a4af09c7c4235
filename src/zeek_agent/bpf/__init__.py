"""eBPF: the programs, what loads them, and what reads the records that they send."""
