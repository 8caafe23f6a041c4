"""netnsfs among other programs: mount(8), systemd, sshfs, pip, strace, crowds, kill -9.

No module has its tests here alone but `__main__`: it is what all of them start.
"""
