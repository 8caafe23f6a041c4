"""Linux, as far as Python's os module does not show it. Nothing here knows what netnsfs is.

- `library`: how a system call is made
- `mounts`: mounts, and mountinfo
- `files`: looks at files that never wait, paths that never enter a file system
- `namespaces`: entering namespaces, and telling them apart
- `events`: inotify(7) and poll(2)
- `requirements`: what the kernel must have
- `process`: capabilities, memory and signals of this process, and what tasks share
- `bpf`: BPF programs, which the kernel runs over its objects, or when something happens
- `pidfd_files`: open files of other processes, looked at by a child process
- `interfaces`: ioctl(2) on network interfaces
- `netlink`: sockets of rtnetlink(7); `rtnetlink`: its numbers and structures

Callers write `linux.setns(...)`: all public names are here, but for those of these two.
"""

from netnsfs.linux.bpf import Iterators, Probes
from netnsfs.linux.events import (
    IN_ATTRIB,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_MASK_ADD,
    IN_MODIFY,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_Q_OVERFLOW,
    Inotify,
    Poll,
)
from netnsfs.linux.files import (
    FOLLOW,
    LOCAL_FILESYSTEMS,
    CrossedMountError,
    Stat,
    device_of,
    filesystem_magic,
    lock,
    locked,
    open_cached,
    open_no_xdev,
    rename_noreplace,
    statx,
    statx_cached,
    statx_packed,
    statx_raw,
    unpack_statx,
)
from netnsfs.linux.interfaces import (
    interface_speed,
    rename_interface,
)
from netnsfs.linux.library import (
    RESOURCE_ERRNOS,
    closing_fd,
    reraise_if_resource,
)
from netnsfs.linux.mounts import (
    FIRST_UNIQUE_MOUNT,
    MNT_DETACH,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    MS_SHARED,
    UMOUNT_NOFOLLOW,
    Mount,
    bind_mount,
    check_deadline,
    detach,
    forget_unused,
    make_private,
    make_writable,
    mount,
    mount_at,
    mount_namespace_id,
    mount_number,
    mount_with_id,
    mounts,
    move_mount,
    namespace_mounts,
    namespace_mounts_in,
    new_mount,
    open_tree,
    umount,
)
from netnsfs.linux.namespaces import (
    CLONE_NEWNET,
    in_initial_pid_namespace,
    in_initial_user_namespace,
    is_net_namespace,
    is_owned_here,
    namespace_id,
    netns_cookie,
    open_namespace_by_id,
    setns,
    unshare,
)
from netnsfs.linux.pidfd_files import mapped_sockets, namespace_of_file, namespaces_of_files
from netnsfs.linux.process import (
    CAP_SYSLOG,
    are_one_file,
    drop_capability,
    effective_capabilities,
    give_memory_back,
    name_thread,
    only_interrupt,
    share_descriptors,
)
from netnsfs.linux.requirements import find_missing_call
