/* Datagrams: the first one of each flow (a socket and a peer), ports bound, and the end of sockets that had either.
 *
 * UDP and UDP-Lite, SCTP, echo requests of ping and raw sockets, and whatever else raw sockets send. The owner comes
 * from hooks in the process's own context, the addresses from the packet, which has both.
 */

#include "holder.h"
#include "ip_packet.h"

LAYOUT(socket_event);
LAYOUT(flow_event);

#define IPPROTO_ICMP 1
#define IPPROTO_ICMPV6 58
#define IPPROTO_SCTP 132
#define IPPROTO_UDPLITE 136
#define MSG_PEEK 2
#define ICMP_ECHO 8
#define ICMP_HEADER 8
#define ICMPV6_ECHO 128
#define ICMPV6_REPLY 129
#define SCTP_ESTABLISHED 1
#define SCTP_LISTENING 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define FLOWS 32768
#define READERS 4096 /* threads that read at the same time; more are not asked whether they peek */
#define FLOW_IDLE 60000000000ULL /* ns after which a flow is a new one, as for Zeek */

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct owner);
} owners SEC(".maps");

struct flow {
	__u64 cookie;
	__u8 remote[16];
	__u16 remote_port;
	__u16 local_port;
	__u32 protocol;
};

struct flow_state {
	__u64 began;
	__u64 seen;
	__u64 told; /* when ACTIVE was reported */
	__u64 bytes_sent;
	__u64 bytes_received;
	__u64 packets_sent;
	__u64 packets_received;
	__u8 local[16];
	__u32 netns;
	__u32 unread; /* the other side began it, and no process has read a datagram of it yet */
	__u8 family;
	__u8 outbound;
	__u8 counted; /* SOCKET_COUNTED, SOCKET_SENT_ONLY; without them, it is not reported again */
	__u8 reserved[5];
};

/* The oldest give way to new ones. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct flow);
	__type(value, struct flow_state);
	__uint(max_entries, FLOWS);
} flows SEC(".maps");

/* The first datagram of a flow, which a thread is reading, and perhaps only peeks at. */
struct reading {
	struct flow flow;
	__u32 family;
	__u32 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32); /* the thread */
	__type(value, struct reading);
	__uint(max_entries, READERS);
} readings SEC(".maps");

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == IPPROTO_UDP || protocol == IPPROTO_TCP || protocol == IPPROTO_SCTP ||
	       protocol == IPPROTO_UDPLITE;
}

/* Ports; an echo's type and its reply's stand for them, as in Zeek's conn.log. False for packets that begin no flow. */
static __always_inline bool read_ports(struct __sk_buff *skb, struct packet *packet, __u32 at, bool outbound)
{
	if (has_ports(packet->protocol)) {
		__be16 ports[2];
		if (bpf_skb_load_bytes(skb, at, ports, sizeof(ports)))
			return false;
		packet->local_port = bpf_ntohs(outbound ? ports[0] : ports[1]);
		packet->remote_port = bpf_ntohs(outbound ? ports[1] : ports[0]);
		return true;
	}
	if (packet->protocol == IPPROTO_ICMP || packet->protocol == IPPROTO_ICMPV6) {
		__u8 type;
		if (!outbound || bpf_skb_load_bytes(skb, at, &type, 1))
			return false;
		packet->local_port = type;
		packet->remote_port = type == ICMPV6_ECHO ? ICMPV6_REPLY : 0;
		return type == (packet->protocol == IPPROTO_ICMP ? ICMP_ECHO : ICMPV6_ECHO);
	}
	return true;
}

static __always_inline __u32 header_length(const struct packet *packet)
{
	if (packet->protocol == IPPROTO_UDP || packet->protocol == IPPROTO_UDPLITE)
		return UDP_HEADER;
	return packet->protocol == IPPROTO_ICMP || packet->protocol == IPPROTO_ICMPV6 ? ICMP_HEADER : 0;
}

/* What is counted of a flow that is not one of datagrams. Raw sockets receive what is meant for others, too; the payload
 * of SCTP is in chunks.
 */
