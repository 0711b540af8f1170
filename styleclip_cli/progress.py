"""How far a run is: a bar for each step in a terminal, and a line every so often where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from styleclip_cli import output

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, TaskID

EVERY = 30.0  # seconds after which a line is due, if a tenth was not done before
Observer = Callable[[str, int, int | None], None]


@dataclass
class _Step:
    began: float
    done: int  # when it was first heard of
    said: float
    tenth: int


class Lines:
    """Progress as lines: where a step begins, at each tenth of it, and every half minute.

    Args:
        say: Takes a line.
        unit: What is counted, as it is printed behind two numbers.
        clock: Seconds.
    """

    def __init__(
        self, say: Callable[[str], None], unit: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._unit, self._clock = say, unit, clock
        self._steps: dict[str, _Step] = {}

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """Say that so much of a step is done, if a line is due."""
        now, tenth = self._clock(), 10 * done // total if total else 0
        known = self._steps.get(step)
        if known and tenth <= known.tenth and now - known.said < EVERY:
            return

        if known is None:
            known = self._steps[step] = _Step(now, done, now, tenth)
        known.said, known.tenth = now, tenth
        self._say(f"{step}: {done} of {total or '?'} {self._unit}{self._left(known, now, done, total)}")

    def _left(self, step: _Step, now: float, done: int, total: int | None) -> str:
        # what was done when the step began took none of this time
        gained = done - step.done
        if not total or done >= total or gained <= 0:
            return ""
        return f", about {span((now - step.began) * (total - done) / gained)} left"


def span(seconds: float) -> str:
    """Return a time as people say it: ``40 s``, ``3 min``, ``2 h 05 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def shown() -> Iterator[Observer]:
    """Yield what takes the progress of a run's steps, in shards."""
    from rich.progress import MofNCompleteColumn, TextColumn, TimeElapsedColumn

    with _shown("shards", MofNCompleteColumn(), TextColumn("shards"), TimeElapsedColumn()) as observer:
        yield observer


@contextmanager
def downloading(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield what takes the progress of a download, in bytes."""
    from rich.progress import DownloadColumn, TransferSpeedColumn

    with _shown("bytes", DownloadColumn(), TransferSpeedColumn()) as observer:
        yield lambda done, total: observer(name, done, total)


@contextmanager
def _shown(unit: str, *counted: ProgressColumn) -> Iterator[Observer]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    if output.is_quiet() or not console.is_terminal:
        yield Lines(output.tell, unit)
        return

    columns = (TextColumn("{task.description:<18}"), BarColumn(), *counted, TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int | None) -> None:
            if step not in bars:
                bars[step] = progress.add_task(step, total=total)
            progress.update(bars[step], completed=done, total=total)

        yield show
