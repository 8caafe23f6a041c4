"""Programs that are run to their end."""

import os
import shutil
import subprocess
import sys
from functools import cache


def run(*words: str) -> None:
    """Run a program to its end, with as little around it as a shell needs."""
    pid = os.posix_spawn(words[0], words, os.environ)
    if os.waitpid(pid, 0)[1]:
        sys.exit(f"bench: {' '.join(words)} has failed")


def command(*words: str, text: str | None = None, check: bool = True) -> str:
    """Run a program to its end and return what it prints."""
    done = subprocess.run(words, input=text, check=check, stdout=subprocess.PIPE, text=True)
    return done.stdout


@cache
def tool(name: str) -> str:
    """The path of a program."""
    return shutil.which(name) or name


def ip_netns(name: str) -> None:
    """Make a namespace and remove it, by two programs."""
    command(tool("ip"), "netns", "add", name)
    command(tool("ip"), "netns", "del", name)


def for_each(size: int, *words: str) -> None:
    """Run a program for each of the first namespaces: NAME in its words is the name."""
    for number in range(size):
        command(*(f"{number:04d}" if word == "NAME" else word for word in words))
