"""The steps that flows are made of: each submits its tasks, waits for all, and says where the result is.

A step is a plain function, so one flow run holds all task runs of a chain, and Retry sees them.
"""

from __future__ import annotations

from typing import Any, cast

from prefect import unmapped
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import BaseModel, ConfigDict

from tasks import editing, images, inversion, mappers, models, relevance, reports, sampling
from tasks.caching import probe_result_storage
from tasks.choosing import ChoicePlan, ChosenStrength, choose_strength
from tasks.directions import PreparedStep, TableRef, check_edit, compute_direction, find_table
from tasks.edits import (
    Edit,
    EditStep,
    EditVariant,
    RelevanceSource,
    StepVariant,
    automatic_steps,
    replace_steps,
)
from tasks.identity import ModelHashes, identify_models
from tasks.images import ImageIndex
from tasks.instant import compute_instant_direction
from tasks.inversion import InversionPlan
from tasks.mappers import MapperRef, prepare_mapper
from tasks.methods import PreparedEdit
from tasks.optimization import prepare_optimization
from tasks.overlap import shards_at_once
from tasks.progress import ShardResult, StepSummary, gather
from tasks.relevance import RelevancePlan
from tasks.reports import ReportRef
from tasks.sampling import SampledStyles
from tasks.settings import (
    Execution,
    Instant,
    Inversion,
    MapperTraining,
    Models,
    Relevance,
    Sampling,
    SettingsError,
)
from tasks.storage import delete_stale_temporaries


class StepCounts(BaseModel):
    """How much of a step this run did."""

    model_config = ConfigDict(frozen=True)

    step: str
    shards: int
    computed: int
    rows: int
    failed: int
    seconds: float


class RunResult(BaseModel):
    """What a flow returns: where its results lie and what it did."""

    model_config = ConfigDict(frozen=True)

    steps: list[StepCounts] = []
    styles: SampledStyles | None = None
    table: TableRef | None = None
    latents: str = ""
    report: ReportRef | None = None
    mappers: list[MapperRef] = []
    edits: list[Edit] = []
    choices: list[ChosenStrength] = []


def task_runner() -> TaskRunner[PrefectFuture[Any]]:
    """Return the runner that works on as many shards at once as this machine should."""
    runner = ThreadPoolTaskRunner(max_workers=shards_at_once(models.any_device()))  # type: ignore[var-annotated]
    return cast(TaskRunner[PrefectFuture[Any]], runner)


def begin(chosen: Models, execution: Execution, *, with_clip: bool = True) -> tuple[ModelHashes, str]:
    """Check result storage, load the networks, and return their hashes and the device."""
    device = models.pick_device(execution)
    models.share_cores(device)
    probe_result_storage()
    hashes = identify_models(chosen, device, with_clip=with_clip)
    get_run_logger().info(
        "generator %s, CLIP %s, on %s", hashes.generator[:12], hashes.clip[:12] or "not needed", device
    )
    return hashes, device


def sample(
    chosen: Models, hashes: ModelHashes, settings: Sampling, workspace: str, device: str
) -> tuple[SampledStyles, StepSummary[ShardResult]]:
    """Seeds -> style codes and the statistics of style space."""
    planned = sampling.plan(hashes.generator, settings, workspace)
    shared = (planned, chosen.generator, settings)
    codes = sampling.sample_codes.submit(*shared, device)
    parts = [
        sampling.sample_shard.submit(*shared, number, device)
        for number in range(sampling.shard_count(settings))
    ]
    summary = gather("sample-styles", [codes, *parts])
    uris = [result.uri for result in summary.results[1:]]
    sampling.merge_statistics(*shared, uris, device)
    return planned, summary


def measure(planned: RelevancePlan, device: str) -> tuple[TableRef, StepSummary[ShardResult]]:
    """Channel shards -> one relevance table."""
    layout = models.generator(planned.models.generator, device).layout
    shards = relevance.shards(layout, planned.settings)
    derivatives = _derivatives(planned, device)
    futures = [relevance.measure_shard.submit(planned, shard, derivatives, device) for shard in shards]
    summary = gather("build-relevance", futures)
    relevance.merge_relevance(planned, [result.uri for result in summary.results], device)
    table = TableRef(
        relevance=planned.table, statistics=planned.styles.statistics, fingerprint=planned.fingerprint
    )
    return table, summary


