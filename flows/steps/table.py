"""Steps that end in a relevance table: sampled style codes, shards of channels, nights that add to both."""

from __future__ import annotations

from dataclasses import replace

from prefect import runtime
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from styleclip.flows import engine
from styleclip.flows.course import wait_for
from styleclip.flows.run import RunResult, StepCounts, counts, summarize
from styleclip.tasks.artifacts import is_complete, read_provenance, read_table
from styleclip.tasks.directions import matching, nights, refining, relevance, sampling
from styleclip.tasks.directions.matching import SeenCodes
from styleclip.tasks.directions.relevance import RelevancePlan
from styleclip.tasks.directions.sampling import SampledStyles
from styleclip.tasks.directions.style_directions import TableRef, find_table
from styleclip.tasks.running.progress import ShardResult, StepSummary
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import Nightly, Relevance, Sampling


def sample(run: Run, settings: Sampling) -> tuple[SampledStyles, StepSummary[ShardResult]]:
    """Seeds -> style codes and the statistics of style space."""
    planned = sampling.plan(run, settings)
    codes = sampling.sample_codes.submit(run, planned)
    parts = [
        sampling.sample_shard.submit(run, planned, number) for number in range(sampling.shard_count(settings))
    ]
    (summary,) = wait_for({"sample-styles": [codes, *parts]})

    uris = [result.uri for result in summary.results[1:]]  # the first is that of the codes
    engine.run(sampling.merge_statistics, run, planned, uris)
    return planned, summary


def look_at(run: Run, settings: Sampling) -> tuple[SeenCodes, StepSummary[ShardResult]]:
    """Seeds -> what CLIP sees in the images of sampled codes, once for all prompts."""
    planned = matching.plan(run, settings)
    parts = [matching.look_at_codes.submit(run, planned, shard) for shard in range(planned.shards)]
    (summary,) = wait_for({"look-at-codes": parts})
    return planned, summary


def table_for(
    run: Run, sampling_settings: Sampling, settings: Relevance, *, given: str = ""
) -> tuple[SampledStyles | None, TableRef, list[StepCounts]]:
    """Style codes, then the relevance table on them; or the table that lies in the folder ``given``."""
    if given:
        return None, engine.run(find_table, run, given), []

    styles, sampled = sample(run, enough(sampling_settings, settings))
    table, measured = measure(run, relevance.plan(run, styles, settings))
    return styles, table, [counts(sampled), counts(measured)]


def enough(sampling_settings: Sampling, settings: Relevance) -> Sampling:
    """Return settings that store as many codes as relevance is measured on."""
    codes = max(sampling_settings.codes, settings.first_sample + settings.samples)
    return sampling_settings.model_copy(update={"codes": codes})


def described(
    run: Run, settings: Relevance, *, given: str = "", add: int = 0, nightly: Nightly | None = None
) -> str:
    """Return what becomes of the relevance table, as a part of what a run says it will do."""
    if given:
        return f"takes relevance from the table at {given}"
    channels = sum(layer.channels for layer in engine.generator(run).layout.editable)

    if nightly:
        more = f"adds {nightly.samples} to it, up to {nightly.most}"
        return f"starts the relevance table, {channels} channels x {settings.samples} samples, or {more}"
    if add:
        return f"adds {add} samples of {channels} channels to the last relevance table"
    return f"builds the relevance table, or finds it built: {channels} channels x {settings.samples} samples"


def measure(run: Run, planned: RelevancePlan) -> tuple[TableRef, StepSummary[ShardResult]]:
    """Channel shards -> one relevance table."""
    shards = relevance.shards(engine.generator(run).layout, planned.settings, run.device)
    statistics = planned.styles.statistics
    table = TableRef(relevance=planned.table, statistics=statistics, fingerprint=planned.fingerprint)

    # its parts need not be those of this cut: another version, device or setting may have cut it otherwise
    if is_complete(planned.table):
        found = [ShardResult(uri=planned.table, rows=each.last - each.first, reused=True) for each in shards]
        return table, StepSummary[ShardResult](step="build-relevance", results=found, seconds=0.0)

    derivatives = _derivatives(run, planned)
    futures = [relevance.measure_shard.submit(run, planned, shard, derivatives) for shard in shards]
    (summary,) = wait_for({"build-relevance": futures})
    engine.run(relevance.merge_relevance, run, planned, [result.uri for result in summary.results])
    return table, summary


