"""Work that no run has measured yet, done on a sample in a temporary folder, of which nothing is kept.

Probes come first, with few images and few steps. Where the whole sample would take longer than people wait
for an answer, they are what there is, and a line through them says what more steps take.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import prefect
import torch

from styleclip.flows import course
from styleclip.flows.course import aside, task_runs, wait_for
from styleclip.flows.steps.editing import instant_work, invert_and_edit
from styleclip.tasks.directions import matching, relevance, sampling
from styleclip.tasks.directions.instant import compute_instant_direction
from styleclip.tasks.directions.relevance import ChannelShard, DerivativesRef, RelevancePlan
from styleclip.tasks.directions.relevant import channels_uri, write_channels
from styleclip.tasks.directions.sampling import SampledStyles
from styleclip.tasks.directions.style_directions import (
    PreparedStep,
    direction_recipe,
    direction_uri,
    prepared,
    write_direction,
)
from styleclip.tasks.editing import accounts, mappers
from styleclip.tasks.editing import plans as planning
from styleclip.tasks.editing.mappers import MapperPlan
from styleclip.tasks.editing.methods import PreparedEdit
from styleclip.tasks.editing.plans import EditPlan
from styleclip.tasks.photographs import inversion
from styleclip.tasks.photographs.images import ImageIndex, ImageShard
from styleclip.tasks.photographs.inversion import InversionPlan, invert_shard
from styleclip.tasks.reports import batch
from styleclip.tasks.reports.page import thumbnails
from styleclip.tasks.reports.page.page import build_page
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import compute_slots
from styleclip.tasks.running.rates import Spent
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import Instant, Inversion, Sampling
from styleclip.tasks.settings.edits import EditVariant, StepVariant
from styleclip.tasks.storage import join
from styleclip_core.editing import StyleDirection
from styleclip_core.relevant import RelevantChannels

_PATIENCE = 20.0  # seconds that a whole sample may take; what is expected to take longer is only probed
_PROBE_IMAGES, _PROBE_STEPS, _MANY_STEPS = 4, (2, 8), 10
_IMAGES = 16  # of a shard, at most
_CHANNELS, _CODES, _STATISTICS = 4, 8, 1000
_TRAINING, _VALIDATION = 6, 16  # steps and codes
_LOOKED_AT = 100  # codes, the fewest there may be


@contextmanager
def _elsewhere(run: Run) -> Iterator[Run]:
    """Give a run whose artifacts and results go into a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="styleclip-sample-") as folder:
        there = {"workspace": join(folder, "workspace"), "out": join(folder, "out")}
        yield run.model_copy(update=there)


@unit_of_work("nothing")
def _nothing() -> str:
    """Do nothing, as a task."""
    return ""


def nothing(flow_name: str) -> Spent:
    """Return what a run takes that does nothing: what Prefect does before and after the work of any."""

    @prefect.flow(name="does-nothing", flow_run_name="nothing, timed", persist_result=True)
    def empty() -> str:
        return _nothing()

    began = time.monotonic()
    empty()
    seconds = time.monotonic() - began

    # not a part of what the run that looks does itself
    if under_way := course.under_way():
        under_way.waited += seconds
    return course.ending(flow_name, seconds)


# ---- images --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shortened:
    """A sample's settings, and by how much work of a kind is more than the sample's.

    Attributes:
        inversion: How its photographs are inverted.
        plans: Its edits.
        whole: The kind of the whole work, by that of the sample's, and how many times as long it takes.
    """

    inversion: InversionPlan
    plans: list[EditPlan]
    whole: dict[tuple[str, str], tuple[str, float]]


