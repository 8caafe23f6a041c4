"""Linux network namespaces as directories: how the code is laid out.

Read this first. It says what happens to a request, which threads there are and what each may
do, what is promised, and what the words mean. CONTRIBUTING.md says how to add something, and
which rules hold.

    cli, config, permissions    the command line as plain data
    daemon, logs                fork, start, readiness, log lines
    bpf_objects                 what this netnsfs was built with
    rootless                    a command in namespaces of its own, with a mount
    instances, last_process     which netnsfs serve here; who else is in the mount namespace
    fuse/                       the protocol: requests, node IDs, the mount, worker threads, and
                                how much of each a user may have
    node                        what both of these know: Directory, File, Link, Handle
    commands                    files whose writes are commands, which may come in pieces
    tree/                       what the mount shows, and to whom (`token_bucket`: a rate limit
                                for each user)
    netns/                      what network namespaces are: names, owners, members, holders
    jobs                        one call on a worker thread; entering a namespace; giving up;
                                results that many share
    limits                      what a user may have, and how long anything may take
    stats                       requests counted, and why the last refused change failed
    linux/                      system calls that Python does not have

`fuse` and `tree` import `node`, not each other. `netns` imports none of these three. `linux`
imports nothing of netnsfs. (tests/node/test_law.py checks this.)

**What happens to a request**, `mkdir /mnt/netnsfs/blue`:

1. The kernel checks permissions by the modes that it knows (default_permissions). It queues
   a LOOKUP, which finds nothing, and a MKDIR at /dev/fuse. pyfuse3 reads them and calls the
   handlers of `fuse.operations`, on the event loop.
2. The handler finds the node of the parent (`fuse.nodes`): the root of the tree. A change is
   made on a worker thread (`fuse.pool`), as a `Job`.
3. `tree.root.Root.mkdir` decides to whom the new name belongs (`permissions`) and calls
   `netns.names.NamedNamespaces.create`.
4. There, unless a spare is at hand, unshare(2) makes the namespace. open_tree(2) makes a mount
   of its file, open(2) the placeholder. The owner is written on the placeholder, and
   move_mount(2) mounts the namespace's file on it. From now on every tool sees the name.
5. The thread goes back to its own namespace, the job ends, the event loop wakes, and the
   handler answers with the attributes of the new directory.

A LOOKUP begins on the event loop. Where nothing has changed in the run directory since the last
one, which is one poll(2), `Root.lookup` answers there with the directory that it made before,
also for a symbolic link that leads to the same namespace as before. Otherwise a worker looks.

**A call that may wait** begins with `may_block()`. On the event loop this raises `WouldBlock`,
and the adapter, `fuse.operations`, makes the same call again on a worker. So **everything
before `may_block()` runs twice**, and must do no harm when it does. (The kernel walks paths in
the same way: first without locks, and again with them when that ends in -ECHILD.) Changes go to
a worker at once.

A job that waits is in one of three states (`fuse.pool`; the times are in `limits`):

    state       at most     what ends it
    queued      30 s        a worker is free; else ETIMEDOUT, and the job is never started. A
                            change of a directory by anyone but root is never queued: EAGAIN
    running     10 s        the job ends; else ETIMEDOUT, and the job is abandoned: it ends at
                            its next `commit()`, the point before anything that others can see,
                            and undoes what it has begun
    committed   10 s more   the job ends; else ETIMEDOUT, and the job goes on alone

A signal ends no state. A client that is killed while it waits is gone when the answer comes,
and its job is carried out: only a time limit abandons a job.

**Threads.** The *event loop* runs all handlers. It waits for requests and results only: what
the kernel has at hand is fine, a lock that others may hold is not. *Workers* make the calls
that may wait. They are in five pools, so that none waits for work of another kind: lookups and
listings, during which the kernel may hold a directory's lock (locked); other reading (read);
changes of directories (mutate); writes to files (write); and the files of which a specification
says `slow` (`kill`, `routes`, `metrics`, `metrics_all`, both kinds of `topology.dot`), for
reading and writing (slow). All threads but the event loop's have a name:

    netnsfs-locked, netnsfs-read, netnsfs-mutate, netnsfs-write, netnsfs-slow
                        workers: a job at a time; may enter a namespace, but inside
                        `jobs.restoring_namespace()` only
    netnsfs-enter       enters a namespace for a thread that may not (`jobs.on_own_thread`)
    netnsfs-link        follows a symbolic link of the run directory
    netnsfs-spares      makes spares
    netnsfs-probe       at the start, asks whether what is at the mount point answers
    netnsfs-revoke      closes what is open in a namespace whose last name was removed
    netnsfs-scanner     at the start, loads the BPF programs
    netnsfs-maps        reads what processes have mapped, which they can make take long
    netnsfs-members     wakes the clients that poll a list of members
    netnsfs-last        in a user's own mount namespace, waits until no other process is in it
    netnsfs-replay      starts the *replayer*, and starts it again if it ends

The replayer is a process (`fuse.replayer_child`). It repeats in the mount what others do with
names in the run directory, so that the kernel reports these changes to watchers of the mount
(inotify(7)). `fuse.replay` answers its requests. A thread could not do that: one that waits for
a mount of its own process cannot be killed, and so neither could the daemon.

**Promised.** All state is in the kernel: the daemon can be killed at any instant, no namespace
is lost, and the next one detaches the dead mount and sees everything. (A kill can leave a
stale name, or both names of a rename.) No client waits for ever. No thread stays in a foreign
namespace: one that cannot come back ends. No descriptor that keeps a namespace alive is kept
after the operation or the open file that needed it. Nothing that the daemon waits for touches
its own mount. Each lookup shows what is true when it starts.

**Words.**

- *namespace*: a network namespace. *Inode number*: of its file on nsfs; may be reused once the
  namespace is gone. *ID*: 64 bits, never reused. *nsid*: what one namespace calls another.
- *run directory*: /run/netns. *Name*: an entry of it. *Placeholder*: the empty file of a name,
  which the namespace's file is mounted on. *Stale name*: one that is no network namespace.
- *control directory*: .netnsfs, as ZFS has .zfs.
- *identity*: tells what stands under a name at one moment. *Change cookie*: an object that
  stays the same for as long as nothing in the run directory changes, for comparison only.
- *reference*: where a namespace is found: a name, or a holder.
- *member*: a process with a thread inside. *Holder*: anything that keeps a namespace alive.
- *owner*: user, group and modes that a name was given. *Caller*: the thread that asks.
- *node*: anything with a name in the mount. *Handle*: an open file of it.
- *view*: a directory of procfs, as a thread inside of the namespace sees it: `net`, `sysctl`.
- *spare*: a namespace that was made in advance.
- *replay*: to repeat in the mount what others do. *Reported*: what watchers of the mount heard.
"""
