"""The flag that pyfuse3 does not have, on a structure of ours."""

import ctypes
import sys
from collections.abc import Iterator

import pytest
from pyfuse3 import FileInfo

from netnsfs.fuse import file_info
from netnsfs.fuse.file_info import FlushedFileInfo, without_flush


@pytest.fixture
def slot() -> Iterator[ctypes.c_void_p]:
    """Where pyfuse3 finds the method; it is put back."""
    found = file_info._find_slot()
    assert found is not None
    before = found.value
    yield found
    found.value = before


def copied(slot: ctypes.c_void_p, info: FileInfo) -> tuple[int, int]:
    """The bits and the file handle that libfuse would get."""
    target = ctypes.create_string_buffer(256)
    file_info._Copy(slot.value or 0)(info, ctypes.addressof(target))
    bits = ctypes.c_uint32.from_buffer(target, file_info._BITS).value
    return bits, ctypes.c_uint64.from_buffer(target, file_info._FH).value


def test_the_flag_is_set_but_where_a_flush_is_wanted(slot: ctypes.c_void_p) -> None:
    plain = copied(slot, FileInfo(fh=7, direct_io=True, keep_cache=False))
    assert without_flush()
    bits, number = copied(slot, FileInfo(fh=7, direct_io=True, keep_cache=False))
    assert (bits & ~file_info._NOFLUSH, number) == plain
    assert bits & file_info._NOFLUSH
    flushed = FlushedFileInfo(fh=7, direct_io=True, keep_cache=False)
    assert copied(slot, flushed) == plain


@pytest.mark.parametrize("kind", [FileInfo, FlushedFileInfo])
def test_no_reference_is_lost_or_kept(slot: ctypes.c_void_p, kind: type[FileInfo]) -> None:
    assert without_flush()
    info = kind(fh=1)
    counts = []
    for _ in range(3):
        counts.append((sys.getrefcount(info), sys.getrefcount(None) // 1000))
        for _ in range(5000):
            copied(slot, info)
    assert len({*counts}) == 1, counts


def test_what_is_not_as_expected_stays_as_it_is(
    slot: ctypes.c_void_p, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = slot.value
    monkeypatch.setattr(file_info, "_FH", 24)
    assert not without_flush()
    assert slot.value == before
