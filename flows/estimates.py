"""What a run would do, and what that takes: counted by what runs go by, timed by what runs have measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from styleclip.flows import course, engine
from styleclip.tasks.running.overlap import compute_slots
from styleclip.tasks.running.rates import Range, Rates, Spent, makespan
from styleclip.tasks.running.run import Run

_HOUR = 3600


class StepForecast(BaseModel):
    """What a step would do.

    Attributes:
        step: Its name.
        unit: What is counted, in the plural.
        task_runs: Task runs of it.
        found: Items that are done already.
        computed: Items that would be computed.
        again: Of those, the ones that failed before and are tried again.
        changed: Of those, the ones that were done in another version of their photograph. Where its content
            is the same after all they are found done, which only reading it tells.
        files: Images, videos, tunings and residuals that would be written; tables and the page come on top.
        size: Bytes of those, as far as runs have measured how large they become.
    """

    model_config = ConfigDict(frozen=True)

    step: str
    unit: str
    task_runs: int
    found: int
    computed: int
    again: int = 0
    changed: int = 0
    files: int = 0
    size: int | None = None


class Forecast(BaseModel):
    """What a run would do and what it would take.

    Attributes:
        flow: Its name.
        about: What it would do, in a sentence.
        steps: Its steps.
        read_files: Photographs that would be read.
        read_size: Bytes of those.
        seconds: From its beginning to its end; none where some rate is not known.
        cost: That time at the price of an hour; none without a price or a time.
        unknown: Work that no run has measured.
        sampled: Work that was measured on a sample now.
        notes: What else there is to know.
    """

    model_config = ConfigDict(frozen=True)

    flow: str
    about: str
    steps: list[StepForecast]
    read_files: int = 0
    read_size: int = 0
    seconds: Range | None = None
    cost: Range | None = None
    unknown: list[str] = []
    sampled: list[str] = []
    notes: list[str] = []

    @property
    def files(self) -> int:
        """Return the images, videos, tunings and residuals that would be written."""
        return sum(step.files for step in self.steps)

    @property
    def size(self) -> int | None:
        """Return the bytes of those; None where they are not known."""
        sizes = [step.size for step in self.steps if step.files]
        return sum(each for each in sizes if each is not None) if None not in sizes else None

    @property
    def facts(self) -> list[str]:
        """Return what there is to say beside the steps, a line each."""
        lines = [f"reads {self.read_files:,} photographs, {_size(self.read_size)}"] if self.read_files else []
        size = "" if self.size is None else f", about {_size(self.size)}"
        lines += [f"writes {self.files:,} images{size}, beside tables and the page"] if self.files else []
        lines += [f"measured on a sample now: {', '.join(self.sampled)}"] if self.sampled else []
        return lines + self.notes

    @property
    def price(self) -> str:
        """Return time and cost for a person, as a part of a sentence."""
        if self.seconds is None:
            return f"takes a time that is not known yet, as no run has measured {', '.join(self.unknown)}"
        if self.cost is None:
            return f"takes about {_span(self.seconds)}"
        cost = f"{self.cost.middle:.2f} ({self.cost.low:.2f} to {self.cost.high:.2f})"
        return f"takes about {_span(self.seconds)} and costs {cost}"


@dataclass(frozen=True)
class Work:
    """Steps that go on side by side, for an estimate.

    Attributes:
        steps: Their names; none where there are no task runs of shards.
        task_runs: Task runs of theirs.
        jobs: What each shard computes, as units of kinds of work.
        least: The same without what may turn out to be done.
    """

    steps: tuple[str, ...]
    task_runs: int
    jobs: list[list[Spent]]
    least: list[list[Spent]] = field(default_factory=list)


@dataclass(frozen=True)
class Outlook:
    """What was counted of a run, before anything is timed."""

    about: str
    steps: list[StepForecast]
    work: list[Work]
    read_files: int = 0
    read_size: int = 0
    notes: list[str] = field(default_factory=list)


def forecast(
    flow: str,
    run: Run,
    seen: Outlook,
    rates: Rates,
    price_per_hour: float,
    sampled: Sequence[Spent] = (),
) -> Forecast:
    """Return what a run would do and take.

    Args:
        flow: Its name.
        run: Networks and places.
        seen: What was counted.
        rates: What runs have measured, and samples.
        price_per_hour: Of the machine; 0 for none.
        sampled: What was measured on a sample now.
    """
    missing = unknown(run, seen, rates)
    seconds = None
    if not missing:
        parts = [_seconds(run, work, rates) for work in seen.work]
        outside = (rates.of(course.around(flow)) or _elsewhere(), rates.of(course.ending(flow)))
        seconds = sum(parts, sum(filter(None, outside), Range.exactly(0.0)))

    return Forecast(
        flow=flow,
        about=seen.about,
        steps=seen.steps,
        read_files=seen.read_files,
        read_size=seen.read_size,
        seconds=seconds,
        cost=seconds * (price_per_hour / _HOUR) if seconds and price_per_hour else None,
        unknown=[each.name for each in missing],
        sampled=list(dict.fromkeys(each.kind for each in sampled)),
        notes=seen.notes,
    )


def _elsewhere() -> Range:
    """Return what was around the steps so far: of a run that only looks, that is loading and listing."""
    under_way = course.under_way()
    return Range.over([under_way.elsewhere] if under_way else [0.0])


def unknown(run: Run, seen: Outlook, rates: Rates) -> list[Spent]:
    """Return the work that a run would do and nobody has measured, one of each kind."""
    found = {
        each.key: each
        for work in seen.work
        for job in work.jobs
        for each in job
        if each.units and rates.of(_anywhere(each)) is None
    }
    return list(found.values())


def size_of(rates: Rates, works: Iterable[Spent]) -> int | None:
    """Return the bytes that some work would write; None where no run has measured that."""
    total = 0.0
    for each in works:
        size = rates.size_of(_anywhere(each)) if each.items else 0.0
        if size is None:
            return None
        total += size * each.items
    return round(total)


def _anywhere(work: Spent) -> Spent:
    """Return work as its rate is looked up: beside a cluster, on whichever device it was measured."""
    return work.model_copy(update={"device": ""}) if engine.has_cluster() else work


def _seconds(run: Run, work: Work, rates: Rates) -> Range:
    """Return how long some work takes: its jobs, so many at once, and what each task run adds to them."""
    places = compute_slots(run.device)

    def computing(jobs: Sequence[Sequence[Spent]], end: str) -> float:
        def job(parts: Sequence[Spent]) -> float:
            known = ((each, rates.of(_anywhere(each))) for each in parts if each.units)
            return sum(each.units * float(getattr(rate, end)) for each, rate in known if rate)

        return makespan([job(parts) for parts in jobs], places)

    low = computing(work.least or work.jobs, "low")
    spent = Range(low=low, middle=computing(work.jobs, "middle"), high=computing(work.jobs, "high"))
    extra = rates.of(course.task_runs(run, work.steps, 1)) if work.steps else None
    return spent + (extra * work.task_runs if extra else Range.exactly(0.0))


def describe(seen: Forecast) -> str:
    """Return a forecast as the report of its run, in Markdown."""
    header = "| step | what | done already | to compute | tried again | changed | task runs | files |"
    lines = [f"A dry run: nothing was computed or written. This run {seen.about}; it {seen.price}.", ""]
    lines += [header, "|---|---|---:|---:|---:|---:|---:|---:|"]
    for step in seen.steps:
        numbers = (step.found, step.computed, step.again, step.changed, step.task_runs, step.files)
        lines.append(f"| {step.step} | {step.unit} | {' | '.join(f'{each:,}' for each in numbers)} |")
    lines += ["", *(f"- {line}" for line in seen.facts)]
    return "\n".join(lines)


def _size(size: int) -> str:
    """Return bytes for a person."""
    for unit, large in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= large:
            return f"{size / large:.1f} {unit}"
    return f"{size} bytes"


def _span(seconds: Range) -> str:
    """Return a time for a person, with what it lies between."""
    for unit, length in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds.middle >= 2 * length or length == 1:
            low, middle, high = (each / length for each in (seconds.low, seconds.middle, seconds.high))
            return f"{middle:.1f} {unit} ({low:.1f} to {high:.1f})"
    raise AssertionError("a second is the smallest unit")
