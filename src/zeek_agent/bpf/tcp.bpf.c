/* TCP: connections made and accepted, ports listened at, and the end of both. */

#include "owner.h"
#include "syscall.h"

LAYOUT(socket_event);
LAYOUT(flow_event);

#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262
#define MPTCP_CONNECTIONS 16384

enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_CLOSE = 7,
	TCP_LISTEN = 10,
};

/* A connection that comes in starts with its listener's owner. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct owner);
} owners SEC(".maps");

/* Who connected or accepted an MPTCP connection. A kernel worker opens its further subflows, and nobody accepts those. */
struct mptcp_owner {
	__u64 started;
	__u64 acted;
	__u32 pid;
	__u32 uid;
	__u32 gid;
	__u32 token; /* another one is that of a former connection with the same address */
	char name[COMM];
	__u8 ignored;
	__u8 reserved[7];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, __u64); /* the kernel's address of the MPTCP socket */
	__type(value, struct mptcp_owner);
	__uint(max_entries, MPTCP_CONNECTIONS);
} mptcp_owners SEC(".maps");

static __always_inline void keep_mptcp_owner(const struct owner *owner)
{
	struct mptcp_owner kept = {
		.started = owner->started,
		.acted = owner->acted,
		.pid = owner->pid,
		.uid = owner->uid,
		.gid = owner->gid,
		.token = owner->token,
		.ignored = owner->ignored,
	};

	__builtin_memcpy(kept.name, owner->name, COMM);
	bpf_map_update_elem(&mptcp_owners, &owner->socket, &kept, BPF_ANY);
}

static __always_inline bool take_mptcp_owner(struct owner *owner)
{
	struct mptcp_owner *kept = bpf_map_lookup_elem(&mptcp_owners, &owner->socket);

	if (!kept || !owner->token || kept->token != owner->token)
		return false; /* a connection that fell back to TCP has no token */
	owner->started = kept->started;
	owner->acted = kept->acted;
	owner->pid = kept->pid;
	owner->uid = kept->uid;
	owner->gid = kept->gid;
	owner->ignored = kept->ignored;
	__builtin_memcpy(owner->name, kept->name, COMM);
	return true;
}

/* The MPTCP socket above a TCP socket; NULL for plain TCP. */
static __always_inline struct mptcp_sock *mptcp_above(struct sock *sk)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;

	if (!bpf_core_field_exists(tcp->is_mptcp) || !BPF_CORE_READ(tcp, is_mptcp))
		return NULL;
	struct mptcp_subflow_context *subflow = BPF_CORE_READ((struct inet_connection_sock *)sk, icsk_ulp_data);
	return (struct mptcp_sock *)BPF_CORE_READ(subflow, conn);
}

static __always_inline void put_ends(struct socket_event *event, const struct sock *sk)
{
	event->remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	/* skc_num is 0 again when a socket is closed */
	event->local_port = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	event->protocol = IPPROTO_TCP;
	__builtin_memset(event->local, 0, 16);
	__builtin_memset(event->remote, 0, 16);
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET) {
		event->family = 4;
		BPF_CORE_READ_INTO((__u32 *)event->local, sk, __sk_common.skc_rcv_saddr);
		BPF_CORE_READ_INTO((__u32 *)event->remote, sk, __sk_common.skc_daddr);
		return;
	}
	event->family = 6;
	BPF_CORE_READ_INTO((struct in6_addr *)event->local, sk, __sk_common.skc_v6_rcv_saddr);
	BPF_CORE_READ_INTO((struct in6_addr *)event->remote, sk, __sk_common.skc_v6_daddr);
}

static __always_inline void put_socket(struct socket_event *event, const struct sock *sk, __u16 kind)
{
	event->kind = kind;
	event->time = bpf_ktime_get_boot_ns();
	event->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	event->error = BPF_CORE_READ(sk, sk_err);
	put_ends(event, sk);
}

