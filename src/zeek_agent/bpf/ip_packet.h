/* The headers of IP packets at hooks of control groups, where a packet begins with them. */
#pragma once

#include "kernel.h"

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define IPPROTO_HOPOPTS 0
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_AH 51
#define IPPROTO_DSTOPTS 60
#define IPPROTO_MH 135
#define IPPROTO_HIP 139
#define IPPROTO_SHIM6 140
#define EXTENSION_HEADERS 16 /* that are walked at most */
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define UDP_HEADER 8

struct packet {
	__u8 local[16];
	__u8 remote[16];
	__u16 local_port;
	__u16 remote_port;
	__u8 family;
	__u8 protocol;
	__u8 is_cut; /* the transport's header was not found */
	__u32 payload; /* bytes behind the header of UDP or ICMP, or of IP */
	__u32 count;   /* packets that this is sent as or was made of (GSO, GRO) */
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

struct extension {
	__u8 next;
	__u8 length;
	__be16 fragment; /* of a fragment's header */
};

static __always_inline bool is_extension(__u32 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_FRAGMENT ||
	       protocol == IPPROTO_AH || protocol == IPPROTO_DSTOPTS || protocol == IPPROTO_MH ||
	       protocol == IPPROTO_HIP || protocol == IPPROTO_SHIM6;
}

/* Walks IPv6's extension headers (RFC 8200) from the first one's protocol. Returns the protocol behind them, and in the
 * upper bits the offset of its header, which is 0 unless this is the first fragment. A function of its own, so that the verifier
 * checks it once.
 */
__noinline __u32 skip_extensions(struct __sk_buff *skb, __u32 protocol)
{
	__u32 at = sizeof(struct ipv6);

	for (int i = 0; i < EXTENSION_HEADERS && is_extension(protocol); i++) {
		struct extension extension;
		if (bpf_skb_load_bytes(skb, at, &extension, sizeof(extension)))
			return 0;
		if (protocol == IPPROTO_FRAGMENT) {
			if (extension.fragment & bpf_htons(0xfff8))
				return 0;
			at += 8;
		} else if (protocol == IPPROTO_AH) {
			at += (extension.length + 2) * 4;
		} else {
			at += (extension.length + 1) * 8;
		}
		protocol = extension.next;
	}
	return at << 8 | (protocol & 0xff);
}

/* Fills in addresses; returns the offset of the transport header, 0 unless this is the first fragment. */
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
		if (!is_extension(header.protocol))
			return sizeof(header);
		__u32 found = skip_extensions(skb, header.protocol);
		packet->protocol = found;
		packet->is_cut = is_extension(packet->protocol);
		return found >> 8;
	}
	return 0;
}