static __always_inline __u8 what_is_sent(const struct packet *packet, bool outbound)
{
	return outbound && !packet->is_cut && packet->protocol != IPPROTO_SCTP ? SOCKET_COUNTED | SOCKET_SENT_ONLY : 0;
}

/* Whether this socket's packets are ours to report: TCP has its own object, raw sockets also get what others receive. */
static __always_inline bool is_ours(struct bpf_sock *sk, bool outbound)
{
	if (sk->type == SOCK_RAW)
		return outbound;
	if (sk->protocol == IPPROTO_SCTP) /* of one that listens for connections, the accepted sockets tell */
		return sk->type != SOCK_STREAM || sk->state != SCTP_LISTENING;
	return sk->type == SOCK_DGRAM;
}

/* The owner, who is the current task when a socket sends that nobody was seen to use, or that the task has from another
 * one. The kernel's own sockets, which send resets and tunnels' packets in anybody's context, are in no file; they are
 * left out.
 */
static __always_inline struct owner *owner_of(struct bpf_sock *sk, bool outbound)
{
	struct owner *owner = bpf_sk_storage_get(&owners, sk, 0, 0);
	bool is_new = !owner;

	if (is_new)
		owner = bpf_sk_storage_get(&owners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!owner || (!is_new && !outbound))
		return owner;
	if (!is_new && owner->pid == current_pid())
		return owner;
	struct file *file = BPF_CORE_READ(kernel_socket(owner, sk), sk_socket, file);
	if (!file)
		owner->ignored = 1;
	else if (outbound && (is_new || (owner->pid && holds((__u64)file))))
		take(owner);
	return owner;
}

static __always_inline bool is_same_address(const __u8 *one, const __u8 *other)
{
	const __u64 *first = (const __u64 *)one, *second = (const __u64 *)other;

	return first[0] == second[0] && first[1] == second[1];
}

/* Whether the socket's first peer is this one. */
static __always_inline bool is_peer(const struct owner *owner, const __u8 *remote, __u16 remote_port)
{
	return owner->remote_port == remote_port && is_same_address(owner->remote, remote);
}

static __always_inline void remember(struct owner *owner, const struct packet *packet, __u16 socket_port,
				     bool outbound)
{
	if (owner->peers == 0) {
		owner->socket_port = socket_port;
		__builtin_memcpy(owner->local, packet->local, 16);
		__builtin_memcpy(owner->remote, packet->remote, 16);
		owner->local_port = packet->local_port;
		owner->remote_port = packet->remote_port;
		owner->family = packet->family;
		owner->protocol = packet->protocol;
		owner->outbound = outbound;
	}
	if (owner->peers == 0)
		owner->peers = 1;
	else if (owner->peers == 1 && !is_peer(owner, packet->remote, packet->remote_port))
		owner->peers = 2;
}

static __always_inline void report_packet(struct bpf_sock *sk, struct owner *owner, const struct packet *packet,
					  __u64 cookie, bool outbound, bool is_unread)
{
	__u16 kind = outbound ? RECORD_SENT : RECORD_RECEIVED;
	struct socket_event *event = bpf_ringbuf_reserve(&records, sizeof(*event), 0);

	if (!event) {
		count_lost(kind);
		return;
	}
	event->kind = kind;
	event->protocol = packet->protocol;
	event->family = packet->family;
	event->time = bpf_ktime_get_boot_ns();
	event->cookie = cookie;
	event->error = 0;
	__builtin_memcpy(event->local, packet->local, 16);
	__builtin_memcpy(event->remote, packet->remote, 16);
	event->local_port = packet->local_port;
	event->remote_port = packet->remote_port;
	event->outbound = outbound;
	event->flags = (is_unread ? SOCKET_UNREAD : 0) | (packet->is_cut ? SOCKET_CUT : 0);
	put_owner(event, owner);
	event->netns = netns_at(owner, sk);
	event->socket = 0;
	if (is_unread) /* the holder may have to be looked for */
		event->socket = BPF_CORE_READ(kernel_socket(owner, sk), sk_socket, file, f_inode, i_ino);
	bpf_ringbuf_submit(event, wakeup());
}

