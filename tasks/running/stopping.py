"""Stopping a run in its own process: what is under way ends well, nothing new begins.

The command line asks for it at the first Ctrl-C. Units of work that have begun go on to their end, those that
have not refuse to begin, and the run ends with ``RunStoppedError`` as soon as none is under way. What is done
by then is done; the same run again does the rest. Only threads of this process are reached.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from styleclip_core.errors import StyleCLIPError


class RunStoppedError(StyleCLIPError):
    """The run was asked to stop before this began."""


class _Stopping:
    """Whether this process is to begin nothing new, and how much is under way."""

    def __init__(self) -> None:
        # the one that asks is a signal handler, which may interrupt the thread that holds the lock
        self._lock = threading.RLock()
        self._under_way = 0
        self._asked = False

    def ask(self) -> int:
        with self._lock:
            self._asked = True
            return self._under_way

    def forget(self) -> None:
        with self._lock:
            self._asked = False

    def is_asked(self) -> bool:
        return self._asked

    @contextmanager
    def begun(self) -> Iterator[None]:
        with self._lock:
            if self._asked and not _closing.get():
                raise RunStoppedError("the run was asked to stop; the same command goes on from here")
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1


_closing: ContextVar[bool] = ContextVar("styleclip_closing", default=False)
_stopping = _Stopping()


def ask_to_stop() -> int:
    """Let nothing new begin, and return how many units of work are under way."""
    return _stopping.ask()


def forget_to_stop() -> None:
    """Let things begin again, in a process that goes on to other runs."""
    _stopping.forget()


def is_stopping() -> bool:
    """Return whether the run was asked to stop."""
    return _stopping.is_asked()


@contextmanager
def begun() -> Iterator[None]:
    """Count the block as under way.

    Raises:
        RunStoppedError: If the run was asked to stop.
    """
    with _stopping.begun():
        yield


@contextmanager
def closing() -> Iterator[None]:
    """Let things begin inside the block, also in threads it starts: what says how far a stopped run came."""
    token = _closing.set(True)
    try:
        yield
    finally:
        _closing.reset(token)
