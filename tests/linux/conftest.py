"""System calls and what /proc tells, without anything of netnsfs: the lowest folder.

Each module has a test file of its own name but `library`, which makes the calls of all others:
what they return and raise is what it made of it; `pidfd_files_child`, the program of
`pidfd_files`; and `rtnetlink`, numbers that tests/netns/test_interfaces.py uses, with ip(8) as
the other side.
"""