static __always_inline void put_counts(struct flow_event *event, const struct flow_state *state)
{
	event->began = state->began;
	event->bytes_sent = state->bytes_sent;
	event->bytes_received = state->bytes_received;
	event->packets_sent = state->packets_sent;
	event->packets_received = state->packets_received;
	event->drops = 0;
}

/* A flow ended because it was idle, or goes on. False if the ring is full. */
static __always_inline bool report_flow(const struct flow *flow, const struct flow_state *state, __u16 kind)
{
	struct flow_event *event = bpf_ringbuf_reserve(&records, sizeof(*event), 0);

	if (!event)
		return false;
	__builtin_memset(&event->socket, 0, sizeof(event->socket));
	event->socket.kind = kind;
	event->socket.protocol = flow->protocol;
	event->socket.family = state->family;
	event->socket.time = kind == RECORD_EXPIRED ? state->seen : bpf_ktime_get_boot_ns();
	event->socket.cookie = flow->cookie;
	event->socket.netns = state->netns;
	__builtin_memcpy(event->socket.local, state->local, 16);
	__builtin_memcpy(event->socket.remote, flow->remote, 16);
	event->socket.local_port = flow->local_port;
	event->socket.remote_port = flow->remote_port;
	event->socket.outbound = state->outbound;
	event->socket.flags = state->counted;
	put_counts(event, state);
	bpf_ringbuf_submit(event, wakeup());
	return true;
}

static __always_inline void put_socket(struct socket_event *event, const struct owner *owner, __u16 kind, __u16 flags,
				       __u64 cookie, __u32 netns)
{
	event->kind = kind;
	event->protocol = owner->protocol;
	event->family = owner->family;
	event->time = bpf_ktime_get_boot_ns();
	event->cookie = cookie;
	event->error = 0;
	__builtin_memcpy(event->local, owner->local, 16);
	event->local_port = owner->local_port;
	if (owner->peers == 1) {
		__builtin_memcpy(event->remote, owner->remote, 16);
		event->remote_port = owner->remote_port;
	} else {
		__builtin_memset(event->remote, 0, 16);
		event->remote_port = 0;
	}
	event->outbound = owner->outbound;
	event->flags = flags;
	event->socket = 0;
	put_owner(event, owner);
	event->netns = netns;
}

static __always_inline void report_socket(const struct owner *owner, __u16 kind, __u16 flags, __u64 cookie,
					  __u32 netns)
{
	struct socket_event *event = bpf_ringbuf_reserve(&records, sizeof(*event), 0);

	if (!event) {
		count_lost(kind);
		return;
	}
	put_socket(event, owner, kind, flags, cookie, netns);
	bpf_ringbuf_submit(event, wakeup());
}

/* Datagrams that found the receive buffer full. */
static __always_inline __u64 drops_of(const struct sock *sk)
{
	__u32 drops = BPF_CORE_READ(sk, sk_drops.counter);

	if (bpf_core_field_exists(sk->sk_drop_counters)) {
		struct numa_drop_counters *counters = BPF_CORE_READ(sk, sk_drop_counters);
		if (counters)
			drops += BPF_CORE_READ(counters, drops0.counter) + BPF_CORE_READ(counters, drops1.counter);
	}
	return drops;
}

/* The socket's only flow is over, and with it what was counted. */
static __always_inline void report_closed(const struct owner *owner, __u16 flags, __u64 cookie, struct sock *sk)
{
	__u32 netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	__u64 drops = drops_of(sk);
	struct flow flow = {
		.cookie = cookie,
		.remote_port = owner->remote_port,
		.local_port = owner->local_port,
		.protocol = owner->protocol,
	};
	struct flow_event *event;

	__builtin_memcpy(flow.remote, owner->remote, 16);
	if (!owner->ignored) {
		event = bpf_ringbuf_reserve(&records, sizeof(*event), 0);
		if (event) {
			struct flow_state *state = bpf_map_lookup_elem(&flows, &flow);
			if (state && state->counted) {
				flags |= state->counted;
				put_counts(event, state);
			} else {
				__builtin_memset(&event->began, 0, sizeof(*event) - sizeof(event->socket));
			}
			put_socket(&event->socket, owner, RECORD_CLOSED, flags, cookie, netns);
			event->drops = drops;
			bpf_ringbuf_submit(event, wakeup());
		} else {
			count_lost(RECORD_CLOSED);
		}
	}
	bpf_map_delete_elem(&flows, &flow);
}

