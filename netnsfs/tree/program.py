"""Where the program is that `exec` leads to: it runs others in a namespace.

It is a program of its own (netnsfs/data/netns-exec.c), compiled when netnsfs is built, because
a capability can be given to a file, and not to a script.
"""

import os
import sys
from pathlib import Path

import netnsfs

_PROGRAM = "netnsfs/netns-exec"


def installed() -> bytes:
    """The path of the program; empty if it was not compiled."""
    # In a virtual environment, and in the Debian package. Else pip(1) may have put it below
    # another prefix than Python is in: PREFIX/lib/python3.X/site-packages/netnsfs is ours.
    places = [Path(sys.prefix, "lib"), *Path(netnsfs.__file__).parents[3:4]]
    found = (place / _PROGRAM for place in places)
    return next((bytes(path) for path in found if os.access(path, os.X_OK)), b"")
