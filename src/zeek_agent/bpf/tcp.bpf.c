/* TCP: connections made and accepted, ports listened at, and the end of both. */

#include "owner.h"
#include "syscall.h"

LAYOUT(socket_event);

#define IPPROTO_TCP 6

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

static __always_inline void report(struct sock *sk, const struct owner *owner, __u16 kind)
{
	__u64 cookie = bpf_get_socket_cookie(sk);
	struct socket_event *event = bpf_ringbuf_reserve(&records, sizeof(*event), 0);

	if (!event) {
		count_lost(kind);
		return;
	}
	put_socket(event, sk, kind);
	event->cookie = cookie;
	event->outbound = owner->outbound;
	put_owner(event, owner);
	if (settings.ignore_loopback && kind != RECORD_LISTEN && kind != RECORD_UNLISTEN &&
	    is_loopback(event->family, event->local, event->remote)) {
		bpf_ringbuf_discard(event, 0);
		return;
	}
	bpf_ringbuf_submit(event, wakeup());
}

static __always_inline int changed(struct sock *sk, int before, int now)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (now != TCP_ESTABLISHED && now != TCP_SYN_SENT && now != TCP_LISTEN && now != TCP_CLOSE)
		return 0;
	struct owner *owner = bpf_sk_storage_get(&owners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!owner || owner->state == now)
		return 0;
	owner->state = now;
	if (now == TCP_SYN_SENT || now == TCP_LISTEN) {
		take(owner);
		owner->outbound = now == TCP_SYN_SENT;
	}
	__u16 kind = kind_of(before, now, owner->outbound);
	if (kind && !owner->ignored)
		report(sk, owner, kind);
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
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	if ((family != AF_INET && family != AF_INET6) || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	struct socket_event *event = bpf_ringbuf_reserve(&records, sizeof(*event), 0);
	if (!event) {
		count_lost(RECORD_ACCEPTED);
		return 0;
	}
	put_socket(event, sk, RECORD_ACCEPTED);
	event->cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	event->outbound = 0;
	take(&owner);
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
