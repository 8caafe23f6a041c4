/* Who is in a network namespace, and which open files keep one alive.
 *
 * Two iterators (Linux 5.8) that write binary records; netns/bpf_scanner.py reads them. From Linux
 * 6.7 on, a program can go through all tasks by itself, in a quarter of the time. Of the kernel's
 * structures only the fields that are used are named here: libbpf finds their places in the
 * kernel that runs (CO-RE), so one object serves all.
 */

#include "types.bpf.h"

#define NULL ((void *)0)
#define NSFS_MAGIC 0x6e736673
#define SOCKFS_MAGIC 0x534f434b
#define PROC_SUPER_MAGIC 0x9fa0
#define CLONE_NEWNET 0x40000000
#define PF_EXITING 4
#define S_IFMT 0170000
#define S_IFREG 0100000
#define S_IFCHR 0020000
/* Device 10:200, as the kernel packs it (MKDEV). */
#define TUN_DEVICE (10 << 20 | 200)
/* /proc/net/a/b/c/d: no directory there is deeper. */
#define DEEPEST 5
#define MAX_LOOKS 4
#define BPF_F_MMAPABLE 0x400
#define BPF_TASK_ITER_ALL_THREADS 1
/* Half a mebibyte of them. */
#define MAX_LISTED 32000

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct proc_ns_operations {
	int type;
};
struct ns_common {
	const struct proc_ns_operations *ops;
	__u32 ns_type; /* these two: Linux 6.18 */
	__u64 ns_id;
	unsigned int inum;
};
struct net {
	struct ns_common ns;
	struct proc_dir_entry *proc_net;
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
	struct files_struct *files;
};
struct super_block {
	unsigned long s_magic;
};
struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
	unsigned int i_rdev;
	void *i_private;
};
struct file {
	unsigned int f_flags;
	struct inode *f_inode;
	void *private_data;
};
typedef struct {
	struct net *net;
} possible_net_t;
struct sock_common {
	possible_net_t skc_net;
};
struct sock {
	struct sock_common __sk_common;
};
struct socket {
	struct sock *sk;
};
struct proc_dir_entry {
	struct proc_dir_entry *parent;
	void *data;
};
struct proc_inode {
	struct proc_dir_entry *pde;
	struct inode vfs_inode;
};
struct seq_file {
	void *private;
};
struct bpf_iter_meta {
	struct seq_file *seq;
};
struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};
struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
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
	__u32 own;   /* the process whose descriptors are left out */
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

enum kind { NAMESPACE_FILE, SOCKET, TUN, PROC_FILE };

struct descriptor_record {
	__u32 inode;
	__u32 kind;
	__u32 pid;
	__u32 tid;
	__u32 fd;
	__u32 flags;
	__u64 table; /* equal for descriptors of one table */
	__u64 id;    /* of the namespace, or 0 */
};

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

static __always_inline struct net *namespace_of_sock(struct sock *sock)
{
	return BPF_CORE_READ(sock, __sk_common.skc_net.net);
}

/* The namespace that the directory /proc/net with this file in it is of. */
static __always_inline struct net *namespace_of_entry(struct proc_dir_entry *entry)
{
	for (int i = 0; entry && i < DEEPEST; i++) {
		struct net *net = BPF_CORE_READ(entry, data);

		if (net && BPF_CORE_READ(net, proc_net) == entry)
			return net;
		entry = BPF_CORE_READ(entry, parent);
	}
	return NULL;
}

/* Not all of the files there hold the namespace: those that are opened with seq_open_net() or
 * single_open_net() do (fs/proc/proc_net.c). */
static __always_inline struct net *namespace_of_proc_file(struct inode *inode, void *private)
{
	struct proc_inode *outer =
		(void *)inode - bpf_core_field_offset(struct proc_inode, vfs_inode);
	struct net *net = namespace_of_entry(BPF_CORE_READ(outer, pde));
	void *held = BPF_CORE_READ((struct seq_file *)private, private);
	void *first = NULL;

	bpf_probe_read_kernel(&first, sizeof(first), held);
	return held == net || first == net ? net : NULL;
}

static __always_inline struct net *namespace_of_nsfs(struct ns_common *ns)
{
	__u32 type;

	if (bpf_core_field_exists(ns->ns_type))
		type = BPF_CORE_READ(ns, ns_type);
	else
		type = BPF_CORE_READ(ns, ops, type);
	if (type != CLONE_NEWNET)
		return NULL;
	return (void *)ns - bpf_core_field_offset(struct net, ns);
}

static __always_inline struct net *namespace_of_file(struct file *file, __u32 *kind)
{
	struct inode *inode = file->f_inode;
	unsigned long magic = inode->i_sb->s_magic;
	__u16 type = inode->i_mode & S_IFMT;

	if (magic == NSFS_MAGIC) {
		*kind = NAMESPACE_FILE;
		return namespace_of_nsfs(inode->i_private);
	}
	if (magic == SOCKFS_MAGIC) {
		*kind = SOCKET;
		return namespace_of_sock(BPF_CORE_READ((struct socket *)file->private_data, sk));
	}
	if (magic == PROC_SUPER_MAGIC && type == S_IFREG) {
		*kind = PROC_FILE;
		return namespace_of_proc_file(inode, file->private_data);
	}
	if (type == S_IFCHR && inode->i_rdev == TUN_DEVICE) {
		*kind = TUN;
		/* It begins with a socket (struct tun_file, drivers/net/tun.c). */
		return namespace_of_sock(file->private_data);
	}
	return NULL;
}

SEC("iter/task_file")
int descriptors(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct descriptor_record record = {};
	struct net *net;

	if (!task || !file || task->tgid == question.own)
		return 0;
	net = namespace_of_file(file, &record.kind);
	record.inode = BPF_CORE_READ(net, ns.inum);
	if (!is_wanted(record.inode))
		return 0;
	if (bpf_core_field_exists(net->ns.ns_id))
		record.id = BPF_CORE_READ(net, ns.ns_id);
	record.pid = task->tgid;
	record.tid = task->pid;
	record.fd = ctx->fd;
	record.flags = file->f_flags;
	record.table = (__u64)task->files;
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