def _derivatives(run: Run, planned: RelevancePlan) -> relevance.DerivativesRef | None:
    """Style codes -> derivatives of the embedding, if the settings ask for them."""
    ranges = relevance.derivative_shards(planned.settings)
    if not ranges:
        return None

    # one basis for all ranges: derivatives along different ones do not add up
    basis = engine.run(relevance.measure_basis, run, planned)
    futures = [relevance.measure_derivatives.submit(run, planned, basis, *each) for each in ranges]
    wait_for({"derivatives": futures})
    return relevance.DerivativesRef(basis=basis, ranges=ranges)


def refine(run: Run, sampling_settings: Sampling, settings: Relevance, add: int, last: str) -> RunResult:
    """The last relevance table and ``add`` new samples -> the table over all of them."""
    styles, sampled = sample(run, enough(sampling_settings, settings))
    before = refining.find_last_table(run, relevance.plan(run, styles, settings), last)

    # the new codes lie beside the old ones, and are measured as a table of their own
    first = before.last
    codes = engine.run(sampling.sample_more_codes, run, styles, first, first + add)
    more = replace(settings, first_sample=first, samples=add)
    planned = relevance.plan(run, styles.model_copy(update={"codes": codes.uri}), more)
    _, measured = measure(run, planned)

    after = engine.run(refining.refine_relevance, run, before, planned)
    get_run_logger().info("%s samples: %d", after.uri, after.samples)
    table = TableRef(relevance=after.uri, statistics=styles.statistics, fingerprint=after.fingerprint)
    return RunResult(steps=[counts(sampled), counts(measured)], styles=styles, table=table)


def refine_nightly(run: Run, sampling_settings: Sampling, settings: Relevance, nightly: Nightly) -> RunResult:
    """Start the relevance table, or add tonight's samples to it: once a night, however often it is run."""
    sampling_settings = enough(sampling_settings, settings)
    styles = sampling.plan(run, sampling_settings)
    base = relevance.plan(run, styles, settings)
    night = nightly.date_of(runtime.flow_run.scheduled_start_time)
    decided, log = nights.decide_night(run, base, nightly, night), get_run_logger()

    if not decided.last_table:
        log.info("night %s: start the table with %d samples", night, decided.samples)
        found, table, done = table_for(run, sampling_settings, settings)
        return RunResult(steps=done, styles=found, table=table)
    if decided.samples:
        log.info("night %s: add %d samples to %s", night, decided.samples, decided.last_table)
        return refine(run, sampling_settings, settings, decided.samples, decided.last_table)

    log.info("night %s: %s has samples enough, nothing to add", night, decided.last_table)
    last = refining.find_last_table(run, base, decided.last_table)
    table = TableRef(relevance=last.uri, statistics=styles.statistics, fingerprint=last.fingerprint)
    return RunResult(styles=styles, table=table)


def summarize_table(result: RunResult) -> None:
    """Show in Prefect's UI what a build of a relevance table did."""
    if result.table is None:
        return

    made = read_provenance(result.table.relevance).parameters
    ranges = ", ".join(f"{first} to {last - 1}" for first, last in made["sample_ranges"])
    headline = f"relevance over {made['samples']} style codes a channel: {ranges}"
    places = {"relevance table": result.table.relevance, "statistics": result.table.statistics}
    summarize("build-relevance", headline, result.steps, places)

    # styleclip.flows.server_metrics reads it: how large the table has become, and by its time how old it is
    channels = read_table(result.table.relevance, ["flat_index"]).num_rows
    size = {"samples": made["samples"], "channels": channels}
    create_table_artifact(key="relevance-table", description="the last relevance table", table=[size])
