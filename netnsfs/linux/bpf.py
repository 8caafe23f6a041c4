"""BPF programs: iterators, which the kernel runs for each of its objects, or which go through
them by themselves; and probes, which it runs when something happens; and what they write.

They come from an object file that clang has compiled, and are loaded by the library libbpf
(version 1), which fits them to the kernel that runs. https://docs.kernel.org/bpf/bpf_iterators.html
and https://docs.kernel.org/bpf/ringbuf.html
"""

import ctypes
import errno
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from netnsfs.linux.library import error_of_call

# From version 1 on, its functions return NULL or a negative number and set errno, as the C
# library does. Before, an error was a pointer.
_LIBRARY = "libbpf.so.1"
# The kernel's own buffer has 32 KiB (kernel/bpf/bpf_iter.c): one read takes all that is in it.
_READ = 1 << 16
# Global variables that start as zeros are in this section, and libbpf makes it a map.
_VARIABLES = b".bss"
# What the list of an open-coded iterator begins with.
_SIZE = 8
# ring_buffer_sample_fn: context, data, size.
_TAKER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Iterators:
    """The iterators of an object file, ready to run. For any thread.

    Args:
        path: of the object file.
        names: of the iterators, which are programs in it.
        open_coded: of one that goes through the objects by itself
            (https://docs.kernel.org/bpf/bpf_iterators.html). It writes to the object's map
            `listed`: the size in bytes of what follows, in 64 bits, and that. If there is none:
            nothing.
        table: a map of the object that `run` puts entries into, or nothing.

    Attributes:
        close: call it to unload them.

    Raises:
        OSError: the kernel does not allow it or lacks something, or there is no library.
    """

    def __init__(
        self, path: str, names: Iterable[str], open_coded: str = "", table: str = ""
    ) -> None:
        library = self._library = _library()
        self._create = library.bpf_iter_create
        self._lock = threading.Lock()
        wanted = {*names, open_coded}
        with ExitStack() as kept, _loaded(library, path, wanted) as loaded:
            self._variables = _map(library, loaded, _VARIABLES)
            kept.callback(os.close, self._variables)
            self._links: dict[str, int] = {}
            for name in names:
                program = _program(library, loaded, name)
                link = library.bpf_program__attach_iter(program, None)
                self._links[name] = _link(library, link)
                kept.callback(os.close, self._links[name])
            if open_coded:
                found = _program(library, loaded, open_coded)
                self._open_coded = _kept(library.bpf_program__fd(found))
                kept.callback(os.close, self._open_coded)
                self._listed = kept.enter_context(_shared_memory(library, loaded, b"listed"))
            if table:
                self._table = _map(library, loaded, table.encode())
                kept.callback(os.close, self._table)
            self.close = weakref.finalize(self, kept.pop_all().close)

    def run_open_coded(
        self, variables: bytes, keys: Sequence[bytes] = (), value: bytes = b""
    ) -> bytes | None:
        """Run the one that goes through the objects by itself.

        Args:
            variables: as for `run`.
            keys: as for `run`.
            value: as for `run`.

        Returns:
            What it writes; None if the kernel has no such iterators, or if it is too much.

        Raises:
            OSError: the machine is short of something.
        """
        with self._lock:
            self._prepare(variables, keys, value)
            if self._library.bpf_prog_test_run_opts(self._open_coded, None):
                raise error_of_call()
            end = _SIZE + int.from_bytes(self._listed[:_SIZE], sys.byteorder)
            return self._listed[_SIZE:end] if end <= len(self._listed) else None

    def run(
        self, name: str, variables: bytes, keys: Sequence[bytes] = (), value: bytes = b""
    ) -> bytes:
        """Run an iterator to its end, and return what it writes.

        Args:
            name: of the iterator.
            variables: what the global variables of the object are while it runs.
            keys: what is put into the table before, all of one size.
            value: the value of each.

        Raises:
            OSError: the machine is short of something.
        """
        # The variables belong to the object: a second run would change those of the first.
        with self._lock:
            self._prepare(variables, keys, value)
            fd = self._create(self._links[name])
            if fd < 0:
                raise error_of_call()
            try:
                return b"".join(iter(lambda: _read(fd), b""))
            finally:
                os.close(fd)

    def _prepare(self, variables: bytes, keys: Sequence[bytes], value: bytes) -> None:
        _set_variables(self._library, self._variables, variables)
        if not keys:
            return
        count = ctypes.c_uint32(len(keys))
        values = value * len(keys)
        update = self._library.bpf_map_update_batch
        if update(self._table, b"".join(keys), values, ctypes.byref(count), None):
            raise error_of_call()