def images(
    run: Run,
    flow: str,
    listed: ImageIndex,
    planned: InversionPlan,
    plans: Sequence[EditPlan],
    numbers: Sequence[int],
) -> list[Spent]:
    """Return what inverting and editing take, from shards of images that would be worked on.

    Args:
        run: Networks and places.
        flow: Name of the flow.
        listed: The images.
        planned: How they are inverted.
        plans: Their edits, none if they are only inverted.
        numbers: Numbers of the shards that have work.
    """
    chosen = [listed.shards[number] for number in numbers][: compute_slots(run.device)]
    one_of_each = list({accounts.edit_work(run, plan, 1).about: plan for plan in plans}.values())
    steps = max([0, *_steps_of(planned.settings, one_of_each)])

    def measure(count: int, fraction: float) -> list[_Measured]:
        return _pass(run, flow, listed, chosen, planned, one_of_each, count, fraction)

    # the first pass warms up; where there are many steps, two more say what a step takes
    found = measure(_PROBE_IMAGES, 1 / max(1, steps))
    if steps > _MANY_STEPS:
        few, more = (measure(_PROBE_IMAGES, count / steps) for count in _PROBE_STEPS)
        found = _extended(few, more)
    spent = [each.spent for each in found]
    whole = sum(each.seconds / each.units for each in spent if each.kind in ("invert", "edit", "draw"))
    slow = whole * _IMAGES > _PATIENCE
    if steps > _MANY_STEPS and slow:
        return spent
    return [each.spent for each in measure(_PROBE_IMAGES if slow else _IMAGES, 1.0)]


def _extended(few: Sequence[_Measured], more: Sequence[_Measured]) -> list[_Measured]:
    """Return what all steps take, of what a few and some more of them took: a line through both."""
    known = {each.spent.key: each for each in few}
    found = []
    for each in more:
        other, seconds = known.get(each.spent.key), each.spent.seconds
        if other and other.times > each.times > 1:
            before, after = (one.spent.seconds / one.spent.units for one in (other, each))
            slope = max(0.0, after - before) / (1 / each.times - 1 / other.times)
            seconds += each.spent.units * slope * (1 - 1 / each.times)
        found.append(_Measured(each.spent.model_copy(update={"seconds": seconds}), 1.0))
    return found


@dataclass(frozen=True)
class _Measured:
    """What a pass took, and how many times as many steps the whole has."""

    spent: Spent
    times: float


def _steps_of(settings: Inversion, plans: Sequence[EditPlan]) -> list[int]:
    """Return the numbers of steps that descents have."""
    mine = [settings.steps, *([settings.own.steps] if settings.own else [])]
    optimized = [step.variant for plan in plans for step in plan.prepared.steps if step.variant.optimization]
    return mine + [each.optimization_parameters()["steps"] for each in optimized]


def _still_channels(there: Run, step: PreparedStep) -> PreparedStep:
    """Return a step of an optimization with channels in the sample's folder that all stay."""
    recipe = direction_recipe(there, "sample", "1", step.variant.parameters(), {"channels": step.content})
    still = torch.zeros(there.generator.layout.num_editable)
    write_channels(there, recipe, RelevantChannels(still, still, still, still, still))
    return step.model_copy(update={"uri": channels_uri(there, recipe), "content": recipe.fingerprint})


def _pass(
    run: Run,
    flow: str,
    listed: ImageIndex,
    chosen: Sequence[ImageShard],
    planned: InversionPlan,
    plans: Sequence[EditPlan],
    count: int,
    fraction: float,
) -> list[_Measured]:
    """Invert and edit some images with a fraction of the steps, and return what that takes."""
    with _elsewhere(run) as there, aside(there) as sample:
        short = _shorten(there, planned, plans, min(1.0, fraction))
        # under a name of their own: a cut shard is none of those that runs know
        cut = [
            shard.model_copy(update={
                "rows": min(shard.rows, count), "digest": f"sample-{number}", "number": number, "before": (),
            })
            for number, shard in enumerate(chosen)
        ]  # fmt: skip
        index = listed.model_copy(update={"shards": cut})

        if short.plans:
            invert_and_edit(there, short.plans, index)
            _report(there, flow, short.plans, index)
        else:
            futures = [invert_shard.submit(there, short.inversion, shard) for shard in cut]
            wait_for({"invert-images": futures})
        return [_whole(run, each, short) for each in sample.measured]


def _whole(run: Run, spent: Spent, short: _Shortened) -> _Measured:
    """Return what was measured of a part of the steps under the name that all have, and the run's places."""
    kind, times = short.whole.get((spent.kind, spent.about), (spent.about, 1.0))
    return _Measured(_settled(run, spent.model_copy(update={"about": kind})), times)


