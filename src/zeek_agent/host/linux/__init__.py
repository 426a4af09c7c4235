"""Host state on Linux: proc(5), netlink(7), mounts, namespaces."""
