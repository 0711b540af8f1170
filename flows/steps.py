"""The steps that flows are made of: each submits its tasks, waits for all, and says where the result is.

A step is a plain function, so one flow run holds all task runs of a chain, and Retry sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import Task, runtime, unmapped
from prefect.artifacts import create_markdown_artifact
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict

from flows import engine
from flows.engine import task_runner as task_runner  # flows take it from here
from tasks import (
    diagnostics,
    editing,
    images,
    inversion,
    mappers,
    models,
    nights,
    relevance,
    reports,
    sampling,
    step_similarity,
)
from tasks.artifacts import read_provenance
from tasks.caching import probe_result_storage
from tasks.choosing import ChoicePlan, ChosenStrength, choose_strength
from tasks.diagnostics import DiagnosisRef
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
from tasks.outcomes import Row
from tasks.overlap import shards_at_once
from tasks.pages import thumbnails
from tasks.pages.evaluations import find_evaluations
from tasks.pages.page import write_page
from tasks.progress import ShardResult, StepSummary, gather, gather_chain
from tasks.relevance import RelevancePlan
from tasks.reports import ReportRef
from tasks.sampling import SampledStyles
from tasks.settings import (
    Execution,
    Instant,
    Inversion,
    MapperTraining,
    Models,
    Nightly,
    Relevance,
    Sampling,
    SettingsError,
)
from tasks.storage import delete_stale_temporaries
from tasks.summaries import publish_batch, publish_summary


class StepCounts(BaseModel):
    """How much of a step this run did."""

    model_config = ConfigDict(frozen=True)

    step: str
    shards: int
    computed: int
    rows: int
    failed: int
    seconds: float
    rate: float = 0.0


class RunResult(BaseModel):
    """What a flow returns: where its results lie and what it did."""

    model_config = ConfigDict(frozen=True)

    steps: list[StepCounts] = []
    styles: SampledStyles | None = None
    table: TableRef | None = None
    latents: str = ""
    report: ReportRef | None = None
    diagnosis: DiagnosisRef | None = None
    step_similarity: str = ""
    mappers: list[MapperRef] = []
    edits: list[Edit] = []
    choices: list[ChosenStrength] = []


def begin(
    chosen: Models, execution: Execution, workspace: str, out: str = "", *, with_clip: bool = True
) -> tuple[ModelHashes, str]:
    """Clear up where results will lie, check result storage, load the networks; returns hashes and device."""
    clear_up(workspace, out or workspace)
    device = engine.pick_device(execution)
    models.share_cores(device)
    probe_result_storage()
    hashes = engine.run(identify_models, chosen, device, with_clip=with_clip)
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
    engine.run(sampling.merge_statistics, *shared, uris, device)
    return planned, summary


def measure(planned: RelevancePlan, device: str) -> tuple[TableRef, StepSummary[ShardResult]]:
    """Channel shards -> one relevance table."""
    layout = models.generator(planned.models.generator, engine.here(device)).layout
    shards = relevance.shards(layout, planned.settings)
    derivatives = _derivatives(planned, device)
    futures = [relevance.measure_shard.submit(planned, shard, derivatives, device) for shard in shards]
    summary = gather("build-relevance", futures)
    engine.run(relevance.merge_relevance, planned, [result.uri for result in summary.results], device)
    table = TableRef(
        relevance=planned.table, statistics=planned.styles.statistics, fingerprint=planned.fingerprint
    )
    return table, summary


def _derivatives(planned: RelevancePlan, device: str) -> relevance.DerivativesRef | None:
    """Style codes -> derivatives of the embedding, if the settings ask for them."""
    ranges = relevance.derivative_shards(planned.settings)
    if not ranges:
        return None
    basis = engine.run(relevance.measure_basis, planned, device)
    futures = [relevance.measure_derivatives.submit(planned, basis, *each, device) for each in ranges]
    found = gather("derivatives", futures)
    return relevance.DerivativesRef(basis=basis, parts=[result.uri for result in found.results])


def gather_items(
    step: str, work: Task[..., ShardResult], calls: Sequence[tuple[Any, ...]]
) -> StepSummary[ShardResult]:
    """Run shards of items and wait for all; on Retry, shards with failed items are tried again too.

    A shard whose items failed has finished, and its result is kept. So that Retry reaches those items, such a
    shard is executed again, and tries what has no good outcome yet.
    """

    def again(number: int) -> PrefectFuture[ShardResult]:
        return anew(work).submit(*calls[number])

    return gather(step, [work.submit(*call) for call in calls], again if is_retry() else None)


def anew(work: Task[..., ShardResult]) -> Task[..., ShardResult]:
    """Return a task that is executed though a result of it is kept."""
    return work.with_options(refresh_cache=True)


def is_retry() -> bool:
    """Return whether this run was tried before."""
    return (runtime.flow_run.run_count or 0) > 1


def clear_up(*places: str) -> None:
    """Delete what killed writers left aside under folders that a flow writes to; buckets have none of it."""
    for place in dict.fromkeys(places):
        delete_stale_temporaries(place)


def check_places(photos: str, out: str, workspace: str) -> None:
    """Refuse to write into the input.

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
        step: engine.run(prepare[step.method], step, chosen, hashes, device)
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
    calls = [(planned, shard, device) for shard in listed.shards]
    return planned, gather_items("invert-images", inversion.invert_shard, calls)


