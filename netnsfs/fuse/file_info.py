"""The answer to open(2), with a flag that pyfuse3 does not have: close(2) needs no flush.

FUSE sends a FLUSH at each close(2), and the process waits for the answer. That is needed where
a command may be waiting for its end (`commands.CommandSnapshot`). So ENOSYS, which switches it
off for the whole mount, is no answer. But for all other files it would make open, read and
close a fifth slower. FOPEN_NOFLUSH switches it off for one open file (Linux 5.16, libfuse
3.11).

pyfuse3 3.5 copies what it knows from a FileInfo to libfuse's struct fuse_file_info. It does so
by a C method, which Cython keeps in a table and shows to other modules (`__pyx_vtable__`). Here
the method is wrapped: it does what it did, and then the flag is set. First it is tried on a
structure of ours; where that does not give what is expected, everything stays as it is, and
each close costs one request more.
"""

import ctypes
import logging

from pyfuse3 import FileInfo

# struct fuse_file_info (fuse_common.h): flags of open(2), bits, padding, file handle.
_BITS = 4
_FH = 16
_SIZE = 256
_DIRECT_IO = 1 << 1
_NOFLUSH = 1 << 7
_TRIED_FH = 0x0123456789ABCDEF

_Copy = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.c_void_p)

log = logging.getLogger(__name__)


class FlushedFileInfo(FileInfo):
    """Of a file for which close(2) asks for a flush, as for any FileInfo without the flag."""


def _find_slot() -> ctypes.c_void_p | None:
    """Where the pointer to the method is, if the method does what is expected."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    get_pointer.restype = ctypes.c_void_p
    try:
        table = vars(FileInfo)["__pyx_vtable__"]
        slot = ctypes.c_void_p.from_address(get_pointer(table, None))
    except (KeyError, ValueError):
        return None
    tried = ctypes.create_string_buffer(_SIZE)
    info = FileInfo(fh=_TRIED_FH, direct_io=True, keep_cache=False)
    _Copy(slot.value or 0)(info, ctypes.addressof(tried))
    bits = ctypes.c_uint32.from_buffer(tried, _BITS).value
    number = ctypes.c_uint64.from_buffer(tried, _FH).value
    return slot if (bits, number) == (_DIRECT_IO, _TRIED_FH) else None


def without_flush() -> bool:
    """Set the flag for every FileInfo but the flushed ones, from now on.

    Returns:
        Whether that is possible.
    """
    slot = _find_slot()
    if slot is None:
        log.debug("each close(2) asks for a flush: this pyfuse3 is another than expected")
        return False
    original = _Copy(slot.value or 0)
    bits_at = ctypes.c_uint32.from_address

    def copy(info: FileInfo, target: int) -> FileInfo:
        original(info, target)
        if type(info) is FileInfo:
            bits_at(target + _BITS).value |= _NOFLUSH
        # Not None, of which ctypes hands over no reference, and the caller drops one.
        return info

    wrapped = _Copy(copy)
    _kept.append(wrapped)
    slot.value = ctypes.cast(wrapped, ctypes.c_void_p).value
    return True


# What C code calls must not be freed.
_kept: list[object] = []
