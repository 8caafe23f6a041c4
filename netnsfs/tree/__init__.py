"""What the mount shows, and to whom.

    root                        the mount point: the names
    directories, refs           the directories of namespaces; where each namespace is found
    namespace                   THE TABLE of files, and a namespace's directory
    interfaces                  `links`: the interfaces, with a table of their own
    views, sysfs, kernel_tree   `net` and `sysctl`; what sysfs shows; what both have in common
    ctldir                      .netnsfs; `numbers`, `metrics` and `topology` are in it
    topology, graphviz          what connects namespaces, and how that is drawn
    nsid_resolver               from an nsid to a directory, for `peer`
    open_files                  open files of procfs and sysfs, and how they are revoked
    access, callers             how files get at a namespace; what a caller may see and do
    delegation                  which of the kernel's files an owner may write
    coverage                    what a text leaves out that cannot be read, or not in time
    token_bucket                a rate limit for each user

Nodes are those of `netnsfs.node`: nothing here knows FUSE.
"""
