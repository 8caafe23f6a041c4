"""Who may do what.

The kernel decides, from mode and owner of what is in the mount (default_permissions). What it
is told is decided here, and so is the little that mode bits cannot say.

1. Directories belong to root, mode 0755, unless the options of the mount say otherwise. Who
   may write the mount point may make, rename and remove namespaces.
2. A namespace that was given to somebody (chown, chmod, mkdir -m) has the owner and mode that
   it was given. Its writable files, the sysctls among them, belong to the same owner; a class
   of users may write them if root let it write the directory, and it may read the file.
3. The writable files of any other namespace are written by the owner that the options name,
   root if none, and by those whom fmask (or umask) lets. Nobody but root can let others in than
   those. A namespace without a name belongs to root, whatever the options say: it may be the
   initial one.
4. The daemon may open more than its callers may. So what makes it open something that the
   caller names, or tells what only the daemon can see, is for callers with the daemon's own
   capabilities, in the daemon's own user namespace: user ID 0 alone would make a root without
   capabilities, in a container that has the mount, as powerful as the daemon. That is: ln -s,
   mv of a namespace without a name, the target of its `ns` link, all of `unnamed`, and holders.
5. Process IDs that the daemon's /proc hides (hidepid, proc(5)) are shown to those callers,
   and to the owner of the process. The counters of a namespace that not everyone may look into
   are shown to users who may read everything.
"""

import errno
from dataclasses import dataclass
from typing import NamedTuple

from netnsfs.node import Caller

DMASK = FMASK = 0o022


class Owner(NamedTuple):
    """Who owns a namespace, and with which permission bits.

    Attributes:
        uid: user ID.
        gid: group ID.
        mode: permission bits of its directory.
        write: permission bits for writing of its files.
    """

    uid: int
    gid: int
    mode: int
    write: int


ROOT = Owner(0, 0, 0o755, 0o200)
CLOSED = Owner(0, 0, 0, 0)
"""Of what nothing is known: no bit is the only answer that lets nobody in."""


def delegated_owner(uid: int, gid: int, mode: int) -> Owner:
    """The owner of a namespace that root gives to somebody."""
    return Owner(uid, gid, mode, mode & 0o222)


@dataclass(frozen=True, slots=True)
class Permissions:
    """What the options of the mount say.

    Attributes:
        uid: user ID of the owner.
        gid: group ID.
        dmask: permission bits that directories lack.
        fmask: permission bits that files lack.
    """

    uid: int = 0
    gid: int = 0
    dmask: int = DMASK
    fmask: int = FMASK

    def default_owner(self) -> Owner:
        """The owner of a namespace that was given to nobody."""
        return Owner(self.uid, self.gid, 0o777 & ~self.dmask, 0o222 & ~self.fmask)

    def owner_at_birth(self, mode: int, caller: Caller) -> Owner | None:
        """The owner of a namespace that is made with a mode (mkdir -m).

        A caller other than root can only make the mode stricter.

        Returns:
            None for the owner that any other new namespace has.
        """
        # The kernel does not tell mkdir from mkdir -m. With a dmask= other than the usual one,
        # a mode that the umask alone explains asks for nothing.
        plain = self.dmask != DMASK and mode == 0o777 & ~caller.umask
        usual = self.default_owner().mode
        if caller.uid != 0:
            mode &= usual
        if plain or mode == usual:
            return None
        asked = delegated_owner(self.uid, self.gid, mode)
        if caller.uid == 0:
            return asked
        return self._without_new_writers(asked, self.default_owner())

    def owner_when_given(
        self,
        before: Owner,
        mode: int | None,
        uid: int | None,
        gid: int | None,
        caller: Caller,
    ) -> Owner:
        """The owner of a namespace after a chmod(2) or chown(2).

        Args:
            before: the owner so far.
            mode: the new permission bits of the directory; None, as for the other two, to leave
                them as they are.
            uid: the new user ID.
            gid: the new group ID.
            caller: who asks.

        Raises:
            OSError: EPERM if the namespace is not the caller's.
        """
        if caller.uid not in (0, before.uid):
            raise PermissionError(errno.EPERM, "it belongs to somebody else")
        after = before._replace(
            uid=before.uid if uid is None else uid, gid=before.gid if gid is None else gid
        )
        if mode is not None:
            after = after._replace(mode=mode, write=mode & 0o222)
        if caller.uid == 0:
            # Whom root gives it to may write, whatever fmask= says.
            own = 0 if uid is None else after.mode & 0o200
            return after._replace(write=after.write | own)
        if after.gid != before.gid:
            # Root chose the members of another group.
            after = after._replace(mode=after.mode & ~0o020, write=after.write & ~0o020)
        return self._without_new_writers(after, before)

    def _without_new_writers(self, asked: Owner, before: Owner) -> Owner:
        return asked._replace(write=asked.write & (before.write | self.default_owner().write))

    def file_attributes(self, mode: int, owner: Owner) -> tuple[int, int, int]:
        """What a file shows.

        Args:
            mode: permission bits that it has by itself.
            owner: to whom the namespace belongs.

        Returns:
            Permission bits, user ID, group ID.
        """
        shown = mode & ~0o222 & ~self.fmask
        # What not even root may write belongs to root.
        if not mode & 0o200:
            return shown, 0, 0
        # A user who may read a file can be allowed to write it: the bits for reading are moved
        # to where those for writing are.
        writers = (mode & 0o444) >> 1 | mode & 0o222
        return shown | owner.write & writers, owner.uid, owner.gid