/* The socket's only flow is over, or all are if the port is another one since: the socket was dissolved (connected to
 * AF_UNSPEC), which passes no hook, or connects to another peer. The flows of several peers expire.
 */
static __always_inline void end_flow(struct owner *owner, __u64 cookie, struct sock *sk)
{
	if (owner->peers == 1)
		report_closed(owner, SOCKET_FLOW_ENDED, cookie, sk);
	else if (!owner->ignored)
		report_socket(owner, RECORD_UNLISTEN, SOCKET_FLOW_ENDED, cookie,
			      BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum));
	owner->peers = 0;
}

static __always_inline bool is_udp(__u32 protocol)
{
	return protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE;
}

/* The state of a flow that begins now. NULL if there is no memory. */
static __always_inline struct flow_state *begin_flow(const struct flow *flow, const struct packet *packet,
						     bool outbound, __u64 now)
{
	struct flow_state begun = {
		.began = now,
		.seen = now,
		.family = packet->family,
		.outbound = outbound,
	};

	__builtin_memcpy(begun.local, packet->local, 16);
	bpf_map_update_elem(&flows, flow, &begun, BPF_ANY);
	return bpf_map_lookup_elem(&flows, flow);
}

static __always_inline void restart(struct flow_state *state, bool outbound, __u64 now)
{
	state->began = now;
	state->told = 0;
	state->bytes_sent = state->bytes_received = 0;
	state->packets_sent = state->packets_received = 0;
	state->outbound = outbound;
	state->counted = 0;
}

static __always_inline void count(struct flow_state *state, const struct packet *packet, bool outbound)
{
	if (outbound) {
		__sync_fetch_and_add(&state->bytes_sent, packet->payload);
		__sync_fetch_and_add(&state->packets_sent, packet->count);
	} else {
		__sync_fetch_and_add(&state->bytes_received, packet->payload);
		__sync_fetch_and_add(&state->packets_received, packet->count);
	}
}

static __always_inline int datagram(struct __sk_buff *skb, bool outbound)
{
	struct packet packet = {};
	struct flow flow = {};
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk || !is_ours(sk, outbound))
		return 1;
	__u32 transport = read_addresses(skb, &packet, outbound);
	if (!transport || (!packet.is_cut && !read_ports(skb, &packet, transport, outbound)))
		return 1;
	if (settings.ignore_loopback && is_loopback(packet.family, packet.local, packet.remote))
		return 1;
	flow.cookie = bpf_get_socket_cookie(skb);
	__builtin_memcpy(flow.remote, packet.remote, 16);
	flow.remote_port = packet.remote_port;
	flow.local_port = packet.local_port;
	flow.protocol = packet.protocol;
	bool is_datagram = sk->type == SOCK_DGRAM && is_udp(packet.protocol);
	transport += header_length(&packet);
	packet.payload = skb->len > transport ? skb->len - transport : 0;
	packet.count = skb->gso_segs ?: 1;
	__u64 now = bpf_ktime_get_boot_ns();
	struct flow_state *state = bpf_map_lookup_elem(&flows, &flow);
	bool is_new = !state || now - state->seen > FLOW_IDLE;
	if (!state) {
		state = begin_flow(&flow, &packet, outbound, now);
		if (!state) {
			count_lost(outbound ? RECORD_SENT : RECORD_RECEIVED);
			return 1;
		}
	} else if (is_new) {
		if (state->counted && !report_flow(&flow, state, RECORD_EXPIRED))
			count_lost(RECORD_EXPIRED);
		restart(state, outbound, now);
	}
	state->seen = now;
	count(state, &packet, outbound);
	if (!is_new)
		return 1;
	state->unread = is_datagram && !outbound;
	struct owner *owner = owner_of(sk, outbound);
	if (!owner) /* no memory */
		count_lost(outbound ? RECORD_SENT : RECORD_RECEIVED);
	if (!owner || owner->ignored)
		return 1;
	state->netns = netns_at(owner, sk);
	state->counted = is_datagram ? SOCKET_COUNTED : what_is_sent(&packet, outbound);
	if (owner->state == SCTP_ESTABLISHED) /* accepted, whoever sends first */
		outbound = false;
	if (is_datagram) {
		if (owner->peers && owner->socket_port != sk->src_port)
			end_flow(owner, flow.cookie, kernel_socket(owner, sk));
		if (!outbound)
			__sync_fetch_and_add(&owner->unread, 1);
	}
	if (!packet.is_cut)
		remember(owner, &packet, sk->src_port, outbound);
	report_packet(sk, owner, &packet, flow.cookie, outbound, is_datagram && !outbound);
	return 1;
}