def invert_and_edit(
    edits: list[PreparedEdit],
    listed: ImageIndex,
    out: str,
    workspace: str,
    chosen: Models,
    hashes: ModelHashes,
    settings: Inversion,
    device: str,
) -> tuple[list[editing.EditPlan], list[StepSummary[ShardResult]]]:
    """An index of images + prepared edits -> latents, edited images and their rows.

    A shard is edited while later ones are inverted, so that writing its images hides behind their
    computing. Its edits are submitted so many places behind that they find its latents done, or nearly.
    """
    planned = inversion.plan(listed.photos, workspace, chosen, hashes, settings)
    plans = [editing.plan(out, workspace, each, planned) for each in edits]
    inverted, edited = list[PrefectFuture[ShardResult]](), list[PrefectFuture[ShardResult]]()
    shards, behind = listed.shards, shards_at_once(device)

    def invert_again(number: int) -> PrefectFuture[ShardResult]:
        return anew(inversion.invert_shard).submit(planned, shards[number], device)

    def edit_again(number: int) -> PrefectFuture[ShardResult]:
        return anew(editing.edit_shard).submit(plans, shards[number], device)

    for number in range(len(shards) + behind):
        if number < len(shards):
            inverted.append(inversion.invert_shard.submit(planned, shards[number], device))
        if number >= behind:
            shard, latents = shards[number - behind], inverted[number - behind]
            future = editing.edit_shard.submit(plans, shard, device, return_state=False, wait_for=[latents])
            edited.append(future)
    again = {"invert-images": invert_again, "edit-images": edit_again} if is_retry() else {}
    return plans, gather_chain({"invert-images": inverted, "edit-images": edited}, again)


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
            prepared[step] = engine.run(compute_direction, step, table, chosen, hashes, workspace, device)
        elif step.method == "global" and styles:
            prepared[step] = engine.run(
                compute_instant_direction, step, styles, instant, chosen, hashes, workspace, device
            )
    return [
        PreparedEdit(variant=variant, steps=[prepared[step] for step in variant.steps])
        for variant in variants
    ]


def diagnose(
    prepared: list[PreparedEdit], chosen: Models, hashes: ModelHashes, workspace: str, device: str
) -> DiagnosisRef:
    """Style directions -> what they say of the batch, with a warning for prompts that nearly coincide."""
    found = engine.run(diagnostics.diagnose_edits, prepared, chosen, hashes, workspace, device)
    create_markdown_artifact(
        diagnostics.markdown(found), key="prompts", description="what the prompts will do"
    )
    for line in diagnostics.warnings(found.correlations):
        get_run_logger().warning(line)
    return found


def compare(plans: list[editing.EditPlan], listed: ImageIndex, device: str) -> str:
    """Edits whose steps depend on the image -> how alike those are; empty where there are none."""
    chosen = step_similarity.comparable(plans)
    return engine.run(step_similarity.compare_steps, chosen, listed, device) if chosen else ""


def choose(edits: list[Edit], planned: ChoicePlan, device: str) -> tuple[list[Edit], list[ChosenStrength]]:
    """Edits of which some say auto -> the same edits in numbers, and the choices made."""
    chosen: dict[EditStep, ChosenStrength] = {}
    for step in automatic_steps(edits):
        bare = EditStep(**{name: getattr(step, name) for name in EditStep.model_fields})
        if bare not in chosen:
            chosen[bare] = engine.run(choose_strength, bare, planned, device)

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
    weight = settings.settings().identity_weight
    if weight > 0 and not chosen.identity:
        raise SettingsError(
            f"identity_weight is {weight:g}, but there is no identity network; "
            "give --identity or set --identity-weight 0"
        )
    planned = [mappers.plan(target, workspace, chosen, hashes, settings) for target in targets]
    return [engine.run(mappers.train_mapper, each, device) for each in planned]


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
        return None, engine.run(find_table, given, chosen, hashes, device), []
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
    enough = max(sampling_settings.codes, relevance_settings.first_sample + relevance_settings.samples)
    settings = sampling_settings.model_copy(update={"codes": enough})
    styles, sampled = sample(chosen, hashes, settings, workspace, device)
    base = relevance.plan(workspace, chosen, hashes, styles, relevance_settings)
    before = relevance.find_last_table(workspace, base, last)
    first = before.last
    codes = engine.run(
        sampling.sample_more_codes, styles, chosen.generator, settings, first, first + add, device
    )
    more = relevance_settings.model_copy(update={"first_sample": first, "samples": add})
    extended = styles.model_copy(update={"codes": codes.uri})
    planned = relevance.plan(workspace, chosen, hashes, extended, more)
    _, measured = measure(planned, device)
    after = engine.run(relevance.refine_relevance, workspace, before, planned, device)
    get_run_logger().info("%s samples: %d", after.uri, after.samples)
    table = TableRef(relevance=after.uri, statistics=styles.statistics, fingerprint=after.fingerprint)
    return RunResult(steps=[counts(sampled), counts(measured)], styles=styles, table=table)


