"""How the files of a namespace get at it, and who may open them."""

from collections.abc import Hashable

from netnsfs import linux
from netnsfs.jobs import may_block
from netnsfs.netns.nsfs import Namespace
from netnsfs.node import Caller
from netnsfs.permissions import ROOT, Owner, Permissions
from netnsfs.tree.callers import (
    CAP_DAC_READ_SEARCH,
    CAP_NET_ADMIN,
    require_capability,
    require_writer,
)
from netnsfs.tree.open_files import OpenFiles
from netnsfs.tree.refs import NamespaceRef


class NamespaceAccess:
    """What everything below a namespace's directory asks for.

    Args:
        key: of the namespace's directory.
        namespace: which.
        ref: where it was found.
        permissions: to whom it belongs unless it was given to somebody.
        opened: where open files are kept.

    Attributes:
        ref: where it was last found.
        Others: as the arguments.
    """

    def __init__(
        self,
        key: Hashable,
        namespace: Namespace,
        ref: NamespaceRef,
        permissions: Permissions,
        opened: OpenFiles,
    ) -> None:
        self.key = key
        self.namespace = namespace
        self.ref = ref
        self.permissions = permissions
        self.opened = opened

    @property
    def change_cookie(self) -> Hashable:
        """See `Node.change_cookie`."""
        return self.ref.change_cookie()

    def current_owner(self) -> Owner:
        """The owner of the namespace."""
        return self.ref.owner() or self.permissions.default_owner()

    def file_attributes(self, mode: int, delegated: bool = True) -> tuple[int, int, int]:
        """What a file shows.

        Args:
            mode: permission bits that it has by itself.
            delegated: whether an owner of the namespace may write it; else only root.

        Returns:
            Permission bits, user ID, group ID.
        """
        owner = self.current_owner() if delegated else ROOT
        return self.permissions.file_attributes(mode, owner)

    def require_may_open(self, caller: Caller, writes: bool) -> None:
        """Refuse a caller who may not open a file.

        A namespace without a name may be the initial one, which user ID 0 alone does not make
        writable. And not everybody who is here has come through `unnamed`: a file handle
        (open_by_handle_at(2)) or a current directory that was handed on leads here too.

        Args:
            caller: who.
            writes: the file is opened for writing.

        Raises:
            OSError: EACCES.
        """
        if self.ref.public:
            if writes:
                require_writer(self.current_owner(), caller, self.ref.name)
            return
        may_block()
        require_capability(caller, CAP_DAC_READ_SEARCH, self.ref.name)
        if writes:
            require_capability(caller, CAP_NET_ADMIN, self.ref.name)

    def require_present(self) -> None:
        """Make sure that the namespace is still there.

        Raises:
            OSError: ENOENT.
        """
        self.ref.require_present(self.namespace)

    def is_reachable(self) -> bool:
        """Whether the namespace is still to be seen where it was found, or under a name.

        Raises:
            OSError: that cannot be found out.
        """
        return self.ref.is_reachable(self.namespace)

    def enter_namespace(self) -> None:
        """Move the calling thread, inside `restoring_namespace()`, into the namespace.

        Raises:
            OSError: ENOENT if it cannot be found any more.
        """
        with self.held_open() as fd:
            linux.setns(fd, linux.CLONE_NEWNET)

    def held_open(self) -> linux.closing_fd:
        """A descriptor of the namespace, until the block ends.

        Raises:
            OSError: ENOENT if it cannot be found any more.
        """
        return linux.closing_fd(self.ref.open_namespace(self.namespace))
