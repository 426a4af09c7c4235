/* What travels from the kernel to the agent. records.py reads the same layouts; a test compares both with the BTF. */
#pragma once

#include <linux/types.h>

#define COMM 16
#define PATHS 1024     /* all path components of an exec together */
#define COMPONENT 256  /* one component, with its NUL */
#define ARGUMENTS 4096 /* of a command line */
#define MESSAGE 4096   /* of a DNS message or segment */

#define KINDS 20

enum record_kind {
	RECORD_EXEC = 1,
	RECORD_FORK = 2,
	RECORD_EXIT = 3,
	RECORD_CONNECTED = 4,
	RECORD_FAILED = 5,
	RECORD_PASSIVE = 6,  /* a connection came in; who accepts it is not known yet */
	RECORD_ACCEPTED = 7, /* by this process */
	RECORD_LISTEN = 8,
	RECORD_CLOSED = 9,
	RECORD_BOUND = 10,
	RECORD_SENT = 11,     /* first datagram of a flow, by us */
	RECORD_RECEIVED = 12, /* first datagram of a flow, by the other side */
	RECORD_UNLISTEN = 13,
	RECORD_PACKET = 14, /* a packet socket was opened */
	RECORD_READ = 15,   /* this process read the first datagram of a flow that the other side began */
	RECORD_EXPIRED = 16, /* no datagram of this flow for FLOW_IDLE */
	RECORD_ACTIVE = 17,  /* what a flow has carried so far */
	RECORD_MESSAGE = 18, /* of DNS, or a part of a stream of messages */
};

enum socket_flags {
	SOCKET_OWNED = 1 << 0,      /* PASSIVE: the owner has accepted the MPTCP connection above already */
	SOCKET_UNREAD = 1 << 1,     /* RECEIVED: a READ will follow when a process reads the datagram */
	SOCKET_ANY_FLOW = 1 << 2,   /* READ: of the longest waiting flow, because the reader did not ask for the sender */
	SOCKET_SHARED = 1 << 3,     /* READ: and several processes read this socket like that */
	SOCKET_FLOW_ENDED = 1 << 4, /* CLOSED, UNLISTEN: the flow ended, the socket is still open */
	SOCKET_CUT = 1 << 5,        /* SENT, RECEIVED: too many extension headers to find protocol and ports */
	SOCKET_COUNTED = 1 << 6,    /* CLOSED, EXPIRED, ACTIVE: what the flow carried is known */
	SOCKET_SENT_ONLY = 1 << 7,  /* and of it only what the socket sent */
};

enum exec_flags {
	EXEC_EXE_CUT = 1 << 0,
	EXEC_EXE_DELETED = 1 << 1,
	EXEC_EXE_DETACHED = 1 << 2, /* not in any mounted file system: memfd */
	EXEC_CWD_CUT = 1 << 3,
	EXEC_CWD_DELETED = 1 << 4,
	EXEC_CWD_DETACHED = 1 << 5,
	EXEC_CGROUP_CUT = 1 << 6,
	EXEC_ARGUMENTS_UNREADABLE = 1 << 7,
};

#define CWD_FLAGS_SHIFT 3

/* Times are CLOCK_BOOTTIME in ns; ids are those of the initial namespaces. */
struct process_event {
	__u16 kind;
	__u16 flags;
	__u32 pid;
	__u64 time;
	__u64 started;
	__u64 parent_started;
	__u32 parent;
	__u32 uid;
	__u32 gid;
	__u32 ruid;
	__u32 rgid;
	__u32 loginuid;
	__u32 session;
	__u32 netns;
	__s32 priority;
	char name[COMM];
	__u32 reserved;
};

struct fork_event {
	struct process_event process;
	__u64 origin_started; /* who called fork: not the parent with CLONE_PARENT */
	__u32 origin;
	__u32 reserved;
};

