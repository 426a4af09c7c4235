/* Messages of the Domain Name System that processes of this host exchange with servers, over UDP and TCP.
 *
 * A socket is one of them once a process connects it, or sends, to a server's port: hooks in the process's own context
 * mark it with its owner. All other packets cost a look at their socket.
 */

#include "holder.h"
#include "ip_packet.h"

LAYOUT(dns_event);

#define PORTS 64

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct owner);
} clients SEC(".maps");

/* The servers' ports, in host order. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, PORTS);
} ports SEC(".maps");

/* A record is too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct dns_event);
	__uint(max_entries, 1);
} scratch SEC(".maps");

struct tcp_header {
	__be16 ports[2];
	__be32 sequence;
	__be32 acknowledged;
	__u8 length; /* in the upper half, in words */
	__u8 flags;
};

static __always_inline bool is_server_port(__u32 port)
{
	return bpf_map_lookup_elem(&ports, &port);
}

/* The current task speaks to a server. */
static __always_inline int used(struct bpf_sock_addr *context)
{
	if (!context->sk || !is_server_port(bpf_ntohs(context->user_port)))
		return 1;
	if (context->protocol != IPPROTO_UDP && context->protocol != IPPROTO_TCP)
		return 1;
	struct owner *client = bpf_sk_storage_get(&clients, context->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (client)
		take(client); /* also if it is the same process: another program may run in it since */
	else /* no memory */
		count_lost(RECORD_MESSAGE);
	return 1;
}

SEC("cgroup/connect4")
int on_connect4(struct bpf_sock_addr *context)
{
	return used(context);
}

SEC("cgroup/connect6")
int on_connect6(struct bpf_sock_addr *context)
{
	return used(context);
}

SEC("cgroup/sendmsg4")
int on_sendmsg4(struct bpf_sock_addr *context)
{
	return used(context);
}

SEC("cgroup/sendmsg6")
int on_sendmsg6(struct bpf_sock_addr *context)
{
	return used(context);
}

/* The message in a datagram, or what a segment holds of a stream of messages. */
static __always_inline void report(struct __sk_buff *skb, struct bpf_sock *sk, struct owner *client, bool outbound)
{
	struct packet packet = {};
	__u32 only = 0, at = read_addresses(skb, &packet, outbound), sequence = 0;
	struct dns_event *event = bpf_map_lookup_elem(&scratch, &only);

	if (!at || packet.is_cut || !event)
		return;
	struct tcp_header header = {};
	if (packet.protocol == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, at, &header, sizeof(header)))
			return;
		sequence = bpf_ntohl(header.sequence);
		at += (header.length >> 4) * 4;
	} else if (packet.protocol == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(skb, at, &header.ports, sizeof(header.ports)))
			return;
		at += UDP_HEADER;
	} else {
		return;
	}
	if (skb->len <= at)
		return;
	__u32 length = skb->len - at;
	__u32 captured = length < MESSAGE ? length : MESSAGE;
	__u16 local_port = bpf_ntohs(outbound ? header.ports[0] : header.ports[1]);
	__u16 remote_port = bpf_ntohs(outbound ? header.ports[1] : header.ports[0]);
	if (!is_server_port(remote_port))
		return;
	__builtin_memset(event, 0, offsetof(struct dns_event, message));
	event->socket.kind = RECORD_MESSAGE;
	event->socket.protocol = packet.protocol;
	event->socket.family = packet.family;
	event->socket.time = bpf_ktime_get_boot_ns();
	event->socket.cookie = bpf_get_socket_cookie(skb);
	__builtin_memcpy(event->socket.local, packet.local, 16);
	__builtin_memcpy(event->socket.remote, packet.remote, 16);
	event->socket.local_port = local_port;
	event->socket.remote_port = remote_port;
	event->socket.outbound = outbound;
	put_owner(&event->socket, client);
	event->socket.netns = netns_at(client, sk);
	event->sequence = sequence;
	event->length = length;
	/* 1 to MESSAGE, as it is already: compared, it would be its copy less one whose bounds verifiers before 6.11 know */
	barrier_var(captured);
	captured = ((captured - 1) & (MESSAGE - 1)) + 1;
	if (bpf_skb_load_bytes(skb, at, event->message, captured))
		return;
	if (bpf_ringbuf_output(&records, event, offsetof(struct dns_event, message) + captured, wakeup()))
		count_lost(RECORD_MESSAGE);
}

/* A datagram leaves in its sender's own context. On a connected socket, that may be another process than the one that
 * connected it, or another program in it. */
static __always_inline void note_sender(struct bpf_sock *sk, struct owner *client)
{
	struct file *file = BPF_CORE_READ(kernel_socket(client, sk), sk_socket, file);

	if (file && holds((__u64)file))
		take(client);
}

static __always_inline int passes(struct __sk_buff *skb, bool outbound)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	struct owner *client = bpf_sk_storage_get(&clients, sk, 0, 0);
	if (!client)
		return 1;
	if (outbound && sk->protocol == IPPROTO_UDP)
		note_sender(sk, client);
	if (!client->ignored)
		report(skb, sk, client, outbound);
	return 1;
}

SEC("cgroup_skb/egress")
int on_egress(struct __sk_buff *skb)
{
	return passes(skb, true);
}

SEC("cgroup_skb/ingress")
int on_ingress(struct __sk_buff *skb)
{
	return passes(skb, false);
}
