#!/usr/bin/python3 -I
"""The program `netnsfs`, with the libraries that its package carries."""

import sys

sys.path.insert(0, "/usr/lib/netnsfs")

from netnsfs.__main__ import main

sys.exit(main())