/* The kind of record for a change of state; 0 for those that nobody needs to know. */
static __always_inline __u16 kind_of(int before, int now, bool outbound)
{
	if (now == TCP_ESTABLISHED)
		return outbound ? RECORD_CONNECTED : RECORD_PASSIVE;
	if (now == TCP_LISTEN)
		return RECORD_LISTEN;
	if (now != TCP_CLOSE || before == TCP_CLOSE)
		return 0;
	if (before == TCP_SYN_SENT || before == TCP_SYN_RECV)
		return outbound ? RECORD_FAILED : 0;
	return before == TCP_LISTEN ? RECORD_UNLISTEN : RECORD_CLOSED;
}

static __always_inline void put_change(struct socket_event *event, struct sock *sk, __u64 cookie,
				       const struct owner *owner, __u16 kind, __u16 flags)
{
	put_socket(event, sk, kind);
	event->cookie = cookie;
	event->outbound = owner->outbound;
	event->socket = owner->socket;
	event->flags = flags;
	put_owner(event, owner);
}

static __always_inline bool is_ignored(const struct socket_event *event)
{
	return settings.ignore_loopback && is_loopback(event->family, event->local, event->remote);
}

static __always_inline void report(struct sock *sk, const struct owner *owner, __u16 kind, __u16 flags)
{
	__u64 cookie = bpf_get_socket_cookie(sk);
	struct socket_event *event = bpf_ringbuf_reserve(&records, sizeof(*event), 0);

	if (!event) {
		count_lost(kind);
		return;
	}
	put_change(event, sk, cookie, owner, kind, flags);
	if (kind != RECORD_LISTEN && kind != RECORD_UNLISTEN && is_ignored(event))
		bpf_ringbuf_discard(event, 0);
	else
		bpf_ringbuf_submit(event, wakeup());
}

/* The kernel counts the other side's FIN as a byte. */
static __always_inline void report_closed(struct sock *sk, const struct owner *owner)
{
	const struct tcp_sock *tcp = (const struct tcp_sock *)sk;
	__u64 cookie = bpf_get_socket_cookie(sk);
	struct flow_event *event = bpf_ringbuf_reserve(&records, sizeof(*event), 0);
	if (!event) {
		count_lost(RECORD_CLOSED);
		return;
	}
	put_change(&event->socket, sk, cookie, owner, RECORD_CLOSED, SOCKET_COUNTED);
	event->began = owner->began;
	event->bytes_sent = BPF_CORE_READ(tcp, bytes_sent) - BPF_CORE_READ(tcp, bytes_retrans);
	event->bytes_received = BPF_CORE_READ(tcp, bytes_received);
	if (event->bytes_received && BPF_CORE_READ(sk, __sk_common.skc_flags) >> SOCK_DONE & 1)
		event->bytes_received--;
	event->packets_sent = BPF_CORE_READ(tcp, segs_out);
	event->packets_received = BPF_CORE_READ(tcp, segs_in);
	event->drops = 0;
	if (is_ignored(&event->socket))
		bpf_ringbuf_discard(event, 0);
	else
		bpf_ringbuf_submit(event, wakeup());
}

/* Notes what a process has open: the MPTCP socket above, which it gives, or the socket itself. */
static __always_inline struct mptcp_sock *join(struct sock *sk, struct owner *owner)
{
	struct mptcp_sock *mptcp = mptcp_above(sk);

	owner->socket = mptcp ? (__u64)mptcp : (__u64)sk;
	owner->token = mptcp ? BPF_CORE_READ(mptcp, token) : 0;
	return mptcp;
}

/* Who connects or listens: the current task, except for subflows that others open for an MPTCP connection. */
static __always_inline void own(struct sock *sk, struct owner *owner)
{
	struct mptcp_sock *mptcp = join(sk, owner);

	if (!mptcp || !owner->outbound) {
		take(owner);
		return;
	}
	if (take_mptcp_owner(owner))
		return;
	if (BPF_CORE_READ(mptcp, first) != sk)
		return; /* of a connection that was open before: not known */
	take(owner);
	keep_mptcp_owner(owner);
}

