"""The program `netnsfs`."""

import gc
import os
import sys

from netnsfs import cli
from netnsfs.config import Failure


def main() -> int:
    """Run the command line of this process.

    Returns:
        Its exit status.
    """
    # If the standard streams are closed, no file of ours may get their numbers: messages would
    # be written into it.
    while (filler := os.open("/", os.O_PATH)) < 3:
        pass
    os.close(filler)
    try:
        config = cli.parse_arguments(sys.argv[1:])
        if config.check:
            return _check(config.mount_point)
    except Failure as failure:
        print(f"netnsfs: {failure}", file=sys.stderr)
        return failure.status
    # Imported only now: --help and wrong calls need neither trio nor libfuse.
    # There is no garbage among modules, neither while they are loaded nor later.
    gc.disable()
    from netnsfs import daemon, rootless

    gc.freeze()
    gc.enable()
    return daemon.run(config) if config.command is None else rootless.run(config)


def _check(mount_point: bytes) -> int:
    from netnsfs.fuse import mounting

    mounting.require_served(mount_point)
    return 0


if __name__ == "__main__":
    sys.exit(main())
