"""Parts of a measurement: each has its own time, and one that fails or runs out leaves the others theirs.

A part yields rows, and what it has yielded stays, however it ends. The time ends by a signal, between two
operations of the host; work that was launched before is waited for.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Literal

import torch

from benchmarks.gpu.networks import Bench

State = Literal["done", "ran out", "failed"]
_AGAIN = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure is to reach.

    Attributes:
        bound: The figure.
        at_most: Whether it is an upper bound.
    """

    bound: float
    at_most: bool = True

    def met(self, value: float) -> bool:
        """Return whether a figure reaches it; what is no number reaches nothing."""
        return value <= self.bound if self.at_most else value >= self.bound


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        what: What was measured, on what.
        value: The figure.
        unit: Its unit.
        error: Its standard error, in that unit; None where it was measured once or not timed.
        goal: What it is to reach.
        note: How it was measured, where that is not said by its part.
    """

    what: str
    value: float
    unit: str
    error: float | None = None
    goal: Goal | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the measurement.

    Attributes:
        name: Its name.
        title: What it measures, and how.
        share: Its share of the whole time, 0..1.
        measure: Yields its rows.
    """

    name: str
    title: str
    share: float
    measure: Callable[[Bench], Iterator[Row]]


@dataclass(slots=True)
class Outcome:
    """What became of a part.

    Attributes:
        part: Which.
        limit: Its time in seconds.
        rows: What it measured.
        seconds: What it took.
        state: How it ended.
        why: Why it did not end well.
        peak: Most bytes that torch held on the device at once; None where it is no GPU.
    """

    part: Part
    limit: float
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    state: State = "done"
    why: str = ""
    peak: int | None = None


class OutOfTimeError(Exception):
    """The time of a part is over."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End a block after some time; of the main thread alone.

    Raises:
        OutOfTimeError: In the block, when its time is over.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError(f"its {seconds:.0f} s were over")

    # again after a while: an error in a destructor is shown and forgotten
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(
    bench: Bench, parts: Sequence[Part], minutes: float, note: Callable[[list[Outcome]], None]
) -> list[Outcome]:
    """Run parts one after the other, each in its share of the time.

    Args:
        bench: What they measure with.
        parts: Which.
        minutes: Time of all of them together.
        note: Called after every part with what is known so far.
    """
    outcomes: list[Outcome] = []
    for part in parts:
        outcome = Outcome(part, part.share * minutes * 60)
        outcomes.append(outcome)
        _run(bench, outcome)
        note(outcomes)
    return outcomes


def _run(bench: Bench, outcome: Outcome) -> None:
    on_gpu, started = bench.device.type == "cuda", time.perf_counter()

    # what ends a part, whatever it is, is told in the result, and the next part begins
    try:
        with time_limit(outcome.limit):
            if on_gpu:  # here, as a device that an earlier part broke answers with an error from now on
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(bench.device)
            for row in outcome.part.measure(bench):
                outcome.rows.append(row)
    except OutOfTimeError as error:
        outcome.state, outcome.why = "ran out", str(error)
    except Exception as error:
        outcome.state, outcome.why = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        traceback.print_exc(file=sys.stderr)
    outcome.seconds = time.perf_counter() - started

    if on_gpu:
        outcome.peak = torch.cuda.max_memory_allocated(bench.device)
    gc.collect()
