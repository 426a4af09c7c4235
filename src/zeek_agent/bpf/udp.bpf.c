/* Datagrams: the first one of each flow (a socket and a peer), ports bound, and the end of sockets that had either.
 *
 * UDP and UDP-Lite, SCTP, echo requests of ping and raw sockets, and whatever else raw sockets send. The owner comes
 * from hooks in the process's own context, the addresses from the packet, which has both.
 */

#include "owner.h"

LAYOUT(socket_event);

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define IPPROTO_SCTP 132
#define IPPROTO_UDPLITE 136
#define ICMP_ECHO 8
#define ICMPV6_ECHO 128
#define ICMPV6_REPLY 129
#define SCTP_ESTABLISHED 1
#define SCTP_LISTENING 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define FLOWS 32768
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

/* When each flow was last seen; the oldest give way to new ones. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct flow);
	__type(value, __u64);
	__uint(max_entries, FLOWS);
} flows SEC(".maps");

struct packet {
	__u8 local[16];
	__u8 remote[16];
	__u16 local_port;
	__u16 remote_port;
	__u8 family;
	__u8 protocol;
};

struct ipv4 {
	__u8 version_length;
	__u8 service;
	__be16 length;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__be16 checksum;
	__u8 source[4];
	__u8 destination[4];
};

struct ipv6 {
	__be32 flow;
	__be16 length;
	__u8 protocol;
	__u8 hops;
	__u8 source[16];
	__u8 destination[16];
};

/* Fills in addresses; gives where the transport's header begins, 0 for what is no first fragment. */
static __always_inline __u32 read_addresses(struct __sk_buff *skb, struct packet *packet, bool outbound)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct ipv4 header;
		if (bpf_skb_load_bytes(skb, 0, &header, sizeof(header)) || header.fragment & bpf_htons(0x1fff))
			return 0;
		packet->family = 4;
		packet->protocol = header.protocol;
		__builtin_memcpy(packet->local, outbound ? header.source : header.destination, 4);
		__builtin_memcpy(packet->remote, outbound ? header.destination : header.source, 4);
		return (header.version_length & 15) * 4;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6 header;
		if (bpf_skb_load_bytes(skb, 0, &header, sizeof(header)))
			return 0;
		packet->family = 6;
		packet->protocol = header.protocol;
		__builtin_memcpy(packet->local, outbound ? header.source : header.destination, 16);
		__builtin_memcpy(packet->remote, outbound ? header.destination : header.source, 16);
		return sizeof(header);
	}
	return 0;
}

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

/* Whether this socket's packets are ours to report: TCP has its own object, raw sockets also get what others receive. */
static __always_inline bool is_ours(struct bpf_sock *sk, bool outbound)
{
	if (sk->type == SOCK_RAW)
		return outbound;
	if (sk->protocol == IPPROTO_SCTP) /* of one that listens for connections, the accepted sockets tell */
		return sk->type != SOCK_STREAM || sk->state != SCTP_LISTENING;
	return sk->type == SOCK_DGRAM;
}

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

/* The owner, who is the current task when a socket sends that nobody was seen to use. The kernel's own sockets, which
 * send resets and tunnels' packets in anybody's context, are in no file; they are left out.
 */
static __always_inline struct owner *owner_of(struct bpf_sock *sk, bool outbound)
{
	struct owner *owner = bpf_sk_storage_get(&owners, sk, 0, 0);

	if (owner)
		return owner;
	owner = bpf_sk_storage_get(&owners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!owner)
		return NULL;
	if (!BPF_CORE_READ(kernel_socket(owner, sk), sk_socket, file))
		owner->ignored = 1;
	else if (outbound)
		take(owner);
	return owner;
}

static __always_inline void remember(struct owner *owner, const struct packet *packet, bool outbound)
{
	if (owner->peers == 0) {
		__builtin_memcpy(owner->local, packet->local, 16);
		__builtin_memcpy(owner->remote, packet->remote, 16);
		owner->local_port = packet->local_port;
		owner->remote_port = packet->remote_port;
		owner->family = packet->family;
		owner->protocol = packet->protocol;
		owner->outbound = outbound;
	}
	if (owner->peers < 2)
		owner->peers++;
}

