"""What a user may have, and how long anything may take: one table, with units and reasons.

Each user but root has a limit, and all of them have one in total, because one person may have
many user IDs (newuidmap(1)). What the others may not take is left for root. The man page tells
the limits that a user can reach (test_man).
"""

# Seconds. A client that waits for FUSE cannot be killed, so that each wait ends.

HANDLER_SECONDS = 10.0
"""How long a handler waits for a worker, and once more if the worker is past its commit."""

QUEUE_SECONDS = 30.0
"""How long a handler waits for a worker to be free. A change of a directory does not wait."""

LISTING_SECONDS = 1.0
"""After this time the entries found so far are the answer. The kernel asks for the others."""

FOLLOW_SECONDS = 1.0
"""How long a symbolic link of the run directory may take to be followed."""

LOCK_SECONDS = 5.0
"""How long another process may keep a lock that is waited for: iproute2, another daemon."""

GRACE_SECONDS = 2.0
"""How long requests in flight may go on after a signal to stop."""

# Threads and tasks.

WORKERS = {"locked": 4, "read": 4, "mutate": 8, "write": 4, "slow": 2}
"""How many threads each pool has (see `fuse.pool.Pools`). One of each is for root.

More threads make namespaces no faster: the kernel makes them one at a time. Scans of /proc
share the interpreter. Changes of directories do not wait, so there are more threads for them.
"""

MAX_HUNG = 64
"""How many jobs of a pool may hang, each with a thread, before they keep others waiting."""

MAX_TASKS = 1000
"""How many requests are answered at the same time. A handler that waits is a task of pyfuse3's,
whose default of 99 would let 99 slow requests stop all others."""

WAITING_PER_USER = 100
WAITING_TOTAL = 700
"""How many handlers may wait. The rest of `MAX_TASKS` is for root. Beyond: EAGAIN."""

# Open files.

FILES_PER_USER = 4096
"""How many open files, if the daemon may have that many descriptors. Beyond: EMFILE."""

LISTINGS_PER_USER = 4096
LISTINGS_TOTAL = 32768
"""How many open directories. Beyond: EMFILE."""

TEXT_PER_USER = 64 << 20
TEXT_TOTAL = 256 << 20
"""How many bytes of text a user's open files and directories may keep. Beyond: EMFILE."""

MAX_COMMAND = 1 << 20
"""How many bytes of a command may wait for its end in an open file. Beyond: E2BIG."""

SHARED_TEXTS_PER_USER = 16
"""How many open files of a text that many share, such as `metrics`. Beyond: EMFILE."""

MAX_RETRYING = 1000
"""How many callers may be about to look a file up again."""

# Work. The kernel locks a file while it is written, and more than that for as long as it works.

SIGNAL_SECONDS = 5.0
"""How long one write to `kill` looks for new processes. A user's writes may take as much before
they count. Beyond: EAGAIN."""

SIGNAL_RATE = 0.1
"""How many seconds for signals a user gets back in a second."""

WRITE_BURST = 5.0
"""How many seconds a user may write to files of interfaces before it counts. Beyond: EAGAIN."""

WRITE_RATE = 0.1
"""How many of these seconds a user gets back in a second."""
