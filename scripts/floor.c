/*
 * The smallest file system in C that answers the same small requests as `Floor` of
 * scripts/benchmarks/floor.py, from constants: a directory foo and in it a file inode, with
 * netnsfs's timeouts. One thread, libfuse's low level. Nothing is cached that netnsfs does not
 * let the kernel cache.
 */
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fuse_lowlevel.h>
#include <string.h>

static const char content[] = "4026532268\n";
enum { FOO = 2, INODE = 3 };

static struct stat attributes_of(fuse_ino_t ino)
{
	struct stat attributes = { .st_ino = ino, .st_nlink = 1 };

	attributes.st_mode = ino == INODE ? S_IFREG | 0444 : S_IFDIR | 0755;
	attributes.st_size = ino == INODE ? sizeof content - 1 : 0;
	return attributes;
}

static void reply_entry(fuse_req_t req, fuse_ino_t ino)
{
	struct fuse_entry_param entry = { .ino = ino, .attr_timeout = 3600 };

	entry.attr = attributes_of(ino);
	entry.entry_timeout = ino == INODE ? 3600 : 0;
	fuse_reply_entry(req, &entry);
}

static void floor_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	if (parent == FUSE_ROOT_ID && !strcmp(name, "foo"))
		reply_entry(req, FOO);
	else if (parent == FOO && !strcmp(name, "inode"))
		reply_entry(req, INODE);
	else
		fuse_reply_err(req, ENOENT);
}

static void floor_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *file)
{
	struct stat attributes = attributes_of(ino);

	fuse_reply_attr(req, &attributes, 3600);
}

static void floor_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *file)
{
	file->fh = 1;
	file->direct_io = 1;
	fuse_reply_open(req, file);
}

static void floor_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
		       struct fuse_file_info *file)
{
	size_t length = sizeof content - 1;
	size_t start = (size_t)offset < length ? (size_t)offset : length;

	fuse_reply_buf(req, content + start, size < length - start ? size : length - start);
}

static void floor_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *file)
{
	fuse_reply_err(req, 0);
}

static const struct fuse_lowlevel_ops operations = {
	.lookup = floor_lookup,
	.getattr = floor_getattr,
	.open = floor_open,
	.read = floor_read,
	.release = floor_release,
};

int main(int argc, char *argv[])
{
	static char options[] = "-ofsname=floor,allow_other,default_permissions,nosuid,nodev,"
				"noexec,noatime";
	char *words[] = { argv[0], options, NULL };
	struct fuse_args args = FUSE_ARGS_INIT(2, words);
	struct fuse_session *session;
	int failed = 1;

	if (argc != 2)
		return 2;
	session = fuse_session_new(&args, &operations, sizeof operations, NULL);
	if (!session)
		return 1;
	if (!fuse_set_signal_handlers(session) && !fuse_session_mount(session, argv[1])) {
		failed = fuse_session_loop(session) < 0;
		fuse_session_unmount(session);
	}
	fuse_session_destroy(session);
	return failed;
}
