"""The mounted tree: CONTRACT section 1 to 5, with the real tools as the other side."""

import os

from conftest import RUN, Mounted, ip, error_of


def test_mkdir_makes_what_ip_netns_sees(mnt: Mounted) -> None:
    (mnt / "foo").mkdir()
    assert ip("netns", "list").stdout == b"foo\n"
    assert int((mnt / "foo/inode").read_text()) == os.stat(RUN / "foo").st_ino
    (mnt / "foo").rmdir()
    assert ip("netns", "list").stdout == b""
