"""Dry runs: what a flow would do and take, told and not done; the same as a run begins, where it is known.

A dry run writes nothing into workspace, results or photographs. Prefect keeps the run and its report. What no
run has measured yet is measured on a sample, in a temporary folder of this machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from prefect.logging import get_run_logger
from prefect.states import Completed

from styleclip.flows import engine
from styleclip.flows.course import ending
from styleclip.flows.estimates import Forecast, Outlook, describe, forecast, unknown
from styleclip.flows.run import announce
from styleclip.flows.steps import samples
from styleclip.flows.steps.dry_runs import Editing
from styleclip.tasks.directions import relevance, sampling
from styleclip.tasks.directions.relevance import RelevancePlan
from styleclip.tasks.directions.sampling import SampledStyles
from styleclip.tasks.editing import mappers
from styleclip.tasks.photographs import inversion
from styleclip.tasks.photographs.images import ImageIndex
from styleclip.tasks.reports.summaries import publish_report
from styleclip.tasks.running.rates import Rates, Spent, read_rates
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import Inversion, MapperTraining, Relevance, Sampling

_MOST_LOOKED_AT = 2000  # shards, times their edits, that a run looks at twice to say what it will cost
_R = TypeVar("_R")
_NAME = "DryRun"  # of the state that a dry run ends in
Looking = Callable[[Rates], Outlook]
Measuring = Callable[[list[Spent]], list[Spent]]


def tell(flow: str, run: Run, look: Looking, sample: Measuring, price_per_hour: float) -> Forecast:
    """Return what a run would do and take, and show it as the run's report.

    Args:
        flow: Its name.
        run: Networks and places.
        look: Counts what is to be done; it is asked again when samples say how large files become.
        sample: Work that no run has measured -> what it takes.
        price_per_hour: Of the machine; 0 for none.
    """
    rates, measured = read_rates(run.workspace), list[Spent]()
    seen = look(rates)
    if (missing := unknown(run, seen, rates)) and not engine.has_cluster():
        measured = sample(missing)
        # what runs have measured goes before what a sample says
        rates = rates.adding(each for each in measured if rates.of(each) is None)
        # a choice has no sample: it is as long as its prompt is hard
        missing = [each for each in missing if rates.of(each) is not None]
        get_run_logger().info("measured on a sample: %s", ", ".join(each.name for each in missing))
        seen = look(rates)

    if rates.of(ending(flow)) is None and not engine.has_cluster():
        rates = rates.adding([samples.nothing(flow)])
    found = forecast(flow, run, seen, rates, price_per_hour, [each for each in missing if measured])
    get_run_logger().info("a dry run: this run %s; it %s", found.about, found.price)
    publish_report(flow, describe(found), f"dry run: {found.about}")
    return found


def only_told(result: _R) -> _R:
    """Return what a flow is to return of a dry run, so that nobody takes its end for that of the work.

    The run completes in a state of another name. Alerts and metrics that wait for a completed night do not
    count it, and the server's pages show it.
    """
    return cast(_R, Completed(name=_NAME, data=result))  # which Prefect takes apart again


def foretell(
    flow: str, run: Run, plan: str, look: Looking, price_per_hour: float, *, shards: int = 0
) -> None:
    """Say what a run is about to do, and what it takes where runs have measured that.

    Args:
        flow: Its name.
        run: Networks and places.
        plan: What it will do.
        look: Counts what is to be done.
        price_per_hour: Of the machine; 0 for none.
        shards: Shards that are looked at, times their edits: where there are many, the plan alone is said.
    """
    rates = read_rates(run.workspace)
    if not rates.measured or shards > _MOST_LOOKED_AT:
        announce(flow, plan)
        return

    found = forecast(flow, run, look(rates), rates, price_per_hour)
    announce(flow, f"{plan}; it {found.price}" if not found.unknown else plan)


# ---- samples -------------------------------------------------------------------------------------------


def sample_images(run: Run, listed: ImageIndex, settings: Inversion) -> Measuring:
    """Return what measures inverting on some of the images."""
    planned = inversion.plan(run, listed.photos, settings)
    every = range(len(listed.shards))
    return lambda _missing: samples.images(run, "invert-images", listed, planned, [], every)


def sample_edits(run: Run, editing: Editing) -> Measuring:
    """Return what measures editing, and all that comes before it."""

    def measure(missing: list[Spent]) -> list[Spent]:
        kinds, found, settings = {each.kind for each in missing}, list[Spent](), editing.settings
        if kinds & {"invert", "edit", "draw", "thumbnails"}:
            found += samples.images(
                run, "edit-images", editing.listed, editing.inversion, editing.plans, editing.busy
            )
        if editing.styles:
            found += _sample_table(run, kinds, editing.styles, editing.relevance)
        if "look" in kinds:
            found += samples.looking(run, settings.sampling)
        if "instant direction" in kinds:
            found += samples.instant(run, editing.instants()[0], settings.sampling, settings.instant)
        return found

    return measure


def sample_table(run: Run, settings: Sampling, how: Relevance) -> Measuring:
    """Return what measures the building of a relevance table."""
    styles = sampling.plan(run, settings)
    planned = relevance.plan(run, styles, how)
    return lambda missing: _sample_table(run, {each.kind for each in missing}, styles, planned)


def _sample_table(
    run: Run, kinds: set[str], styles: SampledStyles, planned: RelevancePlan | None
) -> list[Spent]:
    found = samples.styles(run, styles.settings) if "sample" in kinds else []
    if planned and kinds & {"measure", "derivatives"}:
        found += samples.table(run, planned)
    return found


def sample_training(run: Run, target: str, settings: MapperTraining) -> Measuring:
    """Return what measures the training of mappers."""
    planned = mappers.plan(run, target, settings)

    def measure(missing: list[Spent]) -> list[Spent]:
        found = samples.training(run, planned)
        if planned.seen and "look" in {each.kind for each in missing}:
            found += samples.looking(run, planned.seen.sampling)
        return found

    return measure