static __always_inline void report_packet(struct bpf_sock *sk, struct owner *owner, const struct packet *packet,
					  __u64 cookie, bool outbound)
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
	put_owner(event, owner);
	event->netns = netns_at(owner, sk);
	bpf_ringbuf_submit(event, wakeup());
}

static __always_inline bool is_new(const struct flow *flow)
{
	__u64 now = bpf_ktime_get_boot_ns();
	__u64 *seen = bpf_map_lookup_elem(&flows, flow);

	if (!seen) {
		bpf_map_update_elem(&flows, flow, &now, BPF_ANY);
		return true;
	}
	bool idle = now - *seen > FLOW_IDLE;
	*seen = now;
	return idle;
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
	if (!transport || !read_ports(skb, &packet, transport, outbound))
		return 1;
	if (settings.ignore_loopback && is_loopback(packet.family, packet.local, packet.remote))
		return 1;
	flow.cookie = bpf_get_socket_cookie(skb);
	__builtin_memcpy(flow.remote, packet.remote, 16);
	flow.remote_port = packet.remote_port;
	flow.local_port = packet.local_port;
	flow.protocol = packet.protocol;
	if (!is_new(&flow))
		return 1;
	struct owner *owner = owner_of(sk, outbound);
	if (!owner || owner->ignored)
		return 1;
	if (owner->state == SCTP_ESTABLISHED) /* accepted, whoever sends first */
		outbound = false;
	remember(owner, &packet, outbound);
	report_packet(sk, owner, &packet, flow.cookie, outbound);
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

	if (owner && owner->pid != BPF_CORE_READ(current_task(), tgid))
		take(owner);
	return owner;
}

static __always_inline int used_address(struct bpf_sock_addr *context)
{
	if (context->protocol != IPPROTO_TCP && context->sk)
		used(context->sk);
	return 1;
}

#define ON_ADDRESS(hook)                                                                                               \
	SEC("cgroup/" #hook)                                                                                           \
	int on_##hook(struct bpf_sock_addr *context)                                                                   \
	{                                                                                                              \
		return used_address(context);                                                                          \
	}

ON_ADDRESS(connect4)
ON_ADDRESS(connect6)
ON_ADDRESS(sendmsg4)
ON_ADDRESS(sendmsg6)
ON_ADDRESS(recvmsg4)
ON_ADDRESS(recvmsg6)

static __always_inline void report_socket(const struct owner *owner, __u16 kind, __u64 cookie, __u32 netns)
{
	struct socket_event *event = bpf_ringbuf_reserve(&records, sizeof(*event), 0);

	if (!event) {
		count_lost(kind);
		return;
	}
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
	put_owner(event, owner);
	event->netns = netns;
	bpf_ringbuf_submit(event, wakeup());
}

/* An SCTP socket that was bound to a port waits for peers there. */
static __always_inline void listens(struct sock *sk, struct owner *owner)
{
	__u64 cookie = bpf_get_socket_cookie(sk);

	owner->local_port = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	if (!owner->local_port || owner->bound)
		return;
	owner->bound = 1;
	owner->protocol = IPPROTO_SCTP;
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET) {
		owner->family = 4;
		BPF_CORE_READ_INTO((__u32 *)owner->local, sk, __sk_common.skc_rcv_saddr);
	} else {
		owner->family = 6;
		BPF_CORE_READ_INTO((struct in6_addr *)owner->local, sk, __sk_common.skc_v6_rcv_saddr);
	}
	if (!owner->ignored)
		report_socket(owner, RECORD_LISTEN, cookie, BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum));
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
		report_socket(owner, RECORD_BOUND, bpf_get_socket_cookie(sk), netns_at(owner, sk));
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

	if (owner && !owner->ignored && (owner->bound || owner->peers))
		report_socket(owner, owner->peers == 1 ? RECORD_CLOSED : RECORD_UNLISTEN, bpf_get_socket_cookie(sk),
			      netns_at(owner, sk));
	return 1;
}
