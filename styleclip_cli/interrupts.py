"""Ctrl-C and SIGTERM: the first lets what is under way end well, the second ends the process at once.

The exit status is what a shell makes of a process that the signal has ended: 130, or 143. Prefect would raise
an interrupt in the thread that waits and go on with the others, and take SIGTERM for a run that has crashed.
So both are taken here, SIGTERM by a thread that waits for it: all others leave it alone, whatever handler
Prefect installs for it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

_SHOW_CURSOR = "\x1b[?25h"
_RELAYED = signal.SIGUSR2  # by which the thread that waits for SIGTERM calls the main one


class Interrupted(BaseException):
    """A signal, where nothing is under way that should end well."""


class _Interrupts:
    def __init__(self) -> None:
        self.came = 0  # the first signal's number
        self.running = False

    def take(self, number: int, _frame: FrameType | None) -> None:
        if self.came:
            if sys.stderr.isatty():  # a progress bar hides the cursor, and is not closed any more
                _say(_SHOW_CURSOR)
            os._exit(status())

        self.came = signal.SIGTERM if number == _RELAYED else number
        if not self.running:
            raise Interrupted

        # here and not above, as importing what runs takes a second
        from styleclip.tasks.running.stopping import ask_to_stop

        _say(f"\nstopping after the shards under way ({ask_to_stop()}); again to stop now\n")


_interrupts = _Interrupts()


def _say(text: str) -> None:
    # not by print: a signal may come while that is writing
    os.write(2, text.encode())


@contextmanager
def taken() -> Iterator[None]:
    """Take Ctrl-C and SIGTERM inside the block, unless the process was started to ignore them, as by nohup.

    Raises:
        Interrupted: Inside the block, but not inside of ``stoppable``.
    """
    _interrupts.came = 0
    with ExitStack() as stack:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            stack.enter_context(_handled(signal.SIGINT))
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            stack.enter_context(_handled(_RELAYED))
            stack.enter_context(_relayed())
        yield


@contextmanager
def _handled(number: signal.Signals) -> Iterator[None]:
    before = signal.signal(number, _interrupts.take)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def _relayed() -> Iterator[None]:
    """Have SIGTERM call the main thread under another name inside the block."""
    main, over = threading.get_ident(), threading.Event()

    def wait() -> None:
        while signal.sigwait({signal.SIGTERM}) and not over.is_set():
            signal.pthread_kill(main, _RELAYED)

    # before any other thread is started, which would not leave it alone
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    waiting = threading.Thread(target=wait, name="sigterm", daemon=True)
    waiting.start()
    try:
        yield
    finally:
        over.set()
        signal.pthread_kill(waiting.ident or 0, signal.SIGTERM)
        waiting.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let the first signal inside the block stop the run, see ``styleclip.tasks.running.stopping``.

    Raises:
        Interrupted: If one came before: while modules are imported, Python may drop what is raised.
    """
    if _interrupts.came:
        raise Interrupted
    _interrupts.running = True
    try:
        yield
    finally:
        _interrupts.running = False


def status() -> int:
    """Return the exit status of a process that a signal has stopped; 0 if none came."""
    return 128 + _interrupts.came if _interrupts.came else 0