def _derivatives(planned: RelevancePlan, device: str) -> relevance.DerivativesRef | None:
    """Style codes -> derivatives of the embedding, if the settings ask for them."""
    ranges = relevance.derivative_shards(planned.settings)
    if not ranges:
        return None
    basis = relevance.measure_basis(planned, device)
    futures = [relevance.measure_derivatives.submit(planned, basis, *each, device) for each in ranges]
    found = gather("derivatives", futures)
    return relevance.DerivativesRef(basis=basis, parts=[result.uri for result in found.results])


def check_places(photos: str, out: str, workspace: str) -> None:
    """Refuse to write into the input, and clear what killed writers left aside.

    Raises:
        SettingsError: If results would lie among the photographs.
    """
    source = photos.rstrip("/") + "/"
    for name, place in (("out", out), ("workspace", workspace)):
        if f"{place.rstrip('/')}/".startswith(source):
            raise SettingsError(
                f"{name} {place} lies inside the photographs {photos}: the next run would edit its own "
                "results; choose a place outside"
            )
        delete_stale_temporaries(place)


def check_edits(variants: list[EditVariant], chosen: Models, device: str) -> None:
    """Refuse prompts and layers that cannot work, before hours of work on the table."""
    directions_wanted = [step for step in distinct_steps(variants) if step.method == "global"]
    if directions_wanted:
        check_edit.map(directions_wanted, unmapped(chosen), unmapped(device)).result()


def distinct_steps(variants: list[EditVariant]) -> list[StepVariant]:
    """Return every step of the edits once, in order."""
    return list(dict.fromkeys(step for variant in variants for step in variant.steps))


def needs(variants: list[EditVariant], source: RelevanceSource) -> bool:
    """Return whether a step is a style direction whose relevance comes from there; nothing else needs it."""
    return any(step.method == "global" and step.relevance == source for step in distinct_steps(variants))


def prepare_others(
    variants: list[EditVariant], chosen: Models, hashes: ModelHashes, device: str
) -> dict[StepVariant, PreparedStep]:
    """Mappers and optimizations; one that cannot work stops the run here, at once."""
    prepare = {"mapper": prepare_mapper, "optimization": prepare_optimization}
    return {
        step: prepare[step.method](step, chosen, hashes, device)
        for step in distinct_steps(variants)
        if step.method != "global"
    }


def index(photos: str, workspace: str, execution: Execution) -> ImageIndex:
    """A prefix of images -> an index in shards."""
    return images.index_images(photos, workspace, execution.shard_size)


def invert(
    listed: ImageIndex, workspace: str, chosen: Models, hashes: ModelHashes, settings: Inversion, device: str
) -> tuple[InversionPlan, StepSummary[ShardResult]]:
    """An index of images -> latents."""
    planned = inversion.plan(listed.photos, workspace, chosen, hashes, settings)
    futures = [inversion.invert_shard.submit(planned, shard, device) for shard in listed.shards]
    return planned, gather("invert-images", futures)


def edit(
    chosen: list[PreparedEdit],
    listed: ImageIndex,
    inverted: InversionPlan,
    out: str,
    workspace: str,
    device: str,
) -> tuple[list[editing.EditPlan], StepSummary[ShardResult]]:
    """Latents + style directions -> edited images and their rows."""
    plans = [editing.plan(out, workspace, direction, inverted) for direction in chosen]
    futures = [editing.edit_shard.submit(plans, shard, device) for shard in listed.shards]
    return plans, gather("edit-images", futures)


def directions(
    variants: list[EditVariant],
    table: TableRef | None,
    chosen: Models,
    hashes: ModelHashes,
    workspace: str,
    device: str,
    others: dict[StepVariant, PreparedStep],
    styles: SampledStyles | None,
    instant: Instant,
) -> list[PreparedEdit]:
    """Prompts -> style directions; a prompt that names no direction stops the run here, at once."""
    prepared = dict(others)
    for step in distinct_steps(variants):
        if step.method == "global" and step.relevance == "table" and table:
            prepared[step] = compute_direction(step, table, chosen, hashes, workspace, device)
        elif step.method == "global" and styles:
            prepared[step] = compute_instant_direction(
                step, styles, instant, chosen, hashes, workspace, device
            )
    return [
        PreparedEdit(variant=variant, steps=[prepared[step] for step in variant.steps])
        for variant in variants
    ]