def _report(there: Run, flow: str, plans: list[EditPlan], index: ImageIndex) -> None:
    """Write manifest and page of a sample, and keep what that takes beside what the run has taken so far."""
    began, current = time.monotonic(), course.under_way()
    so_far = current.outer.elsewhere if current and current.outer else 0.0
    written = batch.write_report.fn(there, plans, index)
    page = thumbnails.plan_page.fn(there, written.manifest)
    made = [thumbnails.thumbnail_chunk.fn(page.source, chunk) for chunk in page.chunks]
    build_page(page, sum(each.size for each in made))

    pictures = [spent for each in made for spent in each.spent]
    rest = time.monotonic() - began - sum(each.seconds for each in pictures)
    course.keep(*pictures, course.around(flow, so_far + rest), waited=True)


def _shorten(there: Run, planned: InversionPlan, plans: Sequence[EditPlan], fraction: float) -> _Shortened:
    """Return an inversion and edits with a fraction of their steps, and directions in the sample's folder."""

    def part(steps: int) -> int:
        return max(1, round(fraction * steps)) if steps else 0

    settings, whole = planned.settings, dict[tuple[str, str], tuple[str, float]]()
    fewer = replace(settings, steps=part(settings.steps))
    if settings.pivotal:
        fewer = replace(fewer, pivotal=replace(settings.pivotal, steps=part(settings.pivotal.steps)))
    if settings.features:
        fewer = replace(fewer, features=replace(settings.features, steps=part(settings.features.steps)))
    inverted = inversion.plan(there, planned.photos, fewer)
    before, after = sum(_steps_of(settings, [])), sum(_steps_of(fewer, []))
    theirs, mine = (inversion.work(there, each, 1) for each in (planned, inverted))
    whole[mine.kind, mine.about] = (theirs.about, before / after if after else 1.0)

    shortened = []
    for plan in plans:
        steps, times = [_short_step(there, each, part) for each in plan.prepared.steps], 1.0
        if optimized := [each for each in plan.prepared.steps if each.variant.optimization]:
            long = sum(each.variant.optimization_parameters()["steps"] for each in optimized)
            times = long / sum(part(each.variant.optimization_parameters()["steps"]) for each in optimized)
        variant = EditVariant(name=plan.prepared.variant.name, steps=tuple(each.variant for each in steps))
        short = planning.plan(there, PreparedEdit(variant=variant, steps=steps), inverted, plan.saving)
        mine = accounts.edit_work(there, short, 1)
        whole[mine.kind, mine.about] = (accounts.edit_work(there, plan, 1).about, times)
        shortened.append(short)
    return _Shortened(inverted, shortened, whole)


def _short_step(there: Run, step: PreparedStep, part: Callable[[int], int]) -> PreparedStep:
    """Return a step for a sample: a direction that moves nothing, which takes as long, or fewer steps."""
    variant = step.variant
    if variant.optimization:
        steps = part(variant.optimization_parameters()["steps"])
        fewer = variant.optimization.model_copy(update={"steps": steps})
        short = step.model_copy(update={"variant": variant.model_copy(update={"optimization": fewer})})
        return _still_channels(there, short) if variant.guided else short
    if variant.method == "mapper":
        return step

    recipe = direction_recipe(there, "sample", "1", variant.parameters(), {})
    still = torch.zeros(there.generator.layout.num_editable)
    write_direction(there, recipe, variant, StyleDirection(still, still, 0, ()))
    return prepared(variant, direction_uri(there, recipe))


# ---- the relevance table, directions from gradients ----------------------------------------------------


def styles(run: Run, settings: Sampling) -> list[Spent]:
    """Return what it takes to sample style codes."""
    with _elsewhere(run) as there, aside(there) as sample:
        _sampled(there, settings, 1)
        return sample.measured


