"""What network namespaces are, without any file system.

    names, rundir, symlinks     named namespaces; the run directory and its changes; its links
    owners                      to whom a name was given
    nsfs, nsid                  namespace files and their IDs; the numbers between namespaces
    spares                      namespaces made in advance
    tasks                       members and holders, from one pass of a `scanner`: in the kernel
                                (`bpf_scanner`) or through /proc (`proc_scanner`)
    mount_holders               mounts that hold a namespace, in all mount namespaces
    populated_events            when the first member comes and the last one goes
    signals                     signals to all members
    interfaces                  interfaces as rtnetlink(7) shows them; `interface_changes` and
                                `addresses` change them
    routes                      the main routing table; `route_text` prints, `route_words` reads

Functions take a descriptor of a namespace, or a name. They raise OSError.
"""
