/*
 * NAME/exec of a netnsfs: runs a program in the network namespace of the directory that it was
 * called in, with /sys and the files of /etc/netns/NAME, as `ip netns exec NAME` does.
 *
 *     /mnt/netnsfs/blue/exec ping 10.0.0.1
 *
 * For root it needs nothing. If the administrator gives this file a capability (setcap
 * cap_sys_admin=p), users who may write the directory may enter too. Then every caller is a possible
 * attacker, and these rules hold:
 *
 *  1. The directory is opened once, by the path that was called (AT_EXECFN). Everything that counts
 *     is asked of that descriptor. It must be on a netnsfs (fuse.netnsfs) that root has mounted
 *     (user_id=0) in this mount namespace: fusermount3(1) lets users choose the type, but not the
 *     user ID. And the mount namespace must belong to the user namespace of this process: in a
 *     user namespace of their own, users mount what they like.
 *  2. The kernel decides who may: access(2), for the real user and group IDs.
 *  3. The namespace that was entered must have the ID that the directory shows. No other namespace
 *     ever has it, so it does not matter what was renamed, removed or made again meanwhile.
 *  4. Whatever fails ends this process, the only thing that was changed. So it does not matter what
 *     a limit, a closed descriptor or a signal breaks off.
 *  5. There is no C library, which would read variables before main(): here, only PATH is read, and
 *     only when no privilege is left. Nothing is allocated, nothing written but messages, and
 *     execve(2) closes everything that was opened.
 *  6. The capability is in effect from setns(2) to the last mount. The program of a user starts
 *     without any, and cannot gain any more (no_new_privs). Whoever may write the directory rules
 *     that network, and a setuid program that asks it whom to trust (LDAP, NIS) would ask them.
 *  7. The kernel gives no capability to a process that is traced, or that shares its current
 *     directory with another. What has one can be neither traced nor dumped by users.
 */

#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/limits.h>
#include <linux/nsfs.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/stat.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

enum { REFUSED = 126, NOT_FOUND = 127 };

/* The entry, with the stack that execve(2) has made, and system calls (syscall(2)). */
#if defined(__x86_64__) && defined(__LP64__)
__asm__(".globl _start\n_start:\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n");
#define REGISTER(name) register long name __asm__(#name)
static long call(long number, long a, long b, long c, long d, long e)
{
	REGISTER(r10) = d;
	REGISTER(r8) = e;

	__asm__ volatile("syscall"
			 : "+a"(number)
			 : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return number;
}
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\tmov x29, #0\n\tmov x30, #0\n\tmov x0, sp\n\tbl begin\n");
#define REGISTER(name) register long name __asm__(#name)
static long call(long number, long a, long b, long c, long d, long e)
{
	REGISTER(x8) = number;
	REGISTER(x0) = a;
	REGISTER(x1) = b;
	REGISTER(x2) = c;
	REGISTER(x3) = d;
	REGISTER(x4) = e;

	__asm__ volatile("svc #0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
			 : "memory");
	return x0;
}
#else
#error "only for 64-bit x86 and Arm"
#endif
#define CALL5(name, a, b, c, d, e, ...) \
	call(SYS_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))
#define CALL(...) CALL5(__VA_ARGS__, 0, 0, 0, 0, 0)

static unsigned long length(const char *text)
{
	unsigned long count = 0;

	while (text[count])
		count++;
	return count;
}

/* The rest of a text after a beginning; a null pointer if it begins otherwise. */
static const char *after(const char *beginning, const char *text)
{
	for (; *beginning; beginning++, text++)
		if (*beginning != *text)
			return 0;
	return text;
}

static int same(const char *one, const char *other)
{
	const char *rest = after(one, other);

	return rest && !*rest;
}

/* The last place of a character; a null pointer if it is not there. */
static char *last(char *text, char wanted)
{
	char *found = 0;

	for (; *text; text++)
		if (*text == wanted)
			found = text;
	return found;
}

