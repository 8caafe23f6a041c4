"""Network namespaces without FUSE, with ip-netns(8) and lsns(8) as the other side.

Without a file of their own name:
- `holders`: tests/mount/test_names.py. What holds a namespace is made by other processes, and
  seen best where it is shown.
- `owners`: tests/mount/test_permissions.py. An owner matters where somebody is refused.
"""
