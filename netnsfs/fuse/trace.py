"""What -d adds: one line in the log for each request.

Handlers are wrapped in the one object that serves, and only with -d, so that nobody else
pays for it.
"""

import errno
import inspect
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from netnsfs.fuse.operations import Operations

Handler = Callable[..., Coroutine[Any, Any, object]]

_MAX_BYTES = 64

log = logging.getLogger(__name__)


def trace(operations: Operations) -> None:
    """Log each request from now on: what, for whom, the answer, and how long it took."""
    for name, _ in inspect.getmembers(pyfuse3.Operations, inspect.iscoroutinefunction):
        setattr(operations, name, _with_logging(name, getattr(operations, name)))


def _with_logging(name: str, handler: Handler) -> Handler:
    async def logged(*args: object) -> object:
        started = time.perf_counter_ns()
        answer = "dropped"
        try:
            result = await handler(*args)
            answer = _describe(result)
            return result
        except FUSEError as error:
            answer = errno.errorcode.get(error.errno, str(error.errno))
            raise
        finally:
            took = (time.perf_counter_ns() - started) // 1000
            shown = " ".join(filter(None, map(_describe, args)))
            log.debug("%s %s: %s, %d us", name, shown, answer, took)

    return logged


def _describe(value: object) -> str:
    if isinstance(value, bytes):
        cut = f"+{len(value) - _MAX_BYTES}" if len(value) > _MAX_BYTES else ""
        return repr(value[:_MAX_BYTES])[1:] + cut
    if isinstance(value, RequestContext):
        return f"uid={value.uid} pid={value.pid}"
    if isinstance(value, EntryAttributes):
        return f"node {value.st_ino}"
    if isinstance(value, FileInfo):
        return f"file {value.fh}"
    if value is None:
        return "ok"
    return str(value) if isinstance(value, int | list) else ""
