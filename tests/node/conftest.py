"""What needs neither a namespace nor a mount: the command line, texts, who imports whom.

Without a file of their own name:
- `node`: tests/fuse/test_operations.py asks a tree made of it.
- `limits`: test_man.py compares the page with it.
- `permissions`: tests/mount/test_permissions.py has its table beside what it leads to.
- `daemon`, `logs`: tests/mount/test_life.py, tests/system/test_program.py and test_systemd.py.
  They are what becomes of the process, and that takes one.
- `last_process`: tests/system/test_rootless.py. Who is alone has a mount namespace of its own.
- `bpf_objects`: tests/system/test_install.py, for what was built.
- `instances`: tests/system/test_mount8.py. It is what mount(8) is told when it asks twice.
"""