class Probes:
    """The probes of an object file, attached until they are closed. For any thread.

    Its map `watched` has the keys that they look for, and is empty. They write to its ring
    buffer `told`.

    Args:
        path: of the object file.
        names: of the probes, which are programs in it.
        variables: what the global variables of the object are.

    Attributes:
        close: call it to detach and unload them.

    Raises:
        OSError: the kernel does not allow it or lacks something, or there is no library.
    """

    def __init__(self, path: str, names: Iterable[str], variables: bytes) -> None:
        library = _library()
        self._update = library.bpf_map_update_elem
        self._delete = library.bpf_map_delete_elem
        self._consume = library.ring_buffer__consume
        self._records: list[bytes] = []
        with ExitStack() as kept, _loaded(library, path, set(names)) as loaded:

            def keep(fd: int) -> int:
                kept.callback(os.close, fd)
                return fd

            _set_variables(library, keep(_map(library, loaded, _VARIABLES)), variables)
            self._watched = keep(_map(library, loaded, b"watched"))
            told = keep(_map(library, loaded, b"told"))
            self._take = _taker(self._records)
            self._ring = library.ring_buffer__new(told, self._take, None, None)
            if not self._ring:
                raise error_of_call()
            kept.callback(library.ring_buffer__free, self._ring)
            self._ready: int = library.ring_buffer__epoll_fd(self._ring)
            for name in names:
                program = _program(library, loaded, name)
                keep(_link(library, library.bpf_program__attach(program)))
            self.close = weakref.finalize(self, kept.pop_all().close)
            # The kernel closes them. A thread may still be reading.
            self.close.atexit = False

    def fileno(self) -> int:
        """A descriptor that can be read when something was told."""
        return self._ready

    def watch(self, key: bytes) -> None:
        """Look for a key.

        Raises:
            OSError: E2BIG if there are too many.
        """
        if self._update(self._watched, key, key, 0):
            raise error_of_call()

    def ignore(self, key: bytes) -> None:
        """Look for a key no longer, if it is looked for."""
        self._delete(self._watched, key)

    def read_records(self) -> list[bytes]:
        """The records since the last call. For one thread at a time."""
        self._consume(self._ring)
        told, self._records[:] = self._records[:], []
        return told


def _set_variables(library: ctypes.CDLL, section: int, variables: bytes) -> None:
    # The section is a map with one entry, whose key is 0.
    if library.bpf_map_update_elem(section, b"\0" * 4, variables, 0):
        raise error_of_call()


