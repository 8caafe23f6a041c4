"""Network namespaces without FUSE, with ip-netns(8) and lsns(8) as the other side.

Without a file of their own name:
- `passes`, `kernel_pass`, `proc_pass`: test_tasks.py, which makes the same tests with both
  passes, and compares them. More are in tests/mount/test_names.py.
- `events_child`, the program of `events`: tests/mount/test_events.py. It needs a mount.
- `owners`: tests/mount/test_permissions.py. An owner matters where somebody is refused.
"""