struct exit_event {
	struct process_event process;
	__u64 utime; /* ns */
	__u64 stime;
	__u64 runtime;
	__u64 vsize; /* bytes */
	__u64 rsize;
	__u32 status; /* as wait(2) has it */
	__u32 reserved;
};

/* Path components stand from the leaf to the root, each with its NUL. The arguments follow behind the struct. */
struct exec_event {
	struct process_event process;
	__u64 vsize; /* bytes */
	__u64 inode;
	__u32 device;
	__u32 arguments_total; /* bytes the process has; the record may hold fewer */
	__u16 arguments;       /* bytes behind the struct */
	__u16 exe_end;         /* offsets into paths */
	__u16 cwd_end;
	__u16 cgroup_end;
	__u16 filename_end;
	__u16 reserved;
	__u32 exe_mntns;
	char paths[PATHS + COMPONENT];
};

/* `started` is the owner's; `acted` is when it became the owner (connected, accepted, bound). Ports in host order.
 * `socket` is the kernel's address of the socket that a process has open: of the MPTCP socket above a subflow, else of
 * the TCP socket itself. For datagrams it is the inode of that socket.
 */
struct socket_event {
	__u16 kind;
	__u8 protocol;
	__u8 family; /* 4 or 6; 0 without addresses */
	__u32 pid;
	__u64 time;
	__u64 started;
	__u64 acted;
	__u64 cookie;
	__u64 socket;
	__u32 uid;
	__u32 gid;
	__u32 netns;
	__s32 error;
	__u8 local[16]; /* IPv4 in the first four */
	__u8 remote[16];
	__u16 local_port;
	__u16 remote_port;
	__u32 token; /* of the MPTCP connection that a subflow belongs to */
	__u16 outbound;
	__u16 flags;
	char name[COMM];
};

/* CLOSED, EXPIRED and ACTIVE: what a flow has carried since it began: bytes of payload, without what was sent again, and
 * packets. `drops` counts datagrams that found the socket's receive buffer full, of all its flows.
 */
struct flow_event {
	struct socket_event socket;
	__u64 began; /* 0: not known, because it was open before recording */
	__u64 bytes_sent;
	__u64 bytes_received;
	__u64 packets_sent;
	__u64 packets_received;
	__u64 drops;
};

/* What a datagram or segment holds of DNS messages: `length` bytes, of which the record has the first ones. */
struct dns_event {
	struct socket_event socket;
	__u32 sequence; /* of the segment's first byte */
	__u32 length;
	__u8 message[MESSAGE];
};

#define UNCOUNTED -1

/* One task. Of a thread that is not a process only the first seven fields count, unless it describes its process, whose
 * main thread has ended. Behind the record of a process, or of such a thread, stand its executable, its working and root
 * directories and its control group: components as in exec_event, then a NUL and a byte of flags. */
struct task_record {
	__u32 pid;
	__u32 tgid;
	__u64 utime; /* ns */
	__u64 stime;
	__u64 runtime;
	__s64 disk_read; /* bytes; UNCOUNTED if this kernel does not count them */
	__s64 disk_written; /* without what was thrown away before it was written */
	__u64 told_utime; /* by /proc or wait(2), to somebody before */
	__u64 told_stime;
	__u64 started;
	__u64 vsize; /* bytes */
	__u64 rsize;
	__u32 parent;
	__u32 group; /* process group */
	__u32 uid;
	__u32 gid;
	__u32 ruid;
	__u32 rgid;
	__u32 suid;
	__u32 sgid;
	__u32 loginuid;
	__u32 session;
	__u32 netns;
	__u32 terminal;
	__u32 threads;
	__s32 priority;
	__s32 nice;
	__u32 state;
	__u32 kernel; /* a kernel thread */
	char name[COMM];
	__u32 describes; /* a thread that describes its process */
	__u64 exe_inode;
	__u32 exe_device;
	__u32 exe_mntns;
};

/* A socket that a process has open. */
struct holder_record {
	__u32 pid;
	__u32 descriptor;
	__u64 inode;
};
