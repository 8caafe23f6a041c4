"""nsids, with ip-netns(8) as the other side."""

import os
from collections.abc import Iterator

import pytest
from conftest import RUN, error_of, ip, nsids

from netnsfs import linux
from netnsfs.jobs import Abandoned, Job
from netnsfs.netns import nsid


@pytest.fixture
def namespace() -> Iterator[int]:
    """A descriptor of a namespace called foo."""
    ip("netns", "add", "foo")
    with linux.closing_fd(os.open(RUN / "foo", os.O_RDONLY)) as fd:
        yield fd
    ip("netns", "del", "foo")


def test_what_is_assigned_is_shown(namespace: int) -> None:
    assert nsid.read_nsid(namespace) == b"unassigned\n"
    number = next(nsids)
    nsid.assign_nsid(namespace, b"%d\n" % number)
    assert nsid.read_nsid(namespace) == b"%d\n" % number
    assert ip("netns", "list").stdout == b"foo (id: %d)\n" % number
    assert error_of(nsid.assign_nsid, namespace, b"%d" % next(nsids)) == "EEXIST"
    assert error_of(nsid.assign_nsid, namespace, b"auto") == "EEXIST"


def test_a_job_without_a_caller_assigns_nothing(namespace: int) -> None:
    job = Job(nsid.assign_nsid, namespace, b"auto")
    job.abandon()
    job.run()
    with pytest.raises(Abandoned):
        job.result()
    assert nsid.read_nsid(namespace) == b"unassigned\n"


def test_the_kernel_chooses(namespace: int) -> None:
    nsid.assign_nsid(namespace, b"auto")
    assert ip("netns", "list").stdout == b"foo (id: %b)\n" % nsid.read_nsid(namespace).strip()


def test_a_number_is_given_once(namespace: int) -> None:
    number = next(nsids)
    ip("netns", "add", "bar")
    ip("netns", "set", "bar", str(number))
    assert error_of(nsid.assign_nsid, namespace, b"%d" % number) == "EEXIST"
    ip("netns", "del", "bar")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        *[(text, "EINVAL") for text in (b"", b"x", b"-1", b"+1", b"1 2", b"0x1", b"AUTO")],
        *[(text, "ERANGE") for text in (b"2147483648", b"0" * 30 + b"2147483648", b"9" * 5000)],
    ],
)
def test_what_is_no_nsid(namespace: int, text: bytes, code: str) -> None:
    assert error_of(nsid.assign_nsid, namespace, text) == code
    assert nsid.read_nsid(namespace) == b"unassigned\n"


def test_what_is_no_namespace_has_no_nsid() -> None:
    with linux.closing_fd(os.open("/", os.O_RDONLY)) as fd:
        assert error_of(nsid.read_nsid, fd) == "EINVAL"
        assert error_of(nsid.assign_nsid, fd, b"auto") == "EINVAL"
