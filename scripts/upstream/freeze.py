"""How often a client that is killed stops the whole server. Run as root.

The server does other work, 50 ms at a time, and tells by a pipe that it is alive. Clients are
killed while they wait for a request. When the server says nothing for a second, it is frozen,
all threads of it; the next request of anybody, which this program then makes, wakes it.
"""

import os
import random
import select
import signal
import time

import trio
from smallest import mounted

CLIENTS = 100
WORK_SECONDS = 0.05
SILENCE_SECONDS = 1.0

alive, tell = os.pipe()


async def work() -> None:
    while True:
        time.sleep(WORK_SECONDS)
        os.write(tell, b"x")
        await trio.lowlevel.checkpoint()


def kill_a_client(path: str) -> None:
    pid = os.fork()
    if not pid:
        os.stat(path)
        os._exit(0)
    time.sleep(random.uniform(0, WORK_SECONDS))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def is_frozen() -> bool:
    for _ in range(3):
        if not select.select([alive], [], [], SILENCE_SECONDS)[0]:
            return True
        os.read(alive, 65536)
    return False


def main() -> None:
    frozen = 0
    with mounted(work) as (mount_point, _):
        for _ in range(CLIENTS):
            kill_a_client(os.path.join(mount_point, "foo"))
            if is_frozen():
                frozen += 1
                os.stat(os.path.join(mount_point, "foo"))
    print(f"{CLIENTS} clients killed: the server froze {frozen} times")


if __name__ == "__main__":
    main()
