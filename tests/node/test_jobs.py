"""Jobs that may lose their caller, and threads that may leave their namespace."""

import errno
import os
import threading

import pytest
from conftest import error_of

from netnsfs import jobs, linux
from netnsfs.jobs import Abandoned, FreshCache, Job


def own() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def run(job: Job[object]) -> None:
    """Run it on a thread that ends."""

    def work() -> None:
        with jobs.disposable():
            job.run()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_caller_who_gives_up_first_is_the_last_to_know() -> None:
    def work() -> str:
        jobs.commit()
        return "done"

    given_up: Job[object] = Job(work)
    assert given_up.abandon()
    run(given_up)
    with pytest.raises(Abandoned):
        given_up.result()


def test_what_has_committed_goes_through() -> None:
    refused: list[bool] = []

    def work() -> str:
        jobs.commit()
        refused.append(not job.abandon())
        # Once is enough.
        jobs.commit()
        return "done"

    job: Job[object] = Job(work)
    run(job)
    assert refused == [True]
    assert job.result() == "done"


def test_an_error_is_raised_where_the_result_is_wanted() -> None:
    job: Job[object] = Job(divmod, 1, 0)
    run(job)
    with pytest.raises(ZeroDivisionError):
        job.result()


def test_outside_of_a_job_nobody_gives_up() -> None:
    jobs.commit()
    assert jobs.asked_at() > 0


def leave() -> str:
    with jobs.restoring_namespace():
        linux.unshare(linux.CLONE_NEWNET)
        return own()


def test_a_thread_of_its_own_leaves_and_the_caller_stays() -> None:
    before = own()
    assert jobs.on_own_thread(leave) != before
    assert own() == before


def test_on_a_thread_that_may_leave_no_other_is_made() -> None:
    job: Job[object] = Job(jobs.on_own_thread, threading.get_ident)
    idents: list[int] = []

    def work() -> None:
        with jobs.disposable():
            idents.append(threading.get_ident())
            job.run()
            # It comes home between two visits.
            assert leave() != own() == home

    home = own()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [job.result()] == idents


def test_one_thread_makes_several_calls_as_long_as_it_comes_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts: list[str] = []

    def visit(number: int) -> int:
        starts.append(own())
        leave()
        return threading.get_native_id()

    def fail(fd: int, nstype: int) -> None:
        raise PermissionError(errno.EPERM, "")

    assert len(set(jobs.each_on_own_thread(visit, range(3)))) == 1
    monkeypatch.setattr(linux, "setns", fail)
    assert len(set(jobs.each_on_own_thread(visit, range(3)))) == 3
    assert starts == [own()] * 6


def test_a_machine_without_threads_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert error_of(jobs.on_own_thread, own) == "EAGAIN"


def test_who_asked_before_it_was_begun_shares_a_result() -> None:
    shared: FreshCache[object] = FreshCache()
    first, second, other = (Job(shared.get_since_asked, object, key) for key in (1, 1, 2))
    results = []
    for job in (first, second, other):
        job.run()
        results.append(job.result())
    assert results[0] is results[1]
    assert results[2] not in results[:2]
    # By now, a new one is asked for; so it is without a job.
    late: Job[object] = Job(shared.get_since_asked, object, 2)
    late.run()
    assert late.result() not in results
    assert shared.get_since_asked(object, 2) not in results