SEC("cgroup_skb/egress")
int on_egress(struct __sk_buff *skb)
{
	return datagram(skb, true);
}

SEC("cgroup_skb/ingress")
int on_ingress(struct __sk_buff *skb)
{
	return datagram(skb, false);
}

/* The current task uses the socket. */
static __always_inline struct owner *used(struct bpf_sock *sk)
{
	struct owner *owner = bpf_sk_storage_get(&owners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (owner && owner->pid != current_pid())
		take(owner);
	return owner;
}

static __always_inline int used_address(struct bpf_sock_addr *context)
{
	if (context->protocol != IPPROTO_TCP && context->sk)
		used(context->sk);
	return 1;
}

/* The address and port that a hook is called with, as in a packet: an IPv4-mapped address is an IPv4 one. */
static __always_inline void read_peer(struct bpf_sock_addr *context, bool is_ipv6, __u8 *remote, __u16 *remote_port)
{
	__u32 *words = (__u32 *)remote;

	*remote_port = bpf_ntohs(context->user_port);
	if (!is_ipv6) {
		words[0] = context->user_ip4;
		return;
	}
	__u32 first = context->user_ip6[0], second = context->user_ip6[1];
	__u32 third = context->user_ip6[2], fourth = context->user_ip6[3];
	if (!first && !second && third == bpf_htonl(0xffff)) {
		words[0] = fourth;
		return;
	}
	words[0] = first;
	words[1] = second;
	words[2] = third;
	words[3] = fourth;
}

static __always_inline int connects(struct bpf_sock_addr *context, bool is_ipv6)
{
	struct bpf_sock *sk = context->sk;

	if (context->protocol == IPPROTO_TCP || !sk)
		return 1;
	struct owner *owner = bpf_sk_storage_get(&owners, sk, 0, 0);
	if (owner && is_udp(context->protocol)) {
		__u8 remote[16] = {};
		__u16 remote_port;
		read_peer(context, is_ipv6, remote, &remote_port);
		bool has_moved = owner->peers && owner->socket_port != sk->src_port;
		if (has_moved || (owner->peers == 1 && !is_peer(owner, remote, remote_port)))
			end_flow(owner, bpf_get_socket_cookie(context), kernel_socket(owner, sk));
		owner->addressed = 0;
	}
	used(sk);
	return 1;
}

SEC("cgroup/connect4")
int on_connect4(struct bpf_sock_addr *context)
{
	return connects(context, false);
}

SEC("cgroup/connect6")
int on_connect6(struct bpf_sock_addr *context)
{
	return connects(context, true);
}

SEC("cgroup/sendmsg4")
int on_sendmsg4(struct bpf_sock_addr *context)
{
	return used_address(context);
}

SEC("cgroup/sendmsg6")
int on_sendmsg6(struct bpf_sock_addr *context)
{
	return used_address(context);
}

/* The current task has read the first datagram of this flow. */
static __always_inline void report_read(struct owner *owner, const struct flow *flow, __u8 family, __u16 flags)
{
	struct owner reader = {};
	struct socket_event *event = bpf_ringbuf_reserve(&records, sizeof(*event), 0);

	__sync_fetch_and_add(&owner->unread, -1);
	if (!event) {
		count_lost(RECORD_READ);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->kind = RECORD_READ;
	event->protocol = flow->protocol;
	event->family = family;
	event->time = bpf_ktime_get_boot_ns();
	event->cookie = flow->cookie;
	__builtin_memcpy(event->remote, flow->remote, 16);
	event->local_port = flow->local_port;
	event->remote_port = flow->remote_port;
	event->flags = flags;
	take(&reader);
	put_owner(event, &reader);
	bpf_ringbuf_submit(event, wakeup());
}

/* A process has read a datagram of this flow, perhaps the first one. */
static __always_inline void was_read(struct owner *owner, const struct flow *flow, __u8 family)
{
	struct flow_state *state = bpf_map_lookup_elem(&flows, flow);

	if (!state || !state->unread)
		return;
	state->unread = 0;
	report_read(owner, flow, family, 0);
}

static __always_inline __u32 current_thread(void)
{
	return BPF_CORE_READ(current_task(), pid);
}

/* A process that asks for the sender reads a datagram; whether it only peeks at it is known at the end of the call. */
static __always_inline int reads(struct bpf_sock_addr *context, bool is_ipv6)
{
	struct bpf_sock *sk = context->sk;
	struct reading reading = {.family = is_ipv6 ? 6 : 4};
	struct flow *flow = &reading.flow;

	if (!sk || !is_udp(context->protocol))
		return 1;
	struct owner *owner = used(sk);
	if (!owner)
		return 1;
	owner->addressed = 1;
	if (!owner->unread)
		return 1;
	flow->cookie = bpf_get_socket_cookie(context);
	flow->local_port = sk->src_port;
	flow->protocol = context->protocol;
	read_peer(context, is_ipv6, flow->remote, &flow->remote_port);
	struct flow_state *state = bpf_map_lookup_elem(&flows, flow);
	if (!state || !state->unread)
		return 1;
	__u32 thread = current_thread();
	if (!settings.sees_reads || bpf_map_update_elem(&readings, &thread, &reading, BPF_ANY))
		was_read(owner, flow, reading.family);
	return 1;
}

SEC("cgroup/recvmsg4")
int on_recvmsg4(struct bpf_sock_addr *context)
{
	return reads(context, false);
}

SEC("cgroup/recvmsg6")
int on_recvmsg6(struct bpf_sock_addr *context)
{
	return reads(context, true);
}

/* The end of each read (Linux 6.3). A process that does not ask for the sender passes no hook of control groups. Of which
 * flow it has read is not known: of the one that waits longest, if always the same process reads.
 */
SEC("tp_btf/sock_recv_length")
int BPF_PROG(on_received, struct sock *sk, int result, int flags)
{
	struct flow flow = {};
	__u32 thread = current_thread();

	if (!is_udp(sk->sk_protocol))
		return 0;
	struct owner *owner = bpf_sk_storage_get(&owners, sk, 0, 0);
	struct reading *reading = bpf_map_lookup_elem(&readings, &thread);
	if (reading) {
		if (owner && result >= 0 && !(flags & MSG_PEEK) && reading->flow.cookie == bpf_get_socket_cookie(sk))
			was_read(owner, &reading->flow, reading->family);
		bpf_map_delete_elem(&readings, &thread);
		return 0;
	}
	if (!owner || owner->addressed || owner->ignored || result < 0 || flags & MSG_PEEK)
		return 0;
	__u32 pid = current_pid();
	if (!owner->reader)
		owner->reader = pid;
	else if (owner->reader != pid)
		owner->shared = 1;
	if (!owner->unread)
		return 0;
	flow.cookie = bpf_get_socket_cookie(sk);
	flow.protocol = sk->sk_protocol;
	report_read(owner, &flow, 0, SOCKET_ANY_FLOW | (owner->shared ? SOCKET_SHARED : 0));
	return 0;
}

/* The address and port that the socket is bound to. */
static __always_inline void put_bound_end(struct owner *owner, struct sock *sk)
{
	owner->local_port = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	__builtin_memset(owner->local, 0, 16);
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET) {
		owner->family = 4;
		BPF_CORE_READ_INTO((__u32 *)owner->local, sk, __sk_common.skc_rcv_saddr);
	} else {
		owner->family = 6;
		BPF_CORE_READ_INTO((struct in6_addr *)owner->local, sk, __sk_common.skc_v6_rcv_saddr);
	}
}

/* An SCTP socket that was bound to a port waits for peers there. */
static __always_inline void listens(struct sock *sk, struct owner *owner)
{
	__u64 cookie = bpf_get_socket_cookie(sk);

	if (owner->bound || !BPF_CORE_READ((struct inet_sock *)sk, inet_sport))
		return;
	owner->bound = 1;
	owner->protocol = IPPROTO_SCTP;
	put_bound_end(owner, sk);
	if (!owner->ignored)
		report_socket(owner, RECORD_LISTEN, 0, cookie, BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum));
}

