/* Snapshots in one pass through the kernel's lists: all tasks, and who has which socket open. */

#include "records.h"
#include "task.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define CPUS 1024

const volatile struct {
	__u32 page_size;
	__u32 cpus;
} settings;

/* Where each CPU's own variables begin; not there on a kernel for one CPU. */
extern const void __per_cpu_offset __ksym __weak;

struct task_record *layout_of_task_record;
struct holder_record *layout_of_holder_record;

static __always_inline __s64 handed_in_later(__s32 *counters)
{
	__s64 sum = 0;

	for (__u32 cpu = 0; cpu < CPUS && cpu < settings.cpus; cpu++) {
		unsigned long base = 0;
		__s32 value = 0;
		bpf_probe_read_kernel(&base, sizeof(base), (const unsigned long *)&__per_cpu_offset + cpu);
		bpf_probe_read_kernel(&value, sizeof(value), (void *)counters + base);
		sum += value;
	}
	return sum;
}

/* Pages in memory, exactly. */
static __always_inline __u64 resident_exactly(struct mm_struct *mm)
{
	__s64 pages = resident(mm);

	if (counts_together(mm) || !&__per_cpu_offset)
		return pages;
	struct mm_struct___since_6_2 *new = (void *)mm;
	pages += handed_in_later(BPF_CORE_READ(new, rss_stat[0].counters));
	pages += handed_in_later(BPF_CORE_READ(new, rss_stat[1].counters));
	pages += handed_in_later(BPF_CORE_READ(new, rss_stat[3].counters));
	return pages > 0 ? pages : 0;
}

/* Components from the leaf to the root, each with its NUL; then a NUL and the flags. */
static __always_inline void write_end(struct seq_file *seq, __u8 flags)
{
	__u8 end[2] = {0, flags};
	bpf_seq_write(seq, end, sizeof(end));
}

static __always_inline bool write_name(struct seq_file *seq, const void *name)
{
	char component[COMPONENT];
	long length = bpf_probe_read_kernel_str(component, sizeof(component), name);

	if (length <= 1 || length > COMPONENT)
		return false;
	bpf_seq_write(seq, component, length);
	return true;
}

static __always_inline int write_path(struct seq_file *seq, struct vfsmount *vfsmount, struct dentry *dentry)
{
	struct mount *mount = container_of(vfsmount, struct mount, mnt);
	__u8 deleted = 0;

	if (!dentry) {
		write_end(seq, EXEC_EXE_CUT);
		return 0;
	}
	if (BPF_CORE_READ(dentry, d_parent) != dentry && !BPF_CORE_READ(dentry, d_hash.pprev))
		deleted = EXEC_EXE_DELETED;
	for (int depth = 0; depth < DEPTH; depth++) {
		if (dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
			struct mount *above = BPF_CORE_READ(mount, mnt_parent);
			if (above == mount) {
				write_end(seq, deleted);
				return 0;
			}
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = above;
			continue;
		}
		if (!write_name(seq, BPF_CORE_READ(dentry, d_name.name)))
			break;
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);
		if (parent == dentry) {
			write_end(seq, EXEC_EXE_DETACHED);
			return 0;
		}
		dentry = parent;
	}
	write_end(seq, EXEC_EXE_CUT);
	return 0;
}

static __noinline int write_control_group(struct seq_file *seq, struct task_struct *task)
{
	struct kernfs_node *node = control_group(task);

	for (int depth = 0; depth < DEPTH; depth++) {
		struct kernfs_node *parent = parent_of(node);
		if (!parent) {
			write_end(seq, 0);
			return 0;
		}
		if (!write_name(seq, BPF_CORE_READ(node, name)))
			break;
		node = parent;
	}
	write_end(seq, EXEC_EXE_CUT);
	return 0;
}

/* As /proc/PID/stat encodes a device; 0 without a terminal. */
static __always_inline __u32 terminal(struct signal_struct *signal)
{
	struct tty_struct *tty = signal->tty;

	if (!tty)
		return 0;
	__u32 minor = tty->driver->minor_start + tty->index;
	return (minor & 0xff) | tty->driver->major << 8 | (minor & ~0xff) << 12;
}

/* Of one task, or of those that are gone; without CONFIG_TASK_IO_ACCOUNTING the structure is empty. */
static __always_inline void add_disk_bytes(struct task_record *record, const struct task_io_accounting *counted)
{
	record->disk_read += counted->read_bytes;
	record->disk_written += counted->write_bytes - counted->cancelled_write_bytes;
}