static __always_inline int changed(struct sock *sk, int before, int now)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (now != TCP_ESTABLISHED && now != TCP_SYN_SENT && now != TCP_LISTEN && now != TCP_CLOSE)
		return 0;
	struct owner *owner = bpf_sk_storage_get(&owners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!owner) { /* no memory */
		count_lost(kind_of(before, now, before == TCP_SYN_SENT));
		return 0;
	}
	if (owner->state == now)
		return 0;
	bool was_seen = owner->state == TCP_ESTABLISHED || owner->outbound;
	owner->state = now;
	if (now == TCP_SYN_SENT || now == TCP_LISTEN) {
		owner->outbound = now == TCP_SYN_SENT;
		own(sk, owner);
		owner->began = now == TCP_SYN_SENT ? bpf_ktime_get_boot_ns() : 0;
	} else if (before == TCP_SYN_SENT && !owner->outbound) {
		owner->outbound = 1; /* it began to connect before this program was attached */
		if (join(sk, owner))
			take_mptcp_owner(owner);
	}
	__u16 kind = kind_of(before, now, owner->outbound), flags = 0;
	if (kind == RECORD_PASSIVE)
		owner->began = bpf_ktime_get_boot_ns();
	if (kind == RECORD_PASSIVE && join(sk, owner) && take_mptcp_owner(owner))
		flags = SOCKET_OWNED;
	if (kind == RECORD_CLOSED && !was_seen)
		join(sk, owner); /* its accept may be waiting for it */
	if (!kind || owner->ignored)
		return 0;
	if (kind == RECORD_CLOSED)
		report_closed(sk, owner);
	else
		report(sk, owner, kind, flags);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_state, struct sock *sk, int before, int now)
{
	return changed(sk, before, now);
}

/* The kernel leaves out a program that is running already on this CPU. When a packet interrupts the one above and
 * changes the state of another socket, this one still runs; mostly it finds the change noted and has nothing to do.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_state_nested, struct sock *sk, int before, int now)
{
	return changed(sk, before, now);
}

static __always_inline int accepted(long descriptor)
{
	struct owner owner = {};
	struct sock *sk = socket_at(descriptor);
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family), protocol = BPF_CORE_READ(sk, sk_protocol);

	if (family != AF_INET && family != AF_INET6)
		return 0;
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP)
		return 0;
	struct sock *connection = sk;
	take(&owner);
	owner.socket = (__u64)sk;
	if (protocol == IPPROTO_MPTCP && bpf_core_field_exists(((struct mptcp_sock *)sk)->token)) {
		owner.token = BPF_CORE_READ((struct mptcp_sock *)sk, token);
		connection = BPF_CORE_READ((struct mptcp_sock *)sk, first);
		keep_mptcp_owner(&owner);
	}
	struct socket_event *event = bpf_ringbuf_reserve(&records, sizeof(*event), 0);
	if (!event) {
		count_lost(RECORD_ACCEPTED);
		return 0;
	}
	put_socket(event, sk, RECORD_ACCEPTED);
	/* of the first subflow, because the token is gone when MPTCP fell back to TCP */
	event->cookie = BPF_CORE_READ(connection, __sk_common.skc_cookie.counter);
	event->socket = owner.socket;
	event->outbound = 0;
	event->flags = 0;
	put_owner(event, &owner);
	if (settings.ignore_loopback && is_loopback(event->family, event->local, event->remote)) {
		bpf_ringbuf_discard(event, 0);
		return 0;
	}
	bpf_ringbuf_submit(event, wakeup());
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_accept")
int on_accept(struct syscall_exit *context)
{
	return accepted(context->result);
}

SEC("tracepoint/syscalls/sys_exit_accept4")
int on_accept4(struct syscall_exit *context)
{
	return accepted(context->result);
}