def choose(edits: list[Edit], planned: ChoicePlan, device: str) -> tuple[list[Edit], list[ChosenStrength]]:
    """Edits of which some say auto -> the same edits in numbers, and the choices made."""
    chosen: dict[EditStep, ChosenStrength] = {}
    for step in automatic_steps(edits):
        bare = EditStep(**{name: getattr(step, name) for name in EditStep.model_fields})
        if bare not in chosen:
            chosen[bare] = choose_strength(bare, planned, device)

    def number(step: EditStep) -> EditStep:
        bare = EditStep(**{name: getattr(step, name) for name in EditStep.model_fields})
        return chosen[bare].apply(step) if step.automatic else step

    return replace_steps(edits, number), list(chosen.values())


def train(
    targets: list[str],
    workspace: str,
    chosen: Models,
    hashes: ModelHashes,
    settings: MapperTraining,
    device: str,
) -> list[MapperRef]:
    """Prompts -> mappers, one after the other: each may take the whole machine."""
    if not targets:
        raise SettingsError("there is no prompt to train a mapper for; give at least one")
    weight = settings.settings().identity_weight
    if weight > 0 and not chosen.identity:
        raise SettingsError(
            f"identity_weight is {weight:g}, but there is no identity network; "
            "give --identity or set --identity-weight 0"
        )
    planned = [mappers.plan(target, workspace, chosen, hashes, settings) for target in targets]
    return [mappers.train_mapper(each, device) for each in planned]


def table_for(
    chosen: Models,
    hashes: ModelHashes,
    sampling_settings: Sampling,
    relevance_settings: Relevance,
    workspace: str,
    device: str,
    *,
    given: str = "",
) -> tuple[SampledStyles | None, TableRef, list[StepCounts]]:
    """Style codes, then the relevance table on them; or the table that lies in the folder ``given``."""
    if given:
        return None, find_table(given, chosen, hashes, device), []
    enough = max(sampling_settings.codes, relevance_settings.first_sample + relevance_settings.samples)
    settings = sampling_settings.model_copy(update={"codes": enough})
    styles, sampled = sample(chosen, hashes, settings, workspace, device)
    planned = relevance.plan(workspace, chosen, hashes, styles, relevance_settings)
    table, measured = measure(planned, device)
    return styles, table, [counts(sampled), counts(measured)]


def refine(
    chosen: Models,
    hashes: ModelHashes,
    sampling_settings: Sampling,
    relevance_settings: Relevance,
    add: int,
    last: str,
    workspace: str,
    device: str,
) -> RunResult:
    """The last relevance table and ``add`` new samples -> the table over all of them."""
    enough = max(sampling_settings.codes, relevance_settings.samples)
    settings = sampling_settings.model_copy(update={"codes": enough})
    styles, sampled = sample(chosen, hashes, settings, workspace, device)
    base = relevance.plan(workspace, chosen, hashes, styles, relevance_settings)
    before = relevance.find_last_table(workspace, base, last)
    first = before.last
    codes = sampling.sample_more_codes(styles, chosen.generator, settings, first, first + add, device)
    more = relevance_settings.model_copy(update={"first_sample": first, "samples": add})
    extended = styles.model_copy(update={"codes": codes.uri})
    planned = relevance.plan(workspace, chosen, hashes, extended, more)
    _, measured = measure(planned, device)
    after = relevance.refine_relevance(workspace, before, planned, device)
    get_run_logger().info("%s samples: %d", after.uri, after.samples)
    table = TableRef(relevance=after.uri, statistics=styles.statistics, fingerprint=after.fingerprint)
    return RunResult(steps=[counts(sampled), counts(measured)], styles=styles, table=table)


def report(plans: list[editing.EditPlan], listed: ImageIndex, steps: list[StepCounts]) -> ReportRef:
    """Rows of all edits -> manifest, contact sheet and page."""
    written = reports.write_report(plans, listed)
    reports.publish(written, [step.model_dump() for step in steps])
    return written


def counts(summary: StepSummary[ShardResult]) -> StepCounts:
    """Return a summary without its results."""
    return StepCounts(
        step=summary.step,
        shards=len(summary.results),
        computed=summary.computed,
        rows=summary.rows,
        failed=summary.failed,
        seconds=summary.seconds,
    )
