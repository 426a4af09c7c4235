/* Packet sockets (packet(7)): who opens one can see and send whole packets.
 *
 * Its bind and its end pass no tracepoint and no hook of control groups, so only its opening is told.
 */

#include "owner.h"
#include "syscall.h"

LAYOUT(socket_event);

SEC("tracepoint/syscalls/sys_exit_socket")
int on_socket(struct syscall_exit *context)
{
	struct owner owner = {};
	struct sock *sk = socket_at(context->result);

	if (BPF_CORE_READ(sk, __sk_common.skc_family) != AF_PACKET)
		return 0;
	take(&owner);
	if (owner.ignored)
		return 0;
	struct socket_event *event = bpf_ringbuf_reserve(&records, sizeof(*event), 0);
	if (!event) {
		count_lost(RECORD_PACKET);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event)); /* the kernel gives a socket its cookie when one is asked for */
	event->kind = RECORD_PACKET;
	event->time = bpf_ktime_get_boot_ns();
	event->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	put_owner(event, &owner);
	bpf_ringbuf_submit(event, wakeup());
	return 0;
}
