/* Who owns a socket: the process that connected, accepted, bound or used it, remembered with the socket, because later
 * changes of its state happen in softirq, where "current" is whoever was interrupted.
 */
#pragma once

#include "common.h"

const volatile struct {
	__u32 own_pid; /* 0: not left out */
	__u32 ignore_loopback;
	__u32 ignored_uids; /* how many are in the map */
	__u32 sees_reads;   /* UDP: the kernel has the tracepoint at the end of each read */
} settings;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1024);
} ignored_uids SEC(".maps");

struct owner {
	__u64 started;
	__u64 acted;
	__u64 began;  /* TCP: when the connection did; 0 if that was not seen */
	__u64 socket; /* the kernel's address of the socket; of the MPTCP socket above a subflow */
	__u32 pid;
	__u32 uid;
	__u32 gid;
	__u8 ignored;
	__u8 outbound;
	__u8 bound;
	__u8 peers; /* 0, 1, or 2 for many */
	char name[COMM];
	__u8 local[16];
	__u8 remote[16];
	__u16 local_port;
	__u16 remote_port;
	__u8 family;
	__u8 protocol;
	__u8 state; /* TCP: the last one that was looked at; SCTP: the one in which it was taken */
	__u8 addressed; /* UDP: readers ask for the sender, so each read tells its flow */
	__u32 token; /* of the MPTCP connection */
	__u32 reader; /* UDP: the process that reads without asking for the sender */
	__u32 unread; /* UDP: flows of which no datagram was read yet */
	__u8 shared; /* UDP: several processes read like that */
	__u8 reserved;
	__u16 socket_port; /* UDP: the socket's when its flows began; a transparent proxy's flows have others */
};

static __always_inline struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task();
}

static __always_inline __u32 current_pid(void)
{
	return BPF_CORE_READ(current_task(), tgid);
}

/* Not by executable: a process can change what the kernel holds for it (PR_SET_MM_EXE_FILE of prctl(2)). */
static __always_inline bool left_out(__u32 pid, __u32 uid)
{
	if (settings.own_pid && pid == settings.own_pid)
		return true;
	return settings.ignored_uids && bpf_map_lookup_elem(&ignored_uids, &uid);
}

/* The current task becomes the owner. */
static __always_inline void take(struct owner *owner)
{
	struct task_struct *task = current_task();
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	const struct cred *cred = BPF_CORE_READ(task, cred);

	owner->pid = BPF_CORE_READ(task, tgid);
	owner->started = BPF_CORE_READ(leader, start_boottime);
	owner->acted = bpf_ktime_get_boot_ns();
	owner->uid = BPF_CORE_READ(cred, euid.val);
	owner->gid = BPF_CORE_READ(cred, egid.val);
	owner->ignored = left_out(owner->pid, owner->uid);
	bpf_probe_read_kernel(owner->name, COMM, leader->comm);
}

/* An owner that nobody became yet has only zeros: not known. */
static __always_inline void put_owner(struct socket_event *event, const struct owner *owner)
{
	event->token = owner->token;
	event->pid = owner->pid;
	event->started = owner->started;
	event->acted = owner->acted;
	event->uid = owner->uid;
	event->gid = owner->gid;
	__builtin_memcpy(event->name, owner->name, COMM);
}

static __always_inline bool is_loopback(__u8 family, const __u8 *local, const __u8 *remote)
{
	const __u32 *ours = (const __u32 *)local, *theirs = (const __u32 *)remote;

	if (ours[0] == theirs[0] && ours[1] == theirs[1] && ours[2] == theirs[2] && ours[3] == theirs[3])
		return true;
	if (family == 4)
		return local[0] == 127 || remote[0] == 127;
	return !theirs[0] && !theirs[1] && !theirs[2] && theirs[3] == bpf_htonl(1);
}
