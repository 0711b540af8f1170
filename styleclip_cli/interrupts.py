"""Ctrl-C: the first lets what is under way end well, the second ends the process at once; the status is 130.

Prefect would raise the interrupt in the thread that waits and go on with the others, so it is taken here.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STATUS = 130  # what a shell makes of a process that SIGINT has ended
_SHOW_CURSOR = "\x1b[?25h"


class Interrupted(BaseException):
    """Ctrl-C, where nothing is under way that should end well."""


class _Interrupts:
    def __init__(self) -> None:
        self.came = False
        self.running = False
        self.at_once: list[Callable[[], None]] = []

    def take(self, _number: int, _frame: FrameType | None) -> None:
        if self.came:
            for each in self.at_once:
                each()
            if sys.stderr.isatty():  # a progress bar hides the cursor, and is not closed any more
                _say(_SHOW_CURSOR)
            os._exit(STATUS)

        self.came = True
        if not self.running:
            raise Interrupted

        # here and not above, as importing what runs takes a second
        from tasks.running.stopping import ask_to_stop

        _say(f"\nstopping after the shards under way ({ask_to_stop()}); again to stop now\n")


_interrupts = _Interrupts()


def _say(text: str) -> None:
    # not by print: a signal may come while that is writing
    os.write(2, text.encode())


@contextmanager
def taken() -> Iterator[None]:
    """Take Ctrl-C inside the block, unless the process was started to ignore it, as by nohup.

    Raises:
        Interrupted: Inside the block, but not inside of ``stoppable``.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return

    _interrupts.came = False
    signal.signal(signal.SIGINT, _interrupts.take)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let the first Ctrl-C inside the block stop the run, see ``tasks.running.stopping``.

    Raises:
        Interrupted: If Ctrl-C was pressed before: while modules are imported, Python may drop what is raised.
    """
    if _interrupts.came:
        raise Interrupted
    _interrupts.running = True
    try:
        yield
    finally:
        _interrupts.running = False


def came() -> bool:
    """Return whether Ctrl-C was pressed."""
    return _interrupts.came


def at_once(work: Callable[[], None]) -> None:
    """Have something done before the second Ctrl-C ends the process; it must be quick, and may not fail."""
    _interrupts.at_once.append(work)
