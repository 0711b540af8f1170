"""One device, one flow run that computes on it, however many there are.

``computing`` lets the threads of a process take turns; here processes do. ``STYLECLIP_DEVICE_LIMIT`` names a
global concurrency limit of the Prefect server, one for each device, e.g. ``gpu-0``. The first thread that
wants to compute takes a slot of it, the process keeps it from shard to shard, and gives it back when it has
not computed for a moment. The slot is a lease that a thread renews: of a process that dies it runs out
within a minute or so. Without the variable there is no limit.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from prefect.concurrency.sync import concurrency
from prefect.logging import get_logger

from styleclip_core.errors import StyleCLIPError

LEASE = 60.0  # seconds, the shortest that Prefect grants
_LINGER = 1.0  # seconds without computing after which the slot is given back


class DeviceLimitError(StyleCLIPError):
    """There is no slot of the limit that guards the device."""


class _Holder:
    """Holds a slot of a limit, in a thread of its own, for as long as somebody computes."""

    def __init__(self, limit: str) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._users = 0
        self._slot: Future[None] | None = None

    def enter(self) -> None:
        """Wait for the slot.

        Raises:
            DeviceLimitError: If there is no such limit, or no server to ask.
        """
        with self._changed:
            self._users += 1
            if self._slot is None:
                self._slot = Future()
                threading.Thread(target=self._hold, args=[self._slot], name="device-limit").start()
            slot = self._slot
            # the holder may be about to give the slot back
            self._changed.notify_all()

        # outside of the lock: waiting for the server may take as long as another run computes
        try:
            slot.result()
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Say that a user has computed what it wanted to."""
        with self._changed:
            self._users -= 1
            self._changed.notify_all()

    def _hold(self, slot: Future[None]) -> None:
        try:
            with concurrency(
                self._limit, strict=True, lease_duration=LEASE, raise_on_lease_renewal_failure=False
            ):
                slot.set_result(None)
                self._wait_until_idle()
        except Exception as error:
            if slot.done():  # the work is done; of a slot that could not be given back the lease runs out
                get_logger("styleclip").warning("slot of %s not given back: %s", self._limit, error)
                return

            # forgotten before the users hear of it, so that the next one asks again
            with self._changed:
                self._slot = None
            slot.set_exception(
                DeviceLimitError(
                    f"no slot of the limit {self._limit!r}, which STYLECLIP_DEVICE_LIMIT names: {error}; if "
                    f"there is no such limit, `styleclip setup-server --device-limit {self._limit}` makes it"
                )
            )

    def _wait_until_idle(self) -> None:
        """Return when nobody has computed for a moment; who comes after that takes a slot of their own."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._users == 0)
                if not self._changed.wait_for(lambda: self._users > 0, timeout=_LINGER):
                    self._slot = None
                    return


_lock = threading.Lock()
_holders: dict[str, _Holder] = {}


@contextmanager
def device_slot() -> Iterator[None]:
    """Hold a slot of the limit that ``STYLECLIP_DEVICE_LIMIT`` names, if it names one.

    Raises:
        DeviceLimitError: If there is no such limit, or no server to ask.
    """
    limit = os.environ.get("STYLECLIP_DEVICE_LIMIT", "")
    if not limit:
        yield
        return

    with _lock:
        holder = _holders.setdefault(limit, _Holder(limit))

    holder.enter()
    try:
        yield
    finally:
        holder.leave()
