"""Run a program for which bpf(2) is refused: without_bpf.py PROGRAM [ARGUMENT...]."""

import errno
import os
import sys

from without_call import refuse

if __name__ == "__main__":
    refuse("bpf", errno.EPERM)
    os.execvp(sys.argv[1], sys.argv[1:])
