/* Which open files, and which mappings of files, keep a network namespace alive.
 *
 * Two iterators (Linux 5.8 and 5.12) that write binary records; netns/bpf_scanner.py reads them.
 * As in tasks.bpf.c, only the fields of the kernel's structures that are used are named here.
 *
 * A user may have millions of descriptors. So what nobody needs is left out here: the same file
 * again and again, namespaces that are known already, and what would be too much to list.
 */

#include "types.bpf.h"

#define NULL ((void *)0)
#define NSFS_MAGIC 0x6e736673
#define SOCKFS_MAGIC 0x534f434b
#define PROC_SUPER_MAGIC 0x9fa0
#define CLONE_NEWNET 0x40000000
#define S_IFMT 0170000
#define S_IFREG 0100000
#define S_IFCHR 0020000
/* Device 10:200, as the kernel packs it (MKDEV). */
#define TUN_DEVICE (10 << 20 | 200)
/* /proc/net/a/b/c/d: no directory there is deeper. */
#define DEEPEST 5
#define MAX_REPORTED_NAMESPACES 16384

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
struct task_struct {
	int pid;
	int tgid;
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
struct vm_area_struct {
	unsigned long vm_start;
	struct file *vm_file;
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
struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};
struct bpf_iter__task_vma {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct vm_area_struct *vma;
};

#pragma clang attribute pop

char terms[] SEC("license") = "Dual MIT/GPL";

/* What is asked for, and what is kept from one call to the next; netns/bpf_scanner.py writes it.
 * It begins with zeros but for the first four. */
struct {
	__u32 inode; /* of one namespace, or 0 for all; of one socket for `sockets` */
	__u32 own;   /* the process whose descriptors are left out */
	__u32 most_each; /* so many records of a namespace are enough */
	__u32 run; /* another number for each run */
	__u64 last_task;
	__u64 last_file;
	__u64 left_out;
} question;

enum kind { NAMESPACE_FILE, SOCKET, TUN, PROC_FILE, MAPPING, LEFT_OUT };

struct holder_record {
	__u32 inode;
	__u32 kind;
	__u32 pid;
	__u32 tid;
	__u64 place; /* the descriptor, the address, or how many were left out */
	__u64 table; /* equal for descriptors of one table */
	__u64 id;    /* of the namespace, or 0 */
	__u32 flags;
	__u32 unused;
};

/* How often a namespace was reported, by inode number, and in which run. What does not count is
 * put there before. */
struct count {
	__u32 run;
	__u32 reported;
	__u32 task; /* the last one */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_REPORTED_NAMESPACES);
	__type(key, __u32);
	__type(value, struct count);
} counts SEC(".maps");

/* Whether a namespace is asked for, and there is not enough of it yet. If all are asked for, one
 * record of each task is enough. */
static __always_inline int is_wanted(__u32 inode, struct task_struct *task)
{
	struct count first = { .run = question.run, .reported = 1, .task = task->pid };
	struct count *count;

	if (!inode || (question.inode && question.inode != inode))
		return 0;
	count = bpf_map_lookup_elem(&counts, &inode);
	if (!count || count->run != question.run) {
		bpf_map_update_elem(&counts, &inode, &first, 0);
		return 1;
	}
	if (!question.inode && count->task == task->pid)
		return 0;
	if (count->reported >= question.most_each) {
		question.left_out++;
		return 0;
	}
	count->reported++;
	count->task = task->pid;
	return 1;
}

/* Whether it is the file that the same task was just seen with. */
static __always_inline int is_repeated(struct task_struct *task, struct file *file)
{
	if (question.last_file == (__u64)file && question.last_task == task->pid)
		return 1;
	question.last_file = (__u64)file;
	question.last_task = task->pid;
	return 0;
}

static __always_inline void write_id(struct net *net, struct holder_record *record)
{
	if (bpf_core_field_exists(net->ns.ns_id))
		record->id = BPF_CORE_READ(net, ns.ns_id);
}

/* At the end the kernel calls without an object. */
static __always_inline void write_end(struct seq_file *seq)
{
	struct holder_record record = { .kind = LEFT_OUT, .place = question.left_out };

	bpf_seq_write(seq, &record, sizeof(record));
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
	struct holder_record record = {};
	struct net *net;

	if (!task || !file) {
		write_end(ctx->meta->seq);
		return 0;
	}
	if (task->tgid == question.own || is_repeated(task, file))
		return 0;
	net = namespace_of_file(file, &record.kind);
	record.inode = BPF_CORE_READ(net, ns.inum);
	if (!is_wanted(record.inode, task))
		return 0;
	write_id(net, &record);
	record.pid = task->tgid;
	record.tid = task->pid;
	record.place = ctx->fd;
	record.flags = file->f_flags;
	record.table = (__u64)task->files;
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}

/* A mapping keeps its file, also when all descriptors of it are closed. Of what can hold a
 * namespace only sockets can be mapped: packet(7), AF_XDP, the receive side of TCP. */
SEC("iter/task_vma")
int mappings(struct bpf_iter__task_vma *ctx)
{
	struct task_struct *task = ctx->task;
	struct vm_area_struct *vma = ctx->vma;
	struct holder_record record = { .kind = MAPPING };
	struct file *file;
	struct net *net;

	if (!task || !vma) {
		write_end(ctx->meta->seq);
		return 0;
	}
	file = vma->vm_file;
	if (!file || file->f_inode->i_sb->s_magic != SOCKFS_MAGIC)
		return 0;
	if (task->tgid == question.own || is_repeated(task, file))
		return 0;
	net = namespace_of_sock(BPF_CORE_READ((struct socket *)file->private_data, sk));
	record.inode = BPF_CORE_READ(net, ns.inum);
	if (!is_wanted(record.inode, task))
		return 0;
	write_id(net, &record);
	record.pid = task->tgid;
	record.tid = task->pid;
	record.place = vma->vm_start;
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}

/* The namespace of one socket. Here `question.inode` is the number of the socket. */
SEC("iter/task_file")
int sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct net *net;
	__u32 found;

	if (!task || !file || file->f_inode->i_sb->s_magic != SOCKFS_MAGIC)
		return 0;
	if (file->f_inode->i_ino != question.inode || is_repeated(task, file))
		return 0;
	net = namespace_of_sock(BPF_CORE_READ((struct socket *)file->private_data, sk));
	found = BPF_CORE_READ(net, ns.inum);
	bpf_seq_write(ctx->meta->seq, &found, sizeof(found));
	return 0;
}
