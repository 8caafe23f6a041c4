"""Linux network namespaces as directories: the map of the house.

Read this first. It says what a request passes on its way, which threads there are and what each
may do, what is promised, and what the words mean. CONTRIBUTING.md says how to add something.

The law: **`fuse` and `tree` know `node`, not each other; `netns` knows none of them; `linux`
knows nothing of ours** (tests/node/test_law.py).

    cli, config, permissions    the command line as plain data
    daemon, logs                fork, start, readiness, log lines
    fuse/                       the protocol: requests, node IDs, the mount, worker threads
                                (what each user may have of all that: `shares`, `listings`,
                                and `turns`, in which workers serve users)
    node                        the vocabulary between the two: Directory, File, Link, Handle
    tree/                       what the mount shows, and to whom (`allowance`: how long a user
                                may keep others waiting)
    netns/                      what network namespaces are: names, owners, members, holders
    jobs                        one call on a worker thread; entering a namespace; giving up;
                                results that many share
    stats                       requests counted, and why the last refused change failed
    linux/                      system calls that Python does not have

**A request's way**, `mkdir /mnt/netnsfs/blue`:

1. The kernel checks permissions from the modes that it was told (default_permissions), and
   queues a LOOKUP, which finds nothing, and a MKDIR at /dev/fuse. pyfuse3 reads them and calls
   the handlers of `fuse.operations`, on the event loop.
2. The handler finds the node of the parent (`fuse.nodes`): the root of the tree. A change is
   made on a worker thread (`fuse.pool`), as a `Job`.
3. `tree.root.Root.mkdir` decides to whom the new name belongs (`permissions`) and calls
   `netns.names.Names.create`.
4. There, unless a spare is at hand, unshare(2) makes the namespace. open_tree(2) makes a mount
   of its file, open(2) the placeholder. The owner is written on it, and move_mount(2) mounts
   the one on the other. From now on everybody sees the name, with every tool.
5. The thread goes back to its own namespace, the job ends, the event loop wakes, and the
   handler answers with the attributes of the new directory.

A LOOKUP of a mounted name that is known already stays on the event loop: `Root.lookup` finds
the directory that it made before and asks `netns.rundir` whether anything has changed since. If
nothing has, that is one poll(2).

**Threads.** The *event loop* runs all handlers. It must never wait for anything but requests
and results: what the kernel has at hand is fine, a lock that others may hold is not. *Workers*
(`netnsfs-worker`) make the calls that may wait, for at most 10 s each. They may enter a
namespace, inside `jobs.visit()` only, and a thread that cannot come back ends. Threads of
their own follow a symbolic link (`netnsfs-link`), make spares (`netnsfs-spares`), probe a
mount at the start (`netnsfs-probe`), close what users have open in a namespace whose last name
somebody removes (`netnsfs-cut`), tell whoever polls that members come and go
(`netnsfs-population`), wait for the end of the others in a mount namespace of a
user's own (`netnsfs-alone`), and enter a namespace for whoever may not (`netnsfs-visit`,
`jobs.on_own_thread`). The last one (`netnsfs-events`) keeps the *teller* at work: a
process that repeats in the mount what others do with names, so that the kernel tells who
watches the mount (inotify(7)). `fuse.told` answers it. A thread could not do that: one that
waits for a mount of its own process cannot be killed, and so neither could the daemon.

Before its first call that may wait, a function calls `may_block()`, which raises `WouldBlock`
on the event loop; the adapter then makes the same call again on a worker. This is how the
kernel walks paths: first without locks (RCU), and again with them when that ends in -ECHILD. So
**everything before `may_block()` runs twice**, and must do no harm when it does.

A job whose client is told ETIMEDOUT ends at its next `commit()`, the point before anything that
others can see, and undoes what it has begun.

**Promised.** All state is in the kernel: the daemon can be killed at any instant, no namespace
is lost, and the next one detaches the dead mount and sees everything. (A kill can leave a
stale name, or both names of a rename.) No client waits for ever: each wait has a limit. No
thread stays in a foreign namespace. No descriptor that keeps a namespace alive is kept after
the operation or the open file that needed it. Nothing that the daemon waits for may touch its
own mount: it would wait for itself. Each lookup shows what is true when it starts.

**Words.**

- *namespace*: a network namespace. *Inode number*: of its file on nsfs; may be reused once the
  namespace is gone. *ID*: 64 bits, never reused. *nsid*: what one namespace calls another.
- *run directory*: /run/netns. *Name*: an entry of it. *Placeholder*: the empty file of a name,
  which the namespace's file is mounted on. *Stale name*: one that is no network namespace.
- *mark*: identity of what stands under a name at one moment. *Stamp*: an object that stays
  the same for as long as nothing in the run directory changes, for comparison only.
- *home*: where a namespace is found: a name, or a holder.
- *member*: a process with a thread inside. *Holder*: whatever keeps a namespace alive.
- *owner*: user, group and modes that a name was given. *Caller*: the thread that asks.
- *node*: anything with a name in the mount. *Handle*: an open file of it.
- *spare*: a namespace that was made ahead.
"""