/* Who listens at or accepts an SCTP socket, which passes no hook of control groups: both change its state in the
 * process's own context. One that connects has a file already, and its owner since it began to send.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_state, struct sock *sk, int before, int now)
{
	if (sk->sk_protocol != IPPROTO_SCTP)
		return 0;
	if (now != SCTP_LISTENING && (now != SCTP_ESTABLISHED || sk->sk_socket))
		return 0;
	struct owner *owner = bpf_sk_storage_get(&owners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!owner)
		return 0;
	if (!owner->pid) {
		take(owner);
		owner->state = now;
	}
	if (now == SCTP_LISTENING)
		listens(sk, owner);
	return 0;
}

static __always_inline int bound(struct bpf_sock *sk, __u8 family)
{
	if (sk->protocol != IPPROTO_UDP && sk->protocol != IPPROTO_UDPLITE)
		return 1;
	struct owner *owner = used(sk);
	if (!owner)
		return 1;
	if (owner->peers) /* of before it was dissolved, which made it lose its port */
		end_flow(owner, bpf_get_socket_cookie(sk), kernel_socket(owner, sk));
	owner->bound = 1;
	owner->family = family;
	owner->protocol = sk->protocol;
	owner->local_port = sk->src_port;
	__u32 *local = (__u32 *)owner->local;
	if (family == 4) {
		local[0] = sk->src_ip4;
	} else {
		local[0] = sk->src_ip6[0];
		local[1] = sk->src_ip6[1];
		local[2] = sk->src_ip6[2];
		local[3] = sk->src_ip6[3];
	}
	if (!owner->ignored)
		report_socket(owner, RECORD_BOUND, 0, bpf_get_socket_cookie(sk), netns_at(owner, sk));
	return 1;
}

