/* Where files of network namespaces are mounted, in all mount namespaces.
 *
 * The kernel keeps a list of the mounts of each file system, and all namespaces are files of one.
 * So the mounts of anything else cost nothing, however many there are. The list may change
 * meanwhile: what was read is checked, and a walk that went astray is told as that.
 */

#include "types.bpf.h"

#define NULL ((void *)0)
#define NSFS_MAGIC 0x6e736673
#define CLONE_NEWNET 0x40000000
#define BPF_F_MMAPABLE 0x400
#define MAX_LISTED 8192
#define MAX_MOUNTS (1 << 20)
#define MAX_COUNTED_NAMESPACES 16384

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next;
};
struct proc_ns_operations {
	int type;
};
struct ns_common {
	const struct proc_ns_operations *ops;
	__u32 ns_type; /* Linux 6.18 */
	unsigned int inum;
};
struct mnt_namespace {
	struct ns_common ns;
};
struct inode {
	struct super_block *i_sb;
	void *i_private;
};
struct dentry {
	struct inode *d_inode;
};
struct vfsmount {
	struct dentry *mnt_root;
	struct super_block *mnt_sb;
};
struct mount {
	struct vfsmount mnt;
	struct mount *mnt_next_for_sb; /* Linux 6.18 */
	struct mnt_namespace *mnt_ns;
	__u64 mnt_id_unique; /* Linux 6.8 */
};
struct mount___before_6_18 {
	struct list_head mnt_instance;
};
struct super_block {
	unsigned long s_magic;
	struct mount *s_mounts;
};
struct super_block___before_6_18 {
	struct list_head s_mounts;
};
struct file {
	struct inode *f_inode;
};
struct fdtable {
	struct file **fd;
};
struct files_struct {
	struct fdtable *fdt;
};
struct task_struct {
	struct files_struct *files;
};

#pragma clang attribute pop

extern void bpf_rcu_read_lock(void) __weak __ksym;
extern void bpf_rcu_read_unlock(void) __weak __ksym;

char terms[] SEC("license") = "Dual MIT/GPL";

/* What is asked for; netns/bpf_scanner.py writes it. */
struct {
	__u32 inode; /* of one namespace, or 0 for all */
	__u32 most_each; /* so many mounts of a namespace are enough */
	__u32 run; /* another number for each run */
	__u32 fd; /* a descriptor, of the calling process, of any namespace's file */
} question;

struct mount_record {
	__u64 id; /* that of statmount(2), or 0 */
	__u32 inode;
	__u32 mounts; /* the mount namespace */
};

/* The size of the records in bytes, or what it cannot be if the list is not complete. */
struct mount_list {
	__u64 size;
	struct mount_record mounts[MAX_LISTED];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mount_list);
} listed SEC(".maps");

/* As in holders.bpf.c. */
struct count {
	__u32 run;
	__u32 reported;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_COUNTED_NAMESPACES);
	__type(key, __u32);
	__type(value, struct count);
} counts SEC(".maps");

struct walk {
	struct super_block *sb;
	struct list_head *head; /* before Linux 6.18: the end of the list */
	struct mount *next;
	struct mount_list *list;
	int strayed;
};

static __always_inline int is_wanted(__u32 inode)
{
	struct count first = { .run = question.run, .reported = 1 };
	struct count *count;

	if (!inode || (question.inode && question.inode != inode))
		return 0;
	count = bpf_map_lookup_elem(&counts, &inode);
	if (!count || count->run != question.run) {
		bpf_map_update_elem(&counts, &inode, &first, 0);
		return 1;
	}
	if (count->reported >= question.most_each)
		return 0;
	count->reported++;
	return 1;
}

static __always_inline __u32 inode_of_namespace(struct ns_common *ns)
{
	__u32 type;

	if (bpf_core_field_exists(ns->ns_type))
		type = BPF_CORE_READ(ns, ns_type);
	else
		type = BPF_CORE_READ(ns, ops, type);
	return type == CLONE_NEWNET ? BPF_CORE_READ(ns, inum) : 0;
}

static __always_inline void list_mount(struct mount *mount, struct mount_list *list)
{
	struct mount_record record = {};
	__u64 index = list->size / sizeof(record);

	/* None for what is mounted nowhere, or is just being detached. */
	record.mounts = BPF_CORE_READ(mount, mnt_ns, ns.inum);
	record.inode = inode_of_namespace(BPF_CORE_READ(mount, mnt.mnt_root, d_inode, i_private));
	if (!record.mounts || !is_wanted(record.inode))
		return;
	if (bpf_core_field_exists(mount->mnt_id_unique))
		record.id = BPF_CORE_READ(mount, mnt_id_unique);
	if (index < MAX_LISTED)
		list->mounts[index] = record;
	list->size += sizeof(record);
}

static __always_inline struct mount *mount_at(struct list_head *node)
{
	return (void *)node - bpf_core_field_offset(struct mount___before_6_18, mnt_instance);
}

static long step(__u64 number, struct walk *walk)
{
	struct mount *mount = walk->next;
	struct mount___before_6_18 *old = (void *)mount;

	if (BPF_CORE_READ(mount, mnt.mnt_sb) != walk->sb) {
		walk->strayed = 1;
		return 1;
	}
	list_mount(mount, walk->list);
	if (walk->head) {
		struct list_head *next = BPF_CORE_READ(old, mnt_instance.next);

		walk->next = mount_at(next);
		return next == walk->head;
	}
	walk->next = BPF_CORE_READ(mount, mnt_next_for_sb);
	return !walk->next;
}

static __always_inline struct super_block *file_system_of(__u32 fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct file **files = BPF_CORE_READ(task, files, fdt, fd);
	struct file *file = NULL;

	bpf_probe_read_kernel(&file, sizeof(file), &files[fd]);
	return BPF_CORE_READ(file, f_inode, i_sb);
}

static __always_inline void find_first(struct walk *walk, struct super_block *sb)
{
	struct super_block___before_6_18 *old = (void *)sb;

	if (bpf_core_field_exists(struct mount, mnt_next_for_sb)) {
		walk->next = BPF_CORE_READ(sb, s_mounts);
		return;
	}
	walk->head = (void *)old +
		bpf_core_field_offset(struct super_block___before_6_18, s_mounts);
	walk->next = mount_at(BPF_CORE_READ(old, s_mounts.next));
}

SEC("syscall")
int list_mounts(void *ctx)
{
	struct super_block *sb = file_system_of(question.fd);
	struct walk walk = { .sb = sb };
	__u32 key = 0;

	walk.list = bpf_map_lookup_elem(&listed, &key);
	if (!walk.list)
		return 0;
	walk.list->size = ~0ULL;
	if (BPF_CORE_READ(sb, s_magic) != NSFS_MAGIC || !bpf_rcu_read_lock)
		return 0;
	walk.list->size = 0;
	bpf_rcu_read_lock();
	find_first(&walk, sb);
	/* The kernel's own mount of it is always there: the list is never empty. */
	if (bpf_loop(MAX_MOUNTS, step, &walk, 0) >= MAX_MOUNTS)
		walk.strayed = 1;
	bpf_rcu_read_unlock();
	if (walk.strayed)
		walk.list->size = ~0ULL;
	return 0;
}