/* Put texts together, up to a null pointer. Whether they fit: if not, the end is missing. */
static int join(char *to, unsigned long size, ...)
{
	const char *text;
	va_list texts;

	va_start(texts, size);
	while ((text = va_arg(texts, const char *)))
		for (; *text && size > 1; size--)
			*to++ = *text++;
	va_end(texts);
	*to = '\0';
	return size > 1;
}

static const char *decimal(unsigned long long number, char digits[24])
{
	char *first = digits + 23;

	*first = '\0';
	do
		*--first = '0' + number % 10;
	while (number /= 10);
	return first;
}

static void say(const char *what, const char *why)
{
	char line[3 * PATH_MAX];

	join(line, sizeof(line), "exec: ", what, ": ", why, "\n", (char *)0);
	CALL(write, 2, line, length(line));
}

static _Noreturn void refuse(const char *what, const char *why)
{
	say(what, why);
	for (;;)
		CALL(exit_group, REFUSED);
}

static const char *describe(long error, char text[64])
{
	/* No pointers: nobody relocates this program. */
	static const struct {
		int error;
		char text[28];
	} known[] = {
		{EPERM, "Operation not permitted"},
		{ENOENT, "No such file or directory"},
		{EACCES, "Permission denied"},
		{EROFS, "Read-only file system"},
	};
	char digits[24];

	for (unsigned int i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (known[i].error == -error)
			return known[i].text;
	join(text, 64, "error ", decimal(-error, digits), " of errno(3)", (char *)0);
	return text;
}

/* The result of a system call that must not fail. */
static long must(long result, const char *what)
{
	char text[64];

	if (result < 0)
		refuse(what, describe(result, text));
	return result;
}

static void read_link(long directory, const char *path, char text[PATH_MAX])
{
	text[must(CALL(readlinkat, directory, path, text, PATH_MAX - 1), path)] = '\0';
}

static struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
/* Each set has two halves. CAP_SYS_ADMIN is in the first. */
static struct __user_cap_data_struct sets[2];

/* Rule 6: at first in effect for root alone, however it was given. */
static void lower_capability(void)
{
	must(CALL(capget, &header, sets), "capget");
	if (CALL(getuid) == 0)
		return;
	sets[0].effective = sets[1].effective = 0;
	must(CALL(capset, &header, sets), "capset");
}

static void raise_capability(void)
{
	char program[PATH_MAX], why[2 * PATH_MAX];

	if (!(sets[0].permitted & CAP_TO_MASK(CAP_SYS_ADMIN))) {
		if (CALL(prctl, PR_GET_NO_NEW_PRIVS) == 1)
			refuse("Operation not permitted", "no_new_privs is set");
		read_link(AT_FDCWD, "/proc/self/exe", program);
		join(why, sizeof(why), "only root may, until root calls: setcap cap_sys_admin=p ",
		     program, (char *)0);
		refuse("Operation not permitted", why);
	}
	sets[0].effective |= CAP_TO_MASK(CAP_SYS_ADMIN);
	must(CALL(capset, &header, sets), "capset");
}

/* Rule 6. Root keeps what it has: execve(2) would give it back. */
static void drop_privileges(void)
{
	if (CALL(getuid) == 0)
		return;
	must(CALL(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL), "ambient capabilities");
	sets[0].inheritable &= ~CAP_TO_MASK(CAP_SYS_ADMIN);
	sets[0].effective = sets[0].permitted = 0;
	sets[1].effective = sets[1].permitted = 0;
	must(CALL(capset, &header, sets), "capset");
	must(CALL(prctl, PR_SET_NO_NEW_PRIVS, 1), "no_new_privs");
}

static long open_path(const char *path, long flags)
{
	return must(CALL(openat, AT_FDCWD, path, flags | O_CLOEXEC), path);
}

/* Rule 1. */
static long open_directory(char *called)
{
	char *slash = last(called, '/');

	if (slash)
		slash[1] = '\0';
	return open_path(slash ? called : ".", O_PATH | O_DIRECTORY);
}

static void inspect(long directory, const char *path, struct statx *found)
{
	must(CALL(statx, directory, path, AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_MNT_ID, found),
	     *path ? path : "statx");
}

/* Rule 1: who has mounted things here has been root of this user namespace. */
static void check_user_namespace(void)
{
	long mounts = open_path("/proc/self/ns/mnt", O_RDONLY);
	long owner = must(CALL(ioctl, mounts, NS_GET_USERNS), "owner of the mount namespace");
	struct statx its, ours;

	inspect(owner, "", &its);
	inspect(AT_FDCWD, "/proc/self/ns/user", &ours);
	if (its.stx_dev_major != ours.stx_dev_major || its.stx_dev_minor != ours.stx_dev_minor ||
	    its.stx_ino != ours.stx_ino)
		refuse("the mount namespace", "it belongs to another user namespace");
	CALL(close, owner);
	CALL(close, mounts);
}

/* Cut the next word off; an empty one if there is none. */
static char *cut(char **rest, char end)
{
	char *word = *rest;

	while (**rest && **rest != end)
		++*rest;
	if (**rest)
		*(*rest)++ = '\0';
	return word;
}

static int is_octal(const char *digits)
{
	for (int i = 0; i < 3; i++)
		if (digits[i] < '0' || digits[i] > '7')
			return 0;
	return 1;
}

/* A path of mountinfo, with its spaces and backslashes as they are. That of a root is empty. */
static const char *unescape(char *text)
{
	char *from = text, *to = text;

	while (*from)
		if (*from == '\\' && is_octal(from + 1)) {
			*to++ = (from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0');
			from += 4;
		} else {
			*to++ = *from++;
		}
	*to = '\0';
	return same(text, "/") ? "" : text;
}

/*
 * Where a directory is in its file system, as "/blue", if a line of mountinfo tells of the mount
 * that it was reached through, and that is a netnsfs of root's. In proc_pid_mountinfo(5), no word
 * holds a space. The first two paths are of the root of the mount and of the mount point.
 */
static int find_in_line(char *line, const char *mount, const char *path, char *place)
{
	const char *root, *point, *rest;

	if (!same(cut(&line, ' '), mount))
		return 0;
	cut(&line, ' ');
	cut(&line, ' ');
	root = unescape(cut(&line, ' '));
	point = unescape(cut(&line, ' '));
	while (*line && !same(cut(&line, ' '), "-"))
		;
	if (!same(cut(&line, ' '), "fuse.netnsfs"))
		return 0;
	cut(&line, ' ');
	while (*line)
		if (same(cut(&line, ','), "user_id=0"))
			return (rest = after(point, path)) &&
			       join(place, 2 * PATH_MAX, root, rest, (char *)0);
	return 0;
}

/* Rule 1: where the directory is in the netnsfs that it must be in. */
static void find_place(long directory, char place[2 * PATH_MAX])
{
	static char lines[1 << 17];
	char link[64], digits[24], mount[24], path[PATH_MAX];
	struct statx found;
	const char *number;
	long mounts = open_path("/proc/self/mountinfo", O_RDONLY), size;
	char *line = lines, *end = lines;

	inspect(directory, "", &found);
	number = decimal(found.stx_mnt_id, mount);
	join(link, sizeof(link), "/proc/self/fd/", decimal(directory, digits), (char *)0);
	read_link(AT_FDCWD, link, path);
	while ((found.stx_mask & STATX_MNT_ID) &&
	       (size = CALL(read, mounts, end, lines + sizeof(lines) - end)) > 0) {
		end += size;
		for (char *at = end - size; at < end; at++) {
			if (*at != '\n')
				continue;
			*at = '\0';
			if (find_in_line(line, number, path, place)) {
				CALL(close, mounts);
				return;
			}
			line = at + 1;
		}
		/* What has begun is the next line. */
		for (char *to = lines; to < lines + (end - line); to++)
			*to = *(to + (line - lines));
		end -= line - lines;
		line = lines;
	}
	refuse(path, "not in a netnsfs that root has mounted here");
}

/* The name of the namespace; a null pointer for one that has none. */
static const char *name_in(char *place)
{
	const char *name = after("/", place);

	if (name && *name && last(place, '/') == place && !same(name, ".netnsfs"))
		return name;
	name = after("/.netnsfs/unnamed/", place);
	if (!name || !*name || last(place, '/') != name - 1)
		refuse(place, "not the directory of a namespace");
	return 0;
}

/* Rule 3. The mount tells where the file of the namespace is. */
static long open_namespace(long directory, const char *name)
{
	char path[PATH_MAX], *slash;

	read_link(directory, "ns", path);
	slash = last(path, '/');
	if (!slash || (name && !same(slash + 1, name)))
		refuse("ns", "the namespace has been renamed: try again");
	return open_path(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
}

/* Rule 3. A socket tells the ID of the namespace that it was made in. */
static void enter(long namespace, long directory)
{
	/* A file of the directory itself, and not of what somebody has mounted over it. */
	struct open_how how = {
		.flags = O_RDONLY | O_CLOEXEC,
		.resolve = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS,
	};
	long file = must(CALL(openat2, directory, "id", &how, sizeof(how)), "id"), probe;
	char shown[32], entered[32], digits[24];
	unsigned long long id;
	unsigned int size = sizeof(id);

	shown[must(CALL(read, file, shown, sizeof(shown) - 1), "id")] = '\0';
	raise_capability();
	must(CALL(setns, namespace, CLONE_NEWNET), "the namespace");
	probe = must(CALL(socket, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
	must(CALL(getsockopt, probe, SOL_SOCKET, SO_NETNS_COOKIE, &id, &size), "SO_NETNS_COOKIE");
	join(entered, sizeof(entered), decimal(id, digits), "\n", (char *)0);
	if (!same(shown, entered))
		refuse("the namespace", "another has taken its place: try again");
	CALL(close, probe);
	CALL(close, file);
	CALL(close, namespace);
}

/* Whether nobody but root can change what is in a directory. */
static int is_roots(const char *path)
{
	struct statx found;

	inspect(AT_FDCWD, path, &found);
	return found.stx_uid == 0 && !(found.stx_mode & 022);
}

/* From here on in the order of netns_switch() in iproute2 (lib/namespace.c). */
static void mount_sys(const char *name)
{
	struct statfs sys;
	long flags = 0;

	/* In a root of their own (chroot(2)), users choose where a link called sys leads. */
	if (CALL(getuid) != 0 && !is_roots("/"))
		refuse("/", "others than root can write it");
	must(CALL(unshare, CLONE_NEWNS), "unshare");
	must(CALL(mount, "", "/", "none", MS_SLAVE | MS_REC, 0), "make / a slave mount");
	/* In a user namespace it cannot be taken away. What hides it may not be writable then. */
	if (CALL(umount2, "/sys", MNT_DETACH) < 0 && CALL(statfs, "/sys", &sys) == 0 &&
	    sys.f_flags & MS_RDONLY)
		flags = MS_RDONLY;
	must(CALL(mount, name ? name : "none", "/sys", "sysfs", flags, 0), "/sys");
}

struct entry {
	unsigned long long inode, offset;
	unsigned short size;
	unsigned char type;
	char name[];
};

/* One that cannot be bound is told, and the others are, as iproute2 does it. */
static void bind_file(const char *directory, const char *file)
{
	char from[64 + NAME_MAX], to[64 + NAME_MAX], text[64];
	long error;

	join(from, sizeof(from), directory, "/", file, (char *)0);
	join(to, sizeof(to), "/etc/", file, (char *)0);
	error = CALL(mount, from, to, "none", MS_BIND, 0);
	if (error < 0) {
		join(from, sizeof(from), "cannot be bound: ", describe(error, text), (char *)0);
		say(to, from);
	}
}

/*
 * The files of /etc/netns/NAME over those of /etc. For users, they must be root's, and so must
 * all be that leads there. That there are none is the only reason to go on without them.
 */
static void bind_files(const char *name)
{
	char path[64 + NAME_MAX], opened[64], digits[24];
	_Alignas(struct entry) char entries[4096];
	long directory, size;
	struct entry *entry;

	if (!join(path, sizeof(path), "/etc/netns/", name, (char *)0))
		refuse(name, "too long");
	directory = CALL(openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (directory == -ENOENT)
		return;
	must(directory, path);
	/* By the descriptor: a link in the path can lead nowhere else meanwhile. */
	join(opened, sizeof(opened), "/proc/self/fd/", decimal(directory, digits), (char *)0);
	if (CALL(getuid) != 0 &&
	    !(is_roots("/etc") && is_roots("/etc/netns") && is_roots(opened)))
		refuse(path, "others than root can write it");
	while ((size = must(CALL(getdents64, directory, entries, sizeof(entries)), path)))
		for (long at = 0; at < size; at += entry->size) {
			entry = (struct entry *)(entries + at);
			if (!same(entry->name, ".") && !same(entry->name, ".."))
				bind_file(opened, entry->name);
		}
	CALL(close, directory);
}

/* execve(2), and for a script without #! a shell, as execvp(3) has it. The error. */
static long execute(const char *path, char **arguments, char **variables)
{
	long error = CALL(execve, path, arguments + 1, variables);

	if (error != -ENOEXEC)
		return error;
	arguments[0] = "/bin/sh";
	arguments[1] = (char *)path;
	return CALL(execve, "/bin/sh", arguments, variables);
}

/*
 * execvp(3), of all arguments but the first. The error: as in shells, a directory that is closed is
 * no program that is.
 */
static long search(char **arguments, char **variables)
{
	const char *program = arguments[1], *directories = "/bin:/usr/bin", *found;
	char path[2 * PATH_MAX];
	long error, denied = 0;
	unsigned long size;

	if (last(arguments[1], '/') || !*program)
		return *program ? execute(program, arguments, variables) : -ENOENT;
	for (char **variable = variables; *variable; variable++)
		if ((found = after("PATH=", *variable))) {
			directories = found;
			break;
		}
	for (const char *end = directories;; directories = ++end) {
		while (*end && *end != ':')
			end++;
		size = end - directories;
		if (size < PATH_MAX && length(program) < PATH_MAX) {
			/* An empty one is the current directory. */
			join(path, size + 1, directories, (char *)0);
			join(path + size, sizeof(path) - size, size ? "/" : "", program, (char *)0);
			error = execute(path, arguments, variables);
			if (error == -EACCES && CALL(faccessat, AT_FDCWD, path, F_OK) == 0)
				denied = error;
			else if (error != -EACCES && error != -ENOENT && error != -ENOTDIR &&
				 error != -ESTALE && error != -ENODEV && error != -ETIMEDOUT)
				return error;
		}
		if (!*end)
			return denied ? denied : -ENOENT;
	}
}

static void run_inside(char *called, char **arguments, char **variables)
{
	char place[2 * PATH_MAX];
	long directory, namespace, error;
	const char *name;
	char text[64];

	lower_capability();
	directory = open_directory(called);
	check_user_namespace();
	find_place(directory, place);
	name = name_in(place);
	must(CALL(faccessat, directory, ".", W_OK | X_OK), place);
	namespace = open_namespace(directory, name);
	enter(namespace, directory);
	mount_sys(name);
	if (name)
		bind_files(name);
	drop_privileges();
	error = search(arguments, variables);
	say(arguments[1], describe(error, text));
	for (;;)
		CALL(exit_group, error == -ENOENT ? NOT_FOUND : REFUSED);
}

/* The stack: the number of arguments, they, null, the variables, null, the auxiliary vector. */
__attribute__((used)) static _Noreturn void begin(long *stack)
{
	char **arguments = (char **)(stack + 1);
	char **variables = arguments + *stack + 1, **end = variables;
	Elf64_auxv_t *vector;

	while (*end)
		end++;
	vector = (Elf64_auxv_t *)(end + 1);
	while (vector->a_type != AT_NULL && vector->a_type != AT_EXECFN)
		vector++;
	if (*stack > 1 && vector->a_type == AT_EXECFN)
		run_inside((char *)vector->a_un.a_val, arguments, variables);
	refuse("call it as", "NAME/exec PROGRAM [ARGUMENT...]");
}
