"""BPF iterators: programs that the kernel runs for each of its objects, and what they write.

They come from an object file that clang has compiled, and are loaded by the library libbpf
(version 1), which fits them to the kernel that runs. https://docs.kernel.org/bpf/bpf_iterators.html
"""

import ctypes
import errno
import os
import threading
import weakref
from collections.abc import Iterable
from contextlib import ExitStack

from netnsfs.linux.library import error_of_call

# From version 1 on, its functions return NULL or a negative number and set errno, as the C
# library does. Before, an error was a pointer.
_LIBRARY = "libbpf.so.1"
# The kernel's own buffer has 32 KiB (kernel/bpf/bpf_iter.c): one read takes all that is in it.
_READ = 1 << 16
# Global variables that start as zeros are in this section, and libbpf makes it a map.
_VARIABLES = b".bss"


class Iterators:
    """The iterators of an object file, ready to run. For any thread.

    Args:
        path: of the object file.
        names: of the iterators, which are programs in it.

    Attributes:
        close: call it to unload them.

    Raises:
        OSError: the kernel does not allow it or lacks something, or there is no library.
    """

    def __init__(self, path: str, names: Iterable[str]) -> None:
        library = _library()
        self._create = library.bpf_iter_create
        self._update = library.bpf_map_update_elem
        self._lock = threading.Lock()
        with ExitStack() as kept, ExitStack() as opened:
            loaded = library.bpf_object__open_file(os.fsencode(path), None)
            if not loaded:
                raise error_of_call(os.fsencode(path))
            # The library's object can go: the kernel keeps what was loaded for as long as a
            # descriptor of it is open.
            opened.callback(library.bpf_object__close, loaded)
            if library.bpf_object__load(loaded):
                raise error_of_call(os.fsencode(path))
            self._variables = _variables(library, loaded)
            kept.callback(os.close, self._variables)
            self._links: dict[str, int] = {}
            for name in names:
                self._links[name] = _attach(library, loaded, name)
                kept.callback(os.close, self._links[name])
            self.close = weakref.finalize(self, kept.pop_all().close)

    def run(self, name: str, variables: bytes) -> bytes:
        """Run an iterator to its end, and return what it writes.

        Args:
            name: of the iterator.
            variables: what the global variables of the object are while it runs.

        Raises:
            OSError: the machine is short of something.
        """
        # The variables belong to the object: a second run would change those of the first.
        with self._lock:
            # The section is a map with one entry, whose key is 0.
            if self._update(self._variables, b"\0" * 4, variables, 0):
                raise error_of_call()
            fd = self._create(self._links[name])
            if fd < 0:
                raise error_of_call()
            try:
                return b"".join(iter(lambda: _read(fd), b""))
            finally:
                os.close(fd)


def _read(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, _READ)
        except BlockingIOError:
            # A million objects were passed over without any output (bpf_iter.c). The iterator
            # goes on from there.
            continue


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY, use_errno=True)
    except OSError as error:
        raise FileNotFoundError(errno.ENOENT, str(error), _LIBRARY) from None
    # Without these types ctypes would take a pointer for an int, and cut off its upper half.
    pointer = ctypes.c_void_p
    library.bpf_object__open_file.restype = pointer
    library.bpf_object__open_file.argtypes = (ctypes.c_char_p, pointer)
    library.bpf_object__load.argtypes = (pointer,)
    library.bpf_object__close.argtypes = (pointer,)
    library.bpf_object__close.restype = None
    library.bpf_object__find_program_by_name.restype = pointer
    library.bpf_object__find_program_by_name.argtypes = (pointer, ctypes.c_char_p)
    library.bpf_object__find_map_fd_by_name.argtypes = (pointer, ctypes.c_char_p)
    library.bpf_program__attach_iter.restype = pointer
    library.bpf_program__attach_iter.argtypes = (pointer, pointer)
    library.bpf_link__fd.argtypes = (pointer,)
    library.bpf_link__destroy.argtypes = (pointer,)
    library.bpf_map_update_elem.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_uint64,
    )
    # No messages: the library complains on standard error about features that a kernel lacks.
    library.libbpf_set_print.argtypes = (pointer,)
    library.libbpf_set_print.restype = pointer
    library.libbpf_set_print(None)
    return library


def _variables(library: ctypes.CDLL, loaded: int) -> int:
    fd = library.bpf_object__find_map_fd_by_name(loaded, _VARIABLES)
    if fd < 0:
        raise error_of_call()
    return _kept(fd)


def _attach(library: ctypes.CDLL, loaded: int, name: str) -> int:
    program = library.bpf_object__find_program_by_name(loaded, name.encode())
    link = program and library.bpf_program__attach_iter(program, None)
    if not link:
        raise error_of_call()
    try:
        return _kept(library.bpf_link__fd(link))
    finally:
        # That closes the library's descriptor. Ours keeps the link, and so the program.
        library.bpf_link__destroy(link)


def _kept(fd: int) -> int:
    """A descriptor that stays open when the library closes its own."""
    return os.dup(fd)
