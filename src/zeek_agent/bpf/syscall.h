/* Sockets by the descriptors that system calls return. */
#pragma once

#include "owner.h"

struct syscall_exit {
	__u64 common;
	long number;
	long result;
};

/* The current task's socket with that descriptor; NULL for a failed call and for what is no socket. */
static __always_inline struct sock *socket_at(long descriptor)
{
	if (descriptor < 0)
		return NULL;
	struct fdtable *table = BPF_CORE_READ(current_task(), files, fdt);
	struct file **files = BPF_CORE_READ(table, fd);
	struct file *file = NULL;
	if (descriptor >= BPF_CORE_READ(table, max_fds))
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), files + descriptor);
	struct socket *socket = BPF_CORE_READ(file, private_data);
	if (!file || BPF_CORE_READ(socket, file) != file)
		return NULL;
	return BPF_CORE_READ(socket, sk);
}
