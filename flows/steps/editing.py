"""Steps from prompts to edited images: first what an edit needs, then shards are inverted and edited."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import unmapped
from prefect.artifacts import create_markdown_artifact
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger

from flows import engine
from flows.run import anew, is_retry
from tasks.directions.choosing import ChoicePlan, ChosenStrength, choose_strength
from tasks.directions.instant import compute_instant_direction
from tasks.directions.sampling import SampledStyles
from tasks.directions.style_directions import PreparedStep, TableRef, check_edit, compute_direction
from tasks.editing import mappers
from tasks.editing import shards as editing
from tasks.editing.mappers import MapperRef, prepare_mapper
from tasks.editing.methods import PreparedEdit
from tasks.editing.optimization import prepare_optimization
from tasks.inspection import prompts as diagnostics
from tasks.inspection import step_similarity
from tasks.inspection.prompts import DiagnosisRef
from tasks.photographs import inversion
from tasks.photographs.images import ImageIndex
from tasks.reports.notes import note_batch
from tasks.running.overlap import shards_at_once
from tasks.running.progress import ShardResult, StepSummary, gather_chain
from tasks.running.run import Run
from tasks.settings import Instant, Inversion, MapperTraining, SettingsError
from tasks.settings.edits import (
    Edit,
    EditStep,
    EditVariant,
    RelevanceSource,
    StepVariant,
    automatic_steps,
    replace_steps,
)


def check_edits(run: Run, variants: list[EditVariant]) -> None:
    """Refuse prompts and layers that cannot work, before hours of work on the table."""
    wanted = [step for step in distinct_steps(variants) if step.method == "global"]
    if wanted:
        check_edit.map(unmapped(run), wanted).result()


def distinct_steps(variants: list[EditVariant]) -> list[StepVariant]:
    """Return every step of the edits once, in order."""
    return list(dict.fromkeys(step for variant in variants for step in variant.steps))


def needs(variants: list[EditVariant], source: RelevanceSource) -> bool:
    """Return whether some step is a style direction whose relevance comes from ``source``."""
    return any(step.method == "global" and step.relevance == source for step in distinct_steps(variants))


def prepare_others(run: Run, variants: list[EditVariant]) -> dict[StepVariant, PreparedStep]:
    """Mappers and optimizations; one that cannot work stops the run here, at once."""
    prepare = {"mapper": prepare_mapper, "optimization": prepare_optimization}
    return {
        step: engine.run(prepare[step.method], run, step)
        for step in distinct_steps(variants)
        if step.method != "global"
    }


def directions(
    run: Run,
    variants: list[EditVariant],
    others: dict[StepVariant, PreparedStep],
    table: TableRef | None,
    styles: SampledStyles | None,
    instant: Instant,
) -> list[PreparedEdit]:
    """Prompts -> style directions; a prompt that names no direction stops the run here, at once."""
    # table and styles are None only where no step asks for them, see needs()
    prepared = dict(others)
    for step in distinct_steps(variants):
        if step.method == "global" and step.relevance == "table" and table:
            prepared[step] = engine.run(compute_direction, run, step, table)
        elif step.method == "global" and styles:
            prepared[step] = engine.run(compute_instant_direction, run, step, styles, instant)

    return [
        PreparedEdit(variant=variant, steps=[prepared[step] for step in variant.steps])
        for variant in variants
    ]


def diagnose(run: Run, prepared: list[PreparedEdit]) -> DiagnosisRef:
    """Style directions -> what they say of the batch, with a warning for prompts that nearly coincide."""
    found = engine.run(diagnostics.diagnose_edits, run, prepared)
    create_markdown_artifact(
        diagnostics.markdown(found), key="prompts", description="what the prompts will do"
    )

    for line in diagnostics.warnings(found.correlations):
        get_run_logger().warning(line)
    return found


def choose(run: Run, edits: list[Edit], planned: ChoicePlan) -> tuple[list[Edit], list[ChosenStrength]]:
    """Edits of which some say auto -> the same edits in numbers, and the choices made."""
    chosen: dict[EditStep, ChosenStrength] = {}

    def bare(step: EditStep) -> EditStep:
        """Return a step without what an edit adds to it: equal steps share one choice."""
        return EditStep(**{name: getattr(step, name) for name in EditStep.model_fields})

    for step in map(bare, automatic_steps(edits)):
        if step not in chosen:
            chosen[step] = engine.run(choose_strength, run, step, planned)

    def number(step: EditStep) -> EditStep:
        return chosen[bare(step)].apply(step) if step.automatic else step

    return replace_steps(edits, number), list(chosen.values())


def plan(
    run: Run, edits: list[PreparedEdit], listed: ImageIndex, settings: Inversion
) -> list[editing.EditPlan]:
    """Prepared edits -> where their rows and images will lie, written down for who comes after this run."""
    planned = inversion.plan(run, listed.photos, settings)
    plans = [editing.plan(run, each, planned) for each in edits]
    note_batch(run, plans, listed)
    return plans


def invert_and_edit(
    run: Run, plans: list[editing.EditPlan], listed: ImageIndex
) -> list[StepSummary[ShardResult]]:
    """An index of images + planned edits -> latents, edited images and their rows.

    A shard is edited while later ones are inverted, so that writing its images hides behind their
    computing. Its edits are submitted so many places behind that they find its latents done, or nearly.
    """
    planned = plans[0].inversion
    inverted, edited = list[PrefectFuture[ShardResult]](), list[PrefectFuture[ShardResult]]()
    shards, behind = listed.shards, shards_at_once(run.device)

    for number in range(len(shards) + behind):
        if number < len(shards):
            inverted.append(inversion.invert_shard.submit(run, planned, shards[number]))
        if number >= behind:
            shard, latents = shards[number - behind], inverted[number - behind]
            edited.append(
                editing.edit_shard.submit(run, plans, shard, return_state=False, wait_for=[latents])
            )

    def invert_again(number: int) -> PrefectFuture[ShardResult]:
        return anew(inversion.invert_shard).submit(run, planned, shards[number])

    def edit_again(number: int) -> PrefectFuture[ShardResult]:
        return anew(editing.edit_shard).submit(run, plans, shards[number])

    again = {"invert-images": invert_again, "edit-images": edit_again} if is_retry() else {}
    return gather_chain({"invert-images": inverted, "edit-images": edited}, again)


def compare(run: Run, plans: Sequence[editing.EditPlan], listed: ImageIndex) -> str:
    """Edits whose steps depend on the image -> how alike those are; empty where there are none."""
    chosen = step_similarity.comparable(plans)
    return engine.run(step_similarity.compare_steps, run, chosen, listed) if chosen else ""


def train(run: Run, targets: list[str], settings: MapperTraining) -> list[MapperRef]:
    """Prompts -> mappers, one after the other: each may take the whole machine."""
    weight = settings.settings().identity_weight
    if weight > 0 and not run.models.identity:
        raise SettingsError(
            f"identity_weight is {weight:g}, but there is no identity network; "
            "give --identity or set --identity-weight 0"
        )

    planned = [mappers.plan(run, target, settings) for target in targets]
    return [engine.run(mappers.train_mapper, run, each) for each in planned]
