/* What every object needs: the ring, the loss counters, and who is acting. */
#pragma once

#include "kernel.h"
#include "records.h"

/* Puts a record's layout into the object's BTF, where the test of the decoders looks for it. */
#define LAYOUT(record) struct record *layout_of_##record

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} records SEC(".maps");

struct counters {
	__u64 by_kind[KINDS];
};

/* Records that found the ring full. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counters);
	__uint(max_entries, 1);
} lost SEC(".maps");

static __always_inline void count_lost(__u32 kind)
{
	__u32 only = 0;
	struct counters *counters = bpf_map_lookup_elem(&lost, &only);
	if (counters && kind < KINDS) /* hooks may be preempted by others on the same CPU */
		__sync_fetch_and_add(&counters->by_kind[kind], 1);
}

/* The reader comes by on a timer, so a record wakes it only when the ring is filling up. */
static __always_inline __u64 wakeup(void)
{
	__u64 waiting = bpf_ringbuf_query(&records, BPF_RB_AVAIL_DATA);
	__u64 size = bpf_ringbuf_query(&records, BPF_RB_RING_SIZE);
	return waiting > size / 4 ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
}
