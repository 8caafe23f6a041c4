/* Tells when tasks come into, or leave, one of some network namespaces.
 *
 * A task leaves when it ends, or by setns(2) or unshare(2), and comes by setns(2). (A child is born
 * in the namespace of its parent, or in a new one that nobody watches yet.) All is told after it is
 * true, but for the end of a task, which is marked as ending by then. Each namespace is told of
 * once, until it is watched again: netns/populated_events.py does so before it looks.
 */

#include "types.bpf.h"

/* At most one record waits for each watched namespace, and takes 16 bytes. */
#define MAX_WATCHED 8192
#define RING_SIZE (2 * 16 * MAX_WATCHED)
#define MAX_MOVING 1024

/* On x86-64 and arm64, and of 32-bit programs there. */
#define X86_SETNS 308
#define X86_UNSHARE 272
#define X86_32_SETNS 346
#define X86_32_UNSHARE 310
#define ARM_SETNS 268
#define ARM_UNSHARE 97
#define ARM_32_SETNS 375
#define ARM_32_UNSHARE 337
/* A record for all namespaces, and for none. */
#define ANY 0

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};
struct net {
	struct ns_common ns;
};
struct nsproxy {
	struct net *net_ns;
};
struct task_struct {
	int pid;
	int tgid;
	struct nsproxy *nsproxy;
};
struct pt_regs {
	unsigned long orig_ax; /* x86 */
	int syscallno;         /* arm64 */
};

#pragma clang attribute pop

char terms[] SEC("license") = "Dual MIT/GPL";

/* The process whose own visits are not told of. */
__u32 own;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_WATCHED);
	__type(key, __u32);
	__type(value, __u32);
} watched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_SIZE);
} told SEC(".maps");

/* From a thread that may be about to move to the namespace that it is in. Whatever that is: it may
 * be watched by the time that the thread leaves it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_MOVING);
	__type(key, __u32);
	__type(value, __u32);
} moving SEC(".maps");

static __always_inline void tell(__u32 inode)
{
	/* Only one of several that do so at once has deleted it. */
	if (bpf_map_lookup_elem(&watched, &inode) && !bpf_map_delete_elem(&watched, &inode))
		bpf_ringbuf_output(&told, &inode, sizeof(inode), 0);
}

static __always_inline __u32 namespace_of(struct task_struct *task)
{
	return task->tgid == own ? 0 : BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
}

static __always_inline int may_move(long number)
{
	if (bpf_core_field_exists(struct pt_regs, orig_ax))
		return number == X86_SETNS || number == X86_UNSHARE || number == X86_32_SETNS ||
		       number == X86_32_UNSHARE;
	return number == ARM_SETNS || number == ARM_UNSHARE || number == ARM_32_SETNS ||
	       number == ARM_32_UNSHARE;
}

/* On any other machine, this cannot be loaded. */
static __always_inline long number_of_call(struct pt_regs *registers)
{
	if (bpf_core_field_exists(struct pt_regs, orig_ax))
		return registers->orig_ax;
	return registers->syscallno;
}

SEC("tp_btf/sched_process_exit")
int ends(__u64 *ctx)
{
	tell(namespace_of((void *)ctx[0]));
	return 0;
}

SEC("tp_btf/sys_enter")
int begins_call(__u64 *ctx)
{
	struct task_struct *task;
	__u32 thread, inode;

	if (!may_move(ctx[1]))
		return 0;
	task = bpf_get_current_task_btf();
	thread = task->pid;
	inode = namespace_of(task);
	bpf_map_update_elem(&moving, &thread, &inode, 0);
	return 0;
}

SEC("tp_btf/sys_exit")
int ends_call(__u64 *ctx)
{
	struct task_struct *task;
	__u32 thread, *left, any = ANY;

	if (!may_move(number_of_call((void *)ctx[0])))
		return 0;
	task = bpf_get_current_task_btf();
	tell(namespace_of(task));
	thread = task->pid;
	left = bpf_map_lookup_elem(&moving, &thread);
	if (left) {
		tell(*left);
		bpf_map_delete_elem(&moving, &thread);
	} else {
		/* The call had begun before this was attached. */
		bpf_ringbuf_output(&told, &any, sizeof(any), 0);
	}
	return 0;
}
