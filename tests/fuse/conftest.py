"""The adapter and its threads, without a mount: requests made by hand, of trees made for it.

Without a file of their own name:
- `session`, `mounting`: tests/mount/test_session.py and test_traps.py, and
  tests/system/test_program.py. Both are about a mount.
- `replayer`, `replayer_child`, the program that it starts: tests/mount/test_replayer.py. Both
  need a mount.
- `trace`: tests/mount/test_life.py. It is what -d logs.
"""
