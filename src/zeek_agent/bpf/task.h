/* What is read of a task by more than one object. */
#pragma once

#include "kernel.h"

#define DEPTH 40 /* components and mount points of one path */

static __always_inline __u32 netns_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
}

/* The mount namespace in which the file has its path: that of the mount through which it was opened, which need not be
 * the task's. 0 for a file that is not in a namespace: memfd, or unmounted since. */
static __always_inline __u32 mntns_of(struct file *file)
{
	struct mount *mount = container_of(BPF_CORE_READ(file, f_path.mnt), struct mount, mnt);
	return BPF_CORE_READ(mount, mnt_ns, ns.inum);
}

/* Not by bpf_core_type_exists(): libbpf 1.1 looks for a type that the kernel lacks in modules, for CAP_SYS_ADMIN only. */
static __always_inline bool counts_together(struct mm_struct *mm)
{
	return bpf_core_field_exists(((struct mm_struct___before_6_2 *)mm)->rss_stat.count);
}

/* Pages in memory, as exact as the kernel's own quick sum: since 6.2, less what each CPU has not handed in yet. */
static __always_inline __u64 resident(struct mm_struct *mm)
{
	__s64 file = 0, anonymous = 0, shared = 0;

	if (counts_together(mm)) {
		struct mm_struct___before_6_2 *old = (void *)mm;
		bpf_core_read(&file, sizeof(file), &old->rss_stat.count[0].counter);
		bpf_core_read(&anonymous, sizeof(anonymous), &old->rss_stat.count[1].counter);
		bpf_core_read(&shared, sizeof(shared), &old->rss_stat.count[3].counter);
	} else {
		struct mm_struct___since_6_2 *new = (void *)mm;
		bpf_core_read(&file, sizeof(file), &new->rss_stat[0].count);
		bpf_core_read(&anonymous, sizeof(anonymous), &new->rss_stat[1].count);
		bpf_core_read(&shared, sizeof(shared), &new->rss_stat[3].count);
	}
	file += anonymous + shared;
	return file > 0 ? file : 0;
}

static __always_inline struct kernfs_node *parent_of(struct kernfs_node *node)
{
	if (bpf_core_field_exists(node->__parent))
		return BPF_CORE_READ(node, __parent);
	return BPF_CORE_READ((struct kernfs_node___before_6_15 *)node, parent);
}

static __always_inline struct kernfs_node *v1_group(struct css_set *groups, unsigned int controller)
{
	struct cgroup_subsys_state *state = NULL;

	if (controller < 12)
		bpf_core_read(&state, sizeof(state), &groups->subsys[controller]);
	return BPF_CORE_READ(state, cgroup, kn);
}

/* The group in version 2's tree, or where that is the root, the group of a version 1 controller. */
static __always_inline struct kernfs_node *control_group(struct task_struct *task)
{
	struct css_set *groups = BPF_CORE_READ(task, cgroups);
	struct kernfs_node *node = BPF_CORE_READ(groups, dfl_cgrp, kn);

	if (parent_of(node))
		return node;
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id)) {
		node = v1_group(groups, bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id));
		if (parent_of(node))
			return node;
	}
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, pids_cgrp_id))
		node = v1_group(groups, bpf_core_enum_value(enum cgroup_subsys_id, pids_cgrp_id));
	return node;
}
