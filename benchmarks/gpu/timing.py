"""Times of work on a device that goes on computing after its host was answered."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of some work.

    Attributes:
        seconds: The mean of several timings.
        error: Its standard error; no number where there was one timing.
    """

    seconds: float
    error: float

    def per(self, count: float) -> Timing:
        """Return the seconds of one of ``count`` equal parts."""
        return Timing(self.seconds / count, self.error / count)

    def rate(self, count: float) -> tuple[float, float]:
        """Return how many of ``count`` things are done in a second, with the standard error."""
        return count / self.seconds, count / self.seconds * self.error / self.seconds


def timed(device: torch.device, work: Callable[[], object], *, rounds: int, settle: float = 0.0) -> Timing:
    """Time some work, after it was done once to warm up; what was launched is waited for.

    Args:
        device: Where it computes.
        work: What is timed.
        rounds: Timings behind the mean.
        settle: Seconds that a timing repeats the work for, at least: long beside a launch, so that the clock
            and the first kernel's way to the device do not count.
    """
    seconds(device, work)
    repeat = max(1, min(200, round(settle / max(seconds(device, work), 1e-6))))
    return mean_of([seconds(device, work, repeat) / repeat for _ in range(rounds)])


def mean_of(figures: Sequence[float]) -> Timing:
    """Return the mean of timings and its standard error."""
    error = statistics.stdev(figures) / len(figures) ** 0.5 if len(figures) > 1 else float("nan")
    return Timing(statistics.fmean(figures), error)


def seconds(device: torch.device, work: Callable[[], object], repeat: int = 1) -> float:
    """Return the seconds of some work that is done now, ``repeat`` times."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(repeat):
        work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