def table(run: Run, planned: RelevancePlan) -> list[Spent]:
    """Return what it takes to measure channels, from some of each layer at some codes."""
    settings, layers = planned.settings, run.generator.layout.editable
    with _elsewhere(run) as there, aside(there) as sample:
        codes = min(settings.samples, _CODES)
        found = _sampled(there, planned.styles.settings, codes)
        short = replace(settings, first_sample=0, samples=codes)
        if settings.tolerance:
            short = replace(short, minimum=min(settings.minimum, codes))

        # one channel at two codes says how many of them there is time for
        probe = ChannelShard(number=0, total=1, layer=layers[0].name, first=0, last=1)
        began, few = time.monotonic(), replace(short, samples=min(codes, 2), tolerance=0.0, derivatives=0)
        relevance.measure_shard.fn(there, relevance.plan(there, found, few), probe, None)
        affordable = _PATIENCE / max(time.monotonic() - began, 1e-3) * few.samples / len(layers)
        each = max(1, min(_CHANNELS, int(affordable / codes)))

        planned_here = relevance.plan(there, found, short)
        cut = [
            ChannelShard(
                number=number, total=len(layers), layer=layer.name, first=0, last=min(each, layer.channels)
            )
            for number, layer in enumerate(layers)
        ]
        sample.measured.clear()  # codes are fewer than a table's; what follows is as it is there
        derivatives = _derivatives(there, planned_here)
        futures = [relevance.measure_shard.submit(there, planned_here, shard, derivatives) for shard in cut]
        wait_for({"build-relevance": futures})
        return [_settled(run, spent) for spent in sample.measured]


def _derivatives(there: Run, planned: RelevancePlan) -> DerivativesRef | None:
    ranges = relevance.derivative_shards(planned.settings)
    if not ranges:
        return None
    basis = relevance.measure_basis.fn(there, planned)
    parts = [relevance.measure_derivatives.fn(there, planned, basis, *each) for each in ranges]
    course.keep(*(spent for part in parts for spent in part.spent))
    return DerivativesRef(basis=basis, ranges=ranges)


def _sampled(there: Run, settings: Sampling, codes: int) -> SampledStyles:
    """Sample some style codes and statistics of fewer than are wanted."""
    fewer = {"codes": codes, "statistics": min(settings.statistics, _STATISTICS)}
    found = sampling.plan(there, settings.model_copy(update=fewer))
    done = [sampling.sample_codes.fn(there, found), sampling.sample_shard.fn(there, found, 0)]
    sampling.merge_statistics.fn(there, found, [done[1].uri])

    # a thousand codes say more of the pace than the few that are stored
    course.keep(*done[1].spent)
    return found


def looking(run: Run, settings: Sampling) -> list[Spent]:
    """Return what it takes CLIP to look at some sampled codes."""
    with _elsewhere(run) as there:
        few = matching.plan(there, settings.model_copy(update={"looked_at": _LOOKED_AT}))
        return list(matching.look_at_codes.fn(there, few, 0).spent)


def instant(run: Run, variant: StepVariant, settings: Sampling, how: Instant) -> list[Spent]:
    """Return what one direction from gradients takes."""
    with _elsewhere(run) as there, aside(there) as sample:
        found = _sampled(there, settings, how.codes)
        with course.timed(instant_work(there, how)):
            compute_instant_direction.fn(
                there, variant.model_copy(update={"beta": None, "top_k": 1}), found, how
            )
        return sample.measured


# ---- mappers -------------------------------------------------------------------------------------------


def training(run: Run, planned: MapperPlan) -> list[Spent]:
    """Return what a few steps of a training take, and a validation."""
    wanted = planned.settings.settings()
    fewer = {"steps": _TRAINING, "validate_every": _TRAINING, "patience": None, "validation": _VALIDATION}
    codes = {} if planned.settings.latents else {"codes": _VALIDATION + _TRAINING * wanted.batch_size}
    with _elsewhere(run) as there, aside(there):
        short = mappers.plan(there, planned.target, planned.settings.model_copy(update=fewer | codes))
        if short.seen:  # what is looked at once is no part of a step
            few = matching.plan(there, Sampling(looked_at=_LOOKED_AT))
            short = short.model_copy(update={"seen": few})
        return list(mappers.train_mapper.fn(there, short).spent)


def _settled(run: Run, spent: Spent) -> Spent:
    """Return what was measured of a sample under the run's own places."""
    if spent.kind != "task run":
        return spent
    steps = spent.about.partition(",")[0].split(" + ")
    return spent.model_copy(update={"about": task_runs(run, steps, 1).about})
