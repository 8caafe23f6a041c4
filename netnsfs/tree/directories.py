"""The directories of the namespaces that the kernel knows."""

import threading
from weakref import WeakValueDictionary

from netnsfs.netns.nsfs import Namespace
from netnsfs.tree.namespace import FIRST, NO_NAME, MountContext, NamespaceDirectory
from netnsfs.tree.refs import HolderRef, NameRef, NamespaceRef


class Directories:
    """The directories of the namespaces that the adapter, and so the kernel, knows.

    The first name under which a namespace is found has the namespace's inode number as node
    ID. A second name of it, while the first stands, is a directory of its own, and so is the
    one below `unnamed`: a directory that the kernel knows in one place and finds in another is
    ESTALE there during a rename(2) from the one to the other.

    Args:
        context: what is the same in each.
    """

    def __init__(self, context: MountContext) -> None:
        self._context = context
        # Weak: a directory is forgotten when the kernel forgets it. Nothing else must keep it.
        self._by_key: WeakValueDictionary[object, NamespaceDirectory] = WeakValueDictionary()
        self._by_name: WeakValueDictionary[bytes, NamespaceDirectory] = WeakValueDictionary()
        # Used by the event loop, and by workers.
        self._lock = threading.Lock()

    def find_by_name(self, name: bytes) -> NamespaceDirectory | None:
        """The directory under a name, if what stands there has not changed.

        Raises:
            OSError: ENOENT.
        """
        known = self._by_name.get(name)
        if known is None or not isinstance(known.ref, NameRef) or known.ref.name != name:
            return None
        return known if known.ref.leads_to(known.namespace) else None

    def get_named(self, namespace: Namespace, ref: NameRef) -> NamespaceDirectory:
        """The directory of a namespace that was found under a name."""
        gone = None
        while True:
            with self._lock:
                node = self._get_or_make(namespace, ref, FIRST)
                first = node.ref
                if not isinstance(first, NameRef) or first.name == ref.name or first is gone:
                    return self._remember_ref(node, ref)
            # Not with the lock: it may be a link, which takes long to follow.
            if _still_stands(first, namespace):
                with self._lock:
                    return self._remember_ref(self._get_or_make(namespace, ref, ref.name), ref)
            # If it is still the ref in the next round, it is given up for the new one.
            gone = first

    def _remember_ref(self, node: NamespaceDirectory, ref: NameRef) -> NamespaceDirectory:
        node.ref = ref
        self._by_name[ref.name] = node
        return node

    def get_unnamed(self, namespace: Namespace, ref: HolderRef) -> NamespaceDirectory:
        """The directory of a namespace that was found to have no name."""
        with self._lock:
            node = self._get_or_make(namespace, ref, NO_NAME)
            node.ref = ref
            return node

    def note_renamed(self, old: bytes, ref: NameRef) -> None:
        """Note a new name, for users who have the directory open."""
        with self._lock:
            node = self._by_name.get(old)
            if node and isinstance(node.ref, NameRef) and node.ref.name == old:
                node.ref = ref
                self._by_name[ref.name] = node

    def note_removed(self, name: bytes) -> None:
        """Take note that the kernel has removed the directory under a name.

        The kernel lets nobody into that again. If the namespace is alive and is found
        elsewhere, and somebody has the old directory open, it needs a new one.
        """
        with self._lock:
            node = self._by_name.get(name)
            if node and isinstance(node.ref, NameRef) and node.ref.name == name:
                self._by_name.pop(name)
                self._by_key.pop((node.namespace.id, node.name_key), None)

    def _get_or_make(
        self, namespace: Namespace, ref: NamespaceRef, name_key: bytes
    ) -> NamespaceDirectory:
        # By ID: the inode number may be the next namespace's already.
        key = namespace.id, name_key
        node = self._by_key.get(key)
        if node is None:
            node = self._by_key[key] = NamespaceDirectory(
                namespace, ref, self._context, name_key
            )
        return node


def _still_stands(ref: NamespaceRef, namespace: Namespace) -> bool:
    try:
        ref.require_present(namespace)
    except OSError:
        return False
    return True
