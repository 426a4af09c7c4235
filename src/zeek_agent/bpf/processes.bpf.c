/* Processes: fork, exec and exit, each with what is known of the process at that moment. */

#include "common.h"
#include "task.h"

#define SMALL 256
#define MEDIUM 1024

#define PAGE_SIZE settings.page_size

const volatile struct {
	__u32 page_size;
} settings;

LAYOUT(exec_event);
LAYOUT(fork_event);
LAYOUT(exit_event);

struct small_exec {
	struct exec_event event;
	char arguments[SMALL];
};

struct medium_exec {
	struct exec_event event;
	char arguments[MEDIUM];
};

struct large_exec {
	struct exec_event event;
	char arguments[ARGUMENTS];
};

static __always_inline void describe(struct process_event *event, struct task_struct *task, __u16 kind)
{
	struct task_struct *leader = task->group_leader;
	struct task_struct *parent = leader->real_parent->group_leader;
	const struct cred *cred = task->cred;

	event->kind = kind;
	event->flags = 0;
	event->pid = task->tgid;
	event->time = bpf_ktime_get_boot_ns();
	event->started = leader->start_boottime;
	event->parent = parent->tgid;
	event->parent_started = parent->start_boottime;
	event->uid = cred->euid.val;
	event->gid = cred->egid.val;
	event->ruid = cred->uid.val;
	event->rgid = cred->gid.val;
	event->loginuid = -1;
	event->session = -1;
	if (bpf_core_field_exists(task->loginuid)) {
		event->loginuid = task->loginuid.val;
		event->session = task->sessionid;
	}
	event->netns = netns_of(task);
	event->priority = task->prio - 100; /* as /proc/PID/stat shows it */
	event->reserved = 0;
	bpf_probe_read_kernel(event->name, COMM, leader->comm);
}

/* Puts one component behind those that are there. The cursor lives in the record: in a register, the verifier would
 * follow each value that it can have. */
static __always_inline bool put(struct exec_event *event, const void *name)
{
	__u32 at = *(volatile __u16 *)&event->filename_end;

	if (at >= PATHS)
		return false;
	barrier_var(at);
	long length = bpf_probe_read_kernel_str(event->paths + (at & (PATHS - 1)), COMPONENT, name);
	if (length <= 0)
		return false;
	*(volatile __u16 *)&event->filename_end = at + length;
	return true;
}

/* Walks from a file to the root of its mount tree; gives the flags as for the executable. */
static __always_inline __u16 put_path(struct exec_event *event, struct vfsmount *vfsmount, struct dentry *dentry)
{
	struct mount *mount = container_of(vfsmount, struct mount, mnt);
	__u16 deleted = 0;

	if (!dentry)
		return EXEC_EXE_CUT;
	if (BPF_CORE_READ(dentry, d_parent) != dentry && !BPF_CORE_READ(dentry, d_hash.pprev))
		deleted = EXEC_EXE_DELETED;
#pragma clang loop unroll(disable)
	for (int depth = 0; depth < DEPTH; depth++) {
		if (dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
			struct mount *above = BPF_CORE_READ(mount, mnt_parent);
			if (above == mount)
				return deleted;
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = above;
			continue;
		}
		if (!put(event, BPF_CORE_READ(dentry, d_name.name)))
			break;
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);
		if (parent == dentry)
			return EXEC_EXE_DETACHED;
		dentry = parent;
	}
	return deleted | EXEC_EXE_CUT;
}

static __always_inline __u16 put_control_group(struct exec_event *event, struct task_struct *task)
{
	struct kernfs_node *node = control_group(task);

#pragma clang loop unroll(disable)
	for (int depth = 0; depth < DEPTH; depth++) {
		struct kernfs_node *parent = parent_of(node);
		if (!parent)
			return 0;
		if (!put(event, BPF_CORE_READ(node, name)))
			break;
		node = parent;
	}
	return EXEC_CGROUP_CUT;
}