/* Whether paths follow. Functions of their own, because one has not enough stack for the record and a path. */
static __noinline bool write_record(struct seq_file *seq, struct task_struct *task)
{
	struct task_record record = {};
	struct task_struct *leader = task->group_leader;
	struct mm_struct *mm = task->mm;
	bool is_process = task->pid == task->tgid;
	struct signal_struct *signal = task->signal;
	record.pid = task->pid;
	record.tgid = task->tgid;
	record.utime = task->utime;
	record.stime = task->stime;
	record.runtime = task->se.sum_exec_runtime;
	if (bpf_core_field_exists(task->ioac.read_bytes)) {
		add_disk_bytes(&record, &task->ioac);
		if (is_process)
			add_disk_bytes(&record, &signal->ioac);
	} else {
		record.disk_read = record.disk_written = UNCOUNTED;
	}
	record.describes = !is_process && mm && !leader->mm;
	if (!is_process && !record.describes) {
		bpf_seq_write(seq, &record, sizeof(record));
		return false;
	}
	const struct cred *cred = task->cred;
	struct file *exe = BPF_CORE_READ(mm, exe_file);
	struct inode *inode = BPF_CORE_READ(exe, f_inode);
	if (is_process) {
		record.utime += signal->utime;
		record.stime += signal->stime;
		record.runtime += signal->sum_sched_runtime;
		record.told_utime = signal->prev_cputime.utime;
		record.told_stime = signal->prev_cputime.stime;
	}
	record.started = leader->start_boottime;
	record.parent = leader->real_parent->tgid;
	record.group = BPF_CORE_READ(signal, pids[PIDTYPE_PGID], numbers[0].nr);
	record.uid = cred->euid.val;
	record.gid = cred->egid.val;
	record.ruid = cred->uid.val;
	record.rgid = cred->gid.val;
	record.suid = cred->suid.val;
	record.sgid = cred->sgid.val;
	record.loginuid = -1;
	record.session = -1;
	if (bpf_core_field_exists(task->loginuid)) {
		record.loginuid = task->loginuid.val;
		record.session = task->sessionid;
	}
	record.netns = netns_of(task);
	record.terminal = terminal(signal);
	record.threads = signal->nr_threads;
	record.priority = task->prio - 100;
	record.nice = task->static_prio - 120;
	record.state = task->exit_state ? task->exit_state : task->__state;
	record.kernel = !!(task->flags & PF_KTHREAD);
	if (mm) {
		record.vsize = (__u64)mm->total_vm * settings.page_size;
		record.rsize = resident_exactly(mm) * settings.page_size;
	}
	record.exe_inode = BPF_CORE_READ(inode, i_ino);
	record.exe_device = BPF_CORE_READ(inode, i_sb, s_dev);
	record.exe_mntns = mntns_of(exe);
	bpf_probe_read_kernel(record.name, COMM, leader->comm);
	bpf_seq_write(seq, &record, sizeof(record));
	return true;
}

static __noinline int write_paths(struct seq_file *seq, struct task_struct *task)
{
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);

	write_path(seq, BPF_CORE_READ(exe, f_path.mnt), BPF_CORE_READ(exe, f_path.dentry));
	write_path(seq, BPF_CORE_READ(task, fs, pwd.mnt), BPF_CORE_READ(task, fs, pwd.dentry));
	write_path(seq, BPF_CORE_READ(task, fs, root.mnt), BPF_CORE_READ(task, fs, root.dentry));
	return 0;
}

SEC("iter/task")
int tasks(struct bpf_iter__task *context)
{
	struct task_struct *task = context->task;
	struct seq_file *seq = context->meta->seq;

	if (task && write_record(seq, task)) {
		write_paths(seq, task);
		write_control_group(seq, task);
	}
	return 0;
}

SEC("iter/task_file")
int socket_holders(struct bpf_iter__task_file *context)
{
	struct task_struct *task = context->task;
	struct file *file = context->file;
	struct holder_record record = {};

	if (!task || !file || !bpf_sock_from_file(file))
		return 0;
	record.pid = task->tgid;
	record.descriptor = context->fd;
	record.inode = file->f_inode->i_ino;
	bpf_seq_write(context->meta->seq, &record, sizeof(record));
	return 0;
}
