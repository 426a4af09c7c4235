/* What is read of a task by more than one object. */
#pragma once

#include "kernel.h"

#define DEPTH 40 /* components and mount points of one path */

static __always_inline __u32 netns_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
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

/* The group of a controller of version 1; none if version 2 has the controller. */
static __always_inline struct kernfs_node *v1_group(struct css_set *groups, unsigned int controller)
{
	struct cgroup_subsys_state *state = NULL;

	if (controller < 12)
		bpf_core_read(&state, sizeof(state), &groups->subsys[controller]);
	if (BPF_CORE_READ(state, cgroup, root) == BPF_CORE_READ(groups, dfl_cgrp, root))
		return NULL;
	return BPF_CORE_READ(state, cgroup, kn);
}

/* The group of version 1's memory controller, or where that is the root, of its pids controller. */
static __always_inline struct kernfs_node *v1_control_group(struct css_set *groups)
{
	struct kernfs_node *node = NULL;

	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id)) {
		node = v1_group(groups, bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id));
		if (parent_of(node))
			return node;
	}
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, pids_cgrp_id))
		node = v1_group(groups, bpf_core_enum_value(enum cgroup_subsys_id, pids_cgrp_id));
	return node;
}

/* Number of groups from below the root to this one; `top` is the first of them. */
static __always_inline int group_depth(struct kernfs_node *node, struct kernfs_node **top)
{
	int depth = 0;

#pragma clang loop unroll(disable)
	for (; depth < DEPTH; depth++) {
		struct kernfs_node *parent = parent_of(node);
		if (!parent)
			break;
		*top = node;
		node = parent;
	}
	return depth;
}

/*
 * Whether a group of version 1 tells more than one of version 2 where both are in use: with runtimes that know version
 * 1 only, a container's process is in version 2's group of the runtime. systemd's groups are the same in both.
 */
static __always_inline bool tells_more(struct kernfs_node *v1, struct kernfs_node *v2)
{
	struct kernfs_node *top = NULL, *other = NULL;
	__u64 name[4] = {}, other_name[4] = {};
	int depth = group_depth(v1, &top);

	if (depth == 0)
		return false;
	if (depth > group_depth(v2, &other))
		return true;
	bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(top, name));
	bpf_probe_read_kernel_str(other_name, sizeof(other_name), BPF_CORE_READ(other, name));
	return name[0] != other_name[0] || name[1] != other_name[1] || name[2] != other_name[2] || name[3] != other_name[3];
}

/* The group in version 2's tree, or that of a version 1 controller where that tells more. See cgroup_path in procfs.py. */
static __always_inline struct kernfs_node *control_group(struct task_struct *task)
{
	struct css_set *groups = BPF_CORE_READ(task, cgroups);
	struct kernfs_node *node = BPF_CORE_READ(groups, dfl_cgrp, kn), *v1 = v1_control_group(groups);

	if (!v1)
		return node;
	if (!parent_of(node))
		return v1;
	return tells_more(v1, node) ? v1 : node;
}