static __always_inline void fill(struct exec_event *event, struct task_struct *task, struct linux_binprm *bprm)
{
	struct mm_struct *mm = task->mm;
	struct file *exe = mm->exe_file;
	__u16 flags, cwd;

	describe(&event->process, task, RECORD_EXEC);
	event->vsize = (__u64)mm->total_vm * PAGE_SIZE;
	event->inode = exe->f_inode->i_ino;
	event->device = exe->f_inode->i_sb->s_dev;
	event->exe_mntns = mntns_of(exe);
	event->reserved = 0;
	event->filename_end = 0;
	flags = put_path(event, BPF_CORE_READ(exe, f_path.mnt), BPF_CORE_READ(exe, f_path.dentry));
	event->exe_end = event->filename_end;
	cwd = put_path(event, BPF_CORE_READ(task, fs, pwd.mnt), BPF_CORE_READ(task, fs, pwd.dentry));
	event->cwd_end = event->filename_end;
	flags |= cwd << CWD_FLAGS_SHIFT;
	flags |= put_control_group(event, task);
	event->cgroup_end = event->filename_end;
	put(event, bprm->filename);
	event->process.flags = flags;
}

static __always_inline void put_arguments(struct exec_event *event, char *to, __u64 room, struct mm_struct *mm)
{
	unsigned long start = mm->arg_start;
	__u64 size = mm->arg_end - start;

	event->arguments_total = size;
	if (size > room)
		size = room;
	barrier_var(size);
	if (size > room)
		return;
	event->arguments = size;
	if (bpf_probe_read_user(to, size, (const void *)start)) {
		event->arguments = 0;
		event->process.flags |= EXEC_ARGUMENTS_UNREADABLE;
	}
}

#define SUBMIT_EXEC(type, room)                                                                                        \
	do {                                                                                                           \
		struct type *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);                               \
		if (!record) {                                                                                         \
			count_lost(RECORD_EXEC);                                                                       \
			return 0;                                                                                      \
		}                                                                                                      \
		fill(&record->event, task, bprm);                                                                      \
		put_arguments(&record->event, record->arguments, room, task->mm);                                      \
		bpf_ringbuf_submit(record, wakeup());                                                                  \
		return 0;                                                                                              \
	} while (0)

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, pid_t old_pid, struct linux_binprm *bprm)
{
	__u64 size = task->mm->arg_end - task->mm->arg_start;

	if (size <= SMALL)
		SUBMIT_EXEC(small_exec, SMALL);
	if (size <= MEDIUM)
		SUBMIT_EXEC(medium_exec, MEDIUM);
	SUBMIT_EXEC(large_exec, ARGUMENTS);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *origin, struct task_struct *child)
{
	if (child->pid != child->tgid)
		return 0;
	struct fork_event *event = bpf_ringbuf_reserve(&records, sizeof(*event), 0);
	if (!event) {
		count_lost(RECORD_FORK);
		return 0;
	}
	describe(&event->process, child, RECORD_FORK);
	event->origin = origin->tgid;
	event->origin_started = origin->group_leader->start_boottime;
	event->reserved = 0;
	bpf_ringbuf_submit(event, wakeup());
	return 0;
}

/* Threads that end together can each see themselves as the last: the reader takes the first record of a process. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;
	struct task_struct *leader = task->group_leader;
	__u64 utime, stime, runtime;

	if (signal->live.counter)
		return 0;
	struct exit_event *event = bpf_ringbuf_reserve(&records, sizeof(*event), 0);
	if (!event) {
		count_lost(RECORD_EXIT);
		return 0;
	}
	describe(&event->process, task, RECORD_EXIT);
	utime = signal->utime + task->utime;
	stime = signal->stime + task->stime;
	runtime = signal->sum_sched_runtime + task->se.sum_exec_runtime;
	if (leader->pid != task->pid) {
		utime += leader->utime;
		stime += leader->stime;
		runtime += leader->se.sum_exec_runtime;
	}
	event->utime = utime;
	event->stime = stime;
	event->runtime = runtime;
	event->vsize = 0;
	if (bpf_core_field_exists(signal->pacct))
		event->vsize = (__u64)signal->pacct.ac_mem * 1024;
	event->rsize = resident(task->mm) * PAGE_SIZE; /* gone already before 6.16 */
	event->status = signal->flags & SIGNAL_GROUP_EXIT ? signal->group_exit_code : leader->exit_code;
	event->reserved = 0;
	bpf_ringbuf_submit(event, wakeup());
	return 0;
}
