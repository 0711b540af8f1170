"""How long work took, kept in the workspace, and what is expected of more of it.

    WORKSPACE/timings/rates.json     the last measurements of every kind of work, the newest last

A measurement is of one run: so much work of a kind, on a device, at a generator's resolution. Runs add to the
file when their steps end, failed ones too. No result depends on it and nothing is named after it: where it
cannot be read or written the log says so, and the run goes on. Of two runs that write at once, one is kept.
"""

from __future__ import annotations

import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from prefect.logging import get_logger
from pydantic import BaseModel, ConfigDict, ValidationError

from styleclip.tasks.storage import MissingObjectError, join, read_bytes, write_bytes_atomic
from styleclip_core.errors import StyleCLIPError

_KEPT = 20  # measurements of a kind
_FEW, _MANY = 3, 10  # measurements from which on their spread, and its outer tenths, say something
_SPREAD = 1.5  # either way, of fewer than a few measurements
_log = get_logger("rates")


class Spent(BaseModel):
    """Work of one kind and what it took.

    Attributes:
        kind: What was done, e.g. ``invert``.
        about: Settings that decide how long that takes, e.g. ``encoder+100``.
        device: Name of what it was computed on.
        resolution: Side of the generator's images in pixels; 0 where none takes part.
        units: How much was done, in the unit of its kind.
        seconds: Of computing; of waiting where the kind is about that.
        items: Items that files were written for; fewer than units where chunks count as full.
        size: Bytes of those files.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    about: str = ""
    device: str = ""
    resolution: int = 0
    units: int
    seconds: float
    items: int = 0
    size: int = 0

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Return what it can be compared by."""
        return self.kind, self.about, self.device, self.resolution

    @property
    def name(self) -> str:
        """Return what the work is called."""
        return f"{self.kind} ({self.about})" if self.about else self.kind


class Range(BaseModel):
    """A number that is not known exactly: the middle, and what it lies between for all that was seen."""

    model_config = ConfigDict(frozen=True)

    low: float
    middle: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Range:
        """Return a range of one value."""
        return cls(low=value, middle=value, high=value)

    @classmethod
    def over(cls, values: Sequence[float]) -> Range:
        """Return median and spread of measurements: their outer tenths, or all where there are few.

        One or two show no spread, and are taken to be right within a factor of 1.5.
        """
        middle = statistics.median(values)
        if len(values) < _FEW:
            return cls(low=min(values) / _SPREAD, middle=middle, high=max(values) * _SPREAD)
        if len(values) < _MANY:
            return cls(low=min(values), middle=middle, high=max(values))
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        return cls(low=tenths[0], middle=middle, high=tenths[-1])

    def __add__(self, other: Range) -> Range:
        return Range(low=self.low + other.low, middle=self.middle + other.middle, high=self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(low=self.low * factor, middle=self.middle * factor, high=self.high * factor)


class Rates(BaseModel):
    """Measurements, the newest last."""

    model_config = ConfigDict(frozen=True)

    measured: list[Spent] = []

    def of(self, work: Spent) -> Range | None:
        """Return the seconds per unit of such work; None where none was measured."""
        found = [each.seconds / each.units for each in self._like(work)]
        return Range.over(found) if found else None

    def size_of(self, work: Spent) -> float | None:
        """Return the bytes per item that such work writes; None where none was measured."""
        found = [each.size / each.items for each in self._like(work) if each.items]
        return statistics.median(found) if found else None

    def _like(self, work: Spent) -> list[Spent]:
        # beside a cluster nobody knows which device it will be
        fitting = (each for each in self.measured if each.units and work.device in ("", each.device))
        return [each for each in fitting if (each.key[:2], each.key[3]) == (work.key[:2], work.key[3])]

    def adding(self, new: Iterable[Spent]) -> Rates:
        """Return these and newer ones, without the oldest where a kind has many."""
        measured = [*self.measured, *new]
        left = defaultdict[tuple[str, str, str, int], int](lambda: _KEPT)
        kept = []
        for each in reversed(measured):
            if left[each.key] > 0:
                left[each.key] -= 1
                kept.append(each)
        return Rates(measured=kept[::-1])


def rates_uri(workspace: str) -> str:
    """Return where the rates of a workspace lie."""
    return join(workspace, "timings", "rates.json")


def read_rates(workspace: str) -> Rates:
    """Return what runs in a workspace have measured; nothing where that is not there or cannot be read."""
    try:
        return _read(workspace)
    except (StyleCLIPError, OSError) as error:
        _log.warning("what runs have measured is not known: %s", error)
        return Rates()


def _read(workspace: str) -> Rates:
    uri = rates_uri(workspace)
    try:
        return Rates.model_validate_json(read_bytes(uri))
    except MissingObjectError:
        return Rates()
    except ValidationError as error:
        _log.warning("%s is damaged (%d errors) and begun anew", uri, error.error_count())
        return Rates()


def keep_rates(workspace: str, new: Sequence[Spent]) -> None:
    """Add measurements to those of a workspace; what is in the way of that is said and fails nobody."""
    if not new:
        return
    try:
        rates = _read(workspace).adding(new)  # what cannot be read now must not be overwritten
        write_bytes_atomic(rates_uri(workspace), rates.model_dump_json(indent=1).encode())
    except (StyleCLIPError, OSError) as error:
        _log.warning("how long the work took cannot be kept for later estimates: %s", error)


def total(spent: Iterable[Spent]) -> list[Spent]:
    """Return work by kind: that of all shards of a step as one measurement each."""
    found: dict[tuple[str, str, str, int], Spent] = {}
    for each in spent:
        so_far = found.get(each.key)
        added = {} if so_far is None else {
            "units": so_far.units + each.units, "seconds": so_far.seconds + each.seconds,
            "items": so_far.items + each.items, "size": so_far.size + each.size,
        }  # fmt: skip
        found[each.key] = each.model_copy(update=added)
    return [each for each in found.values() if each.units]


def makespan(jobs: Sequence[float], places: int) -> float:
    """Return how long jobs take, one after the other on the first place that is free."""
    busy = [0.0] * max(1, places)
    for seconds in jobs:
        first = min(range(len(busy)), key=busy.__getitem__)
        busy[first] += seconds
    return max(busy)


def device_name(device: str) -> str:
    """Return what rates are compared by: the name of a GPU, or of the processor; empty for one elsewhere."""
    if device == "cuda":
        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""
    return f"{_processor()}, {torch.get_num_threads()} threads each"


@lru_cache(maxsize=1)
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # other systems than Linux have no such file
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