def refine_nightly(
    chosen: Models,
    hashes: ModelHashes,
    sampling_settings: Sampling,
    relevance_settings: Relevance,
    nightly: Nightly,
    workspace: str,
    device: str,
) -> RunResult:
    """Start the relevance table, or add tonight's samples to it: once a night, however often it is run."""
    enough = max(sampling_settings.codes, relevance_settings.first_sample + relevance_settings.samples)
    settings = sampling_settings.model_copy(update={"codes": enough})
    styles = sampling.plan(hashes.generator, settings, workspace)
    base = relevance.plan(workspace, chosen, hashes, styles, relevance_settings)
    night = nightly.date_of(runtime.flow_run.scheduled_start_time)
    decided = nights.decide_night(workspace, base, nightly, night)
    log, shared = get_run_logger(), (chosen, hashes, settings, relevance_settings)
    if not decided.last_table:
        log.info("night %s: start the table with %d samples", night, decided.samples)
        found, table, done = table_for(*shared, workspace, device)
        return RunResult(steps=done, styles=found, table=table)
    if decided.samples:
        log.info("night %s: add %d samples to %s", night, decided.samples, decided.last_table)
        return refine(*shared, decided.samples, decided.last_table, workspace, device)
    log.info("night %s: %s has samples enough, nothing to add", night, decided.last_table)
    last = relevance.find_last_table(workspace, base, decided.last_table)
    table = TableRef(relevance=last.uri, statistics=styles.statistics, fingerprint=last.fingerprint)
    return RunResult(styles=styles, table=table)


def report(
    plans: list[editing.EditPlan],
    listed: ImageIndex,
    workspace: str,
    steps: list[StepCounts],
    choices: Sequence[str] = (),
) -> ReportRef:
    """Rows of all edits -> manifest, contact sheet and page; ``choices`` are tables of what auto tried."""
    write = reports.write_report.with_options(refresh_cache=is_retry())  # a Retry may have mended items
    written = write(plans, listed)
    page(written.manifest, workspace, choices=choices)
    publish_batch(written.page, written.contact_sheet)
    headline = f"{written.rows} edits of {listed.rows} images, {written.failed} failed or skipped"
    places = {
        "report page": written.page, "manifest": written.manifest, "contact sheet": written.contact_sheet,
        "timings": written.timings,
    }  # fmt: skip
    summarize("edit-images", headline, steps, places, reports.broken_items(written.manifest))
    return written


def page(manifest: str, workspace: str, evaluations: Sequence[str] = (), choices: Sequence[str] = ()) -> str:
    """A batch's manifest -> thumbnails -> its page; with the scores of its evaluations, if there are any."""
    planned = thumbnails.plan_page(manifest, workspace)
    futures = [thumbnails.thumbnail_chunk.submit(planned.source, chunk) for chunk in planned.chunks]
    made = gather("thumbnails", futures)
    size = sum(result.size for result in made.results)
    chosen = list(dict.fromkeys([*find_evaluations(manifest), *evaluations]))
    return write_page(planned, size, chosen, list(choices))


def summarize(
    flow: str, headline: str, steps: list[StepCounts], places: dict[str, str], problems: Sequence[Row] = ()
) -> None:
    """Show in Prefect's UI what a run did, where that lies, and what failed."""
    publish_summary(flow, headline, [step.model_dump() for step in steps], places, problems)


def summarize_table(result: RunResult) -> None:
    """Show in Prefect's UI what a build of a relevance table did."""
    if result.table is None:
        return
    made = read_provenance(result.table.relevance).parameters
    ranges = ", ".join(f"{first} to {last - 1}" for first, last in made["sample_ranges"])
    headline = f"relevance over {made['samples']} style codes a channel: {ranges}"
    places = {"relevance table": result.table.relevance, "statistics": result.table.statistics}
    summarize("build-relevance", headline, result.steps, places)


def counts(summary: StepSummary[ShardResult]) -> StepCounts:
    """Return a summary without its results."""
    return StepCounts(
        step=summary.step,
        shards=len(summary.results),
        computed=summary.computed,
        rows=summary.rows,
        failed=summary.failed,
        seconds=summary.seconds,
        rate=summary.rate,
    )