def _taker(records: list[bytes]) -> Callable[[int, int, int], int]:
    """What the library calls for each record."""

    def take(context: int, data: int, size: int) -> int:
        records.append(ctypes.string_at(data, size))
        return 0

    return _TAKER(take)


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
    library.bpf_object__next_program.restype = pointer
    library.bpf_object__next_program.argtypes = (pointer, pointer)
    library.bpf_program__name.restype = ctypes.c_char_p
    library.bpf_program__name.argtypes = (pointer,)
    library.bpf_program__set_autoload.argtypes = (pointer, ctypes.c_bool)
    library.bpf_object__find_program_by_name.restype = pointer
    library.bpf_object__find_program_by_name.argtypes = (pointer, ctypes.c_char_p)
    library.bpf_object__find_map_fd_by_name.argtypes = (pointer, ctypes.c_char_p)
    library.bpf_object__find_map_by_name.restype = pointer
    library.bpf_object__find_map_by_name.argtypes = (pointer, ctypes.c_char_p)
    library.bpf_map__fd.argtypes = (pointer,)
    library.bpf_map__value_size.argtypes = (pointer,)
    library.bpf_program__fd.argtypes = (pointer,)
    library.bpf_prog_test_run_opts.argtypes = (ctypes.c_int, pointer)
    library.bpf_program__attach_iter.restype = pointer
    library.bpf_program__attach_iter.argtypes = (pointer, pointer)
    library.bpf_program__attach.restype = pointer
    library.bpf_program__attach.argtypes = (pointer,)
    library.bpf_link__fd.argtypes = (pointer,)
    library.bpf_link__destroy.argtypes = (pointer,)
    library.bpf_map_update_elem.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_uint64,
    )
    library.bpf_map_update_batch.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_char_p,
        pointer,
        pointer,
    )
    library.bpf_map_delete_elem.argtypes = (ctypes.c_int, ctypes.c_char_p)
    library.ring_buffer__new.restype = pointer
    library.ring_buffer__new.argtypes = (ctypes.c_int, _TAKER, pointer, pointer)
    library.ring_buffer__free.argtypes = (pointer,)
    library.ring_buffer__free.restype = None
    library.ring_buffer__epoll_fd.argtypes = (pointer,)
    library.ring_buffer__consume.argtypes = (pointer,)
    # No messages: the library complains on standard error about features that a kernel lacks.
    library.libbpf_set_print.argtypes = (pointer,)
    library.libbpf_set_print.restype = pointer
    library.libbpf_set_print(None)
    return library


@contextmanager
def _loaded(library: ctypes.CDLL, path: str, names: Container[str]) -> Iterator[int]:
    """The library's object for a file, in the kernel, with some of its programs.

    It can go: the kernel keeps what was loaded for as long as a descriptor of it is open.
    """
    loaded = library.bpf_object__open_file(os.fsencode(path), None)
    if not loaded:
        raise error_of_call(os.fsencode(path))
    try:
        program: int | None = None
        while program := library.bpf_object__next_program(loaded, program):
            wanted = library.bpf_program__name(program).decode() in names
            library.bpf_program__set_autoload(program, wanted)
        if library.bpf_object__load(loaded):
            raise _explained(error_of_call(os.fsencode(path)))
        yield loaded
    finally:
        library.bpf_object__close(loaded)


def _explained(error: OSError) -> OSError:
    # What the library says where there is neither /sys/kernel/btf/vmlinux nor a kernel image.
    if error.errno == errno.ESRCH:
        error.strerror = "the kernel does not tell its types (CONFIG_DEBUG_INFO_BTF)"
    return error


def _map(library: ctypes.CDLL, loaded: int, name: bytes) -> int:
    fd = library.bpf_object__find_map_fd_by_name(loaded, name)
    if fd < 0:
        raise error_of_call()
    return _kept(fd)


def _shared_memory(library: ctypes.CDLL, loaded: int, name: bytes) -> mmap.mmap:
    """The value of an array with one entry, to be read."""
    found = library.bpf_object__find_map_by_name(loaded, name)
    if not found:
        raise error_of_call()
    size = library.bpf_map__value_size(found)
    return mmap.mmap(library.bpf_map__fd(found), size, prot=mmap.PROT_READ)


def _program(library: ctypes.CDLL, loaded: int, name: str) -> int:
    program: int | None = library.bpf_object__find_program_by_name(loaded, name.encode())
    if not program:
        raise error_of_call()
    return program


def _link(library: ctypes.CDLL, link: int | None) -> int:
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
