/* Who is in a network namespace.
 *
 * An iterator (Linux 5.8) that writes binary records; netns/bpf_scanner.py reads them. From Linux
 * 6.7 on, a program can go through all tasks by itself, in a quarter of the time. Of the kernel's
 * structures only the fields that are used are named here: libbpf finds their places in the
 * kernel that runs (CO-RE), so one object serves all.
 */

#include "types.bpf.h"

#define NULL ((void *)0)
#define PF_EXITING 4
#define MAX_LOOKS 4
#define BPF_F_MMAPABLE 0x400
#define BPF_TASK_ITER_ALL_THREADS 1
/* Half a mebibyte of them. */
#define MAX_LISTED 32000

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};
struct net {
	struct ns_common ns;
};
struct mnt_namespace {
	struct ns_common ns;
};
struct nsproxy {
	struct mnt_namespace *mnt_ns;
	struct net *net_ns;
};
struct task_struct {
	unsigned int flags;
	int pid;
	int tgid;
	struct nsproxy *nsproxy;
};
struct bpf_iter_meta {
	struct seq_file *seq;
};
struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

#pragma clang attribute pop

struct bpf_iter_task {
	__u64 opaque[3];
} __attribute__((aligned(8)));

/* NULL where the kernel has none. */
extern int bpf_iter_task_new(struct bpf_iter_task *, struct task_struct *, unsigned int)
	__weak __ksym;
extern struct task_struct *bpf_iter_task_next(struct bpf_iter_task *) __weak __ksym;
extern void bpf_iter_task_destroy(struct bpf_iter_task *) __weak __ksym;
extern void bpf_rcu_read_lock(void) __weak __ksym;
extern void bpf_rcu_read_unlock(void) __weak __ksym;
extern void *bpf_rdonly_cast(const void *, __u32) __weak __ksym;

/* The same pointer, but not trusted. For each pointer that is read by way of one that it trusts,
 * the verifier goes through all names of the kernel's types, which takes milliseconds. */
#define DISTRUST(pointer, type) \
	(bpf_rdonly_cast ? bpf_rdonly_cast(pointer, bpf_core_type_id_kernel(type)) : (pointer))

char terms[] SEC("license") = "Dual MIT/GPL";

/* What is asked for, and the records: netns/bpf_scanner.py reads the same. */
struct {
	__u32 inode; /* of one namespace, or 0 for all */
	__u32 members; /* tasks that are about to end are left out */
} question;

struct task_record {
	__u32 pid;
	__u32 tid;
	__u32 inode;
	__u32 mounts; /* the mount namespace */
};

/* What `list_tasks` has found: its size in bytes, and the records. */
struct task_list {
	__u64 size;
	struct task_record tasks[MAX_LISTED];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct task_list);
} listed SEC(".maps");

static __always_inline int is_wanted(__u32 inode)
{
	return inode && (!question.inode || question.inode == inode);
}

/* An nsproxy may be freed at once: what was read is right if the task has the same one after. */
static __always_inline void read_namespaces(struct task_struct *task, struct task_record *record)
{
	for (int i = 0; i < MAX_LOOKS; i++) {
		struct nsproxy *before = task->nsproxy;

		record->inode = before->net_ns->ns.inum;
		record->mounts = before->mnt_ns->ns.inum;
		barrier();
		if (task->nsproxy == before)
			return;
	}
	record->inode = 0;
}

/* Whether a task is asked for, and what is told of it. */
static __always_inline int describe(struct task_struct *task, struct task_record *record)
{
	if (question.members && task->flags & PF_EXITING)
		return 0;
	record->pid = task->tgid;
	record->tid = task->pid;
	read_namespaces(DISTRUST(task, struct task_struct), record);
	return is_wanted(record->inode);
}

SEC("iter/task")
int tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct task_record record;

	if (task && describe(task, &record))
		bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}

/* As `tasks`. A list that is not complete has a size that it cannot have. */
SEC("syscall")
int list_tasks(void *ctx)
{
	struct bpf_iter_task iterator;
	struct task_record record;
	struct task_struct *task;
	__u32 key = 0;
	struct task_list *list = bpf_map_lookup_elem(&listed, &key);

	if (!list)
		return 0;
	list->size = ~0ULL;
	if (!bpf_iter_task_new || !bpf_rcu_read_lock)
		return 0;
	list->size = 0;
	bpf_rcu_read_lock();
	bpf_iter_task_new(&iterator, NULL, BPF_TASK_ITER_ALL_THREADS);
	while ((task = bpf_iter_task_next(&iterator))) {
		__u64 index = list->size / sizeof(record);

		/* Task 0 is the idle one. */
		if (!task->pid || !describe(task, &record))
			continue;
		if (index < MAX_LISTED)
			list->tasks[index] = record;
		list->size += sizeof(record);
	}
	bpf_iter_task_destroy(&iterator);
	bpf_rcu_read_unlock();
	return 0;
}
