"""The protocol: requests of the kernel in, answers out.

    session                     the life of one mount, and the only user of pyfuse3's session
    mounting                    what is at the mount point already; being the only netnsfs there
    operations                  the handlers: node numbers in, attributes and errno out
    nodes                       the nodes that the kernel knows, by number and by key
    listings                    open directories
    pool, fair_queue, quotas    worker threads; users take turns; what each user may have
    loop                        how the event loop's thread waits
    replay                      answers the process that repeats outside changes in the mount;
                                `replayer` starts it, `replayer_child` is its program
    trace                       what -d logs

What the handlers ask is a tree of `netnsfs.node`: nothing here knows a namespace.
"""
