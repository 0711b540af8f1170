"""Reading and writing beside computing, so that a device does not wait for storage or for a codec.

Three things run at once. Shards: more of them than the device computes at a time, so that some compute
while others read their first images or write their last; ``computing`` is the turnstile, for the threads of
a process and, where a limit is named, for all processes that share a device (``device_limit``). Within a
shard, ``read_ahead`` fetches and decodes the next images, and ``Writes`` encodes and stores the ones before.
How much is in flight is bounded, so memory does not grow with the number of images.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

from styleclip.tasks.running.device_limit import device_slot
from styleclip.tasks.settings import SettingsError

_T = TypeVar("_T")
_U = TypeVar("_U")
_DEFAULT_THREADS = 16
_lock = threading.Lock()
_turnstiles: dict[str, threading.BoundedSemaphore] = {}
_account: ContextVar[Account | None] = ContextVar("styleclip_account", default=None)


def io_threads() -> int:
    """Return how many reads and writes one process has under way: ``STYLECLIP_IO_THREADS``, or 16.

    Raises:
        SettingsError: If the variable is not a number from 1.
    """
    return _number("STYLECLIP_IO_THREADS", _DEFAULT_THREADS)


def _number(variable: str, default: int) -> int:
    wanted = os.environ.get(variable, "")
    if not wanted:
        return default

    if not wanted.isdecimal() or int(wanted) < 1:
        raise SettingsError(f"{variable} must be a number from 1, got {wanted!r}")
    return int(wanted)


def cores() -> int:
    """Return how many cores this process may use: a container or a batch system may give it only some."""
    return len(os.sched_getaffinity(0))


def compute_slots(device: str) -> int:
    """Return how many shards compute at once: ``STYLECLIP_WORKERS``, or one per core, or one on a GPU.

    Raises:
        SettingsError: If the variable is not a number from 1.
    """
    return _number("STYLECLIP_WORKERS", 1 if device == "cuda" else cores())


def shards_at_once(device: str) -> int:
    """Return how many shards are worked on at once: beside each that computes, one reads and one writes."""
    return 3 * compute_slots(device)


@contextmanager
def computing(device: str) -> Iterator[Callable[[], float]]:
    """Wait for a place to compute on the device, and hold it inside the block.

    Yields:
        A function that returns the seconds since the place was found.
    """
    with _lock:
        if device not in _turnstiles:
            _turnstiles[device] = threading.BoundedSemaphore(compute_slots(device))
        turnstile = _turnstiles[device]

    # the turn comes first: only threads that really compute count as users of the device's slot
    with turnstile, device_slot():
        started, account = time.monotonic(), _account.get()
        try:
            yield lambda: time.monotonic() - started
        finally:
            if account is not None:
                account.seconds += time.monotonic() - started


@dataclass
class Account:
    """What one thread has computed and written.

    Attributes:
        seconds: Of computing, without waiting for a place to.
        items: Items whose files were written.
        size: Bytes of those.
    """

    seconds: float = 0.0
    items: int = 0
    size: int = 0


@contextmanager
def accounting() -> Iterator[Account]:
    """Keep account of what this thread computes and writes inside the block."""
    account = Account()
    token = _account.set(account)
    try:
        yield account
    finally:
        _account.reset(token)


def wrote(size: int) -> None:
    """Take the bytes of an item's files into the account of this thread, if it keeps one."""
    if account := _account.get():
        account.items += 1
        account.size += size


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(io_threads(), thread_name_prefix="styleclip-io")


def read_ahead(items: Iterable[_T], read: Callable[[_T], _U], ahead: int) -> Iterator[_U]:
    """Yield ``read(item)`` in order, with up to ``ahead`` items being read before they are asked for."""
    waiting: deque[Future[_U]] = deque()
    try:
        for item in items:
            waiting.append(_threads().submit(read, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()

        while waiting:
            yield waiting.popleft().result()
    finally:  # whoever stops asking, after an error say, wants no more of what has not begun
        for future in waiting:
            future.cancel()


class Writes(Generic[_U]):
    """Writes under way, at most ``limit``: one more waits for the oldest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[Future[_U]] = deque()

    def submit(self, write: Callable[[], _U]) -> Future[_U]:
        """Start a write; its result or its error lies in the future."""
        if len(self._waiting) >= self._limit:
            self._waiting.popleft().exception()  # wait; whoever holds the future sees the error

        future = _threads().submit(write)
        self._waiting.append(future)
        return future