SEC("cgroup/post_bind4")
int on_post_bind4(struct bpf_sock *sk)
{
	return bound(sk, 4);
}

SEC("cgroup/post_bind6")
int on_post_bind6(struct bpf_sock *sk)
{
	return bound(sk, 6);
}

SEC("cgroup/sock_release")
int on_release(struct bpf_sock *sk)
{
	struct owner *owner = bpf_sk_storage_get(&owners, sk, 0, 0);

	if (!owner || owner->ignored || (!owner->bound && !owner->peers))
		return 1;
	if (owner->bound && owner->peers > 1)
		put_bound_end(owner, kernel_socket(owner, sk));
	if (owner->peers == 1)
		report_closed(owner, 0, bpf_get_socket_cookie(sk), kernel_socket(owner, sk));
	else
		report_socket(owner, RECORD_UNLISTEN, 0, bpf_get_socket_cookie(sk), netns_at(owner, sk));
	return 1;
}

/* What user space wants to know of the flows: times in ns. */
struct sweep {
	__u64 now;
	__u64 interval; /* after which a flow that goes on is reported, and again; 0: never */
};

static long sweep_flow(void *map, struct flow *flow, struct flow_state *state, struct sweep *wanted)
{
	__u64 seen = state->seen, since = state->told ?: state->began;

	if (wanted->now > seen && wanted->now - seen > FLOW_IDLE) {
		if (state->counted && !report_flow(flow, state, RECORD_EXPIRED))
			return 1; /* the ring is full: next time */
		bpf_map_delete_elem(map, flow);
	} else if (wanted->interval && state->counted && seen > since && wanted->now > since + wanted->interval) {
		if (!report_flow(flow, state, RECORD_ACTIVE))
			return 1;
		state->told = wanted->now;
	}
	return 0;
}

/* Run by user space from time to time. */
SEC("syscall")
int sweep_flows(struct sweep *context)
{
	struct sweep wanted = *context;

	bpf_for_each_map_elem(&flows, sweep_flow, &wanted, 0);
	return 0;
}
