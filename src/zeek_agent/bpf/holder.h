/* Who has a socket open, at hooks of control groups. */
#pragma once

#include "owner.h"

#define DESCRIPTORS 1024 /* among which a sender's socket is looked for */

/* The socket's address as a number: through memory, because the verifier forbids to calculate with the pointer. */
static __always_inline struct sock *kernel_socket(struct owner *owner, struct bpf_sock *sk)
{
	*(volatile __u64 *)&owner->socket = (__u64)sk;
	barrier();
	return (struct sock *)*(volatile __u64 *)&owner->socket;
}

static __always_inline __u32 netns_at(struct owner *owner, struct bpf_sock *sk)
{
	return BPF_CORE_READ(kernel_socket(owner, sk), __sk_common.skc_net.net, ns.inum);
}

/* Whether the current task has the file open at one of its first descriptors. It has not when it only lets a queue of
 * netfilter go on, or was interrupted. A function of its own, verified once.
 */
__noinline bool holds(__u64 file)
{
	struct fdtable *table = BPF_CORE_READ(current_task(), files, fdt);
	struct file **files = BPF_CORE_READ(table, fd);
	__u32 size = BPF_CORE_READ(table, max_fds);

	for (__u32 i = 0; i < DESCRIPTORS && i < size; i++) {
		__u64 each = 0;
		bpf_probe_read_kernel(&each, sizeof(each), files + i);
		if (each == file)
			return true;
	}
	return false;
}
