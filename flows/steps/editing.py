"""Steps from prompts to edited images: first what an edit needs, then shards are inverted and edited."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger

from styleclip.flows import engine
from styleclip.flows.course import keep, timed, wait_for
from styleclip.flows.run import anew, is_retry, warn_of_languages
from styleclip.tasks.artifacts import is_complete
from styleclip.tasks.directions.choosing import ChoicePlan, ChosenStrength, choose_strength, find_choice
from styleclip.tasks.directions.instant import compute_instant_direction, plan_instant
from styleclip.tasks.directions.matching import SeenCodes, compute_matched_direction
from styleclip.tasks.directions.relevant import compute_channels
from styleclip.tasks.directions.sampling import SampledStyles
from styleclip.tasks.directions.style_directions import (
    NamedStep,
    PreparedStep,
    TableRef,
    check_steps,
    compute_directions,
    direction_uri,
)
from styleclip.tasks.editing import assignments, mappers
from styleclip.tasks.editing import plans as planning
from styleclip.tasks.editing import shards as editing
from styleclip.tasks.editing.mappers import MapperPlan, MapperRef, prepare_mapper
from styleclip.tasks.editing.methods import PreparedEdit
from styleclip.tasks.editing.optimization import prepare_optimization
from styleclip.tasks.editing.plans import Chosen
from styleclip.tasks.inspection import carried, step_similarity
from styleclip.tasks.inspection import prompts as diagnostics
from styleclip.tasks.inspection.carried import find_carried
from styleclip.tasks.inspection.prompts import DiagnosisRef
from styleclip.tasks.photographs import inversion
from styleclip.tasks.photographs.images import ImageIndex
from styleclip.tasks.reports.notes import note_batch
from styleclip.tasks.running.overlap import shards_at_once
from styleclip.tasks.running.progress import ShardResult, StepSummary
from styleclip.tasks.running.rates import Spent, device_name
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.together import each_of
from styleclip.tasks.settings import (
    Choosing,
    Execution,
    Instant,
    Inversion,
    MapperTraining,
    Sampling,
    Saving,
    SettingsError,
)
from styleclip.tasks.settings.by_image import differs
from styleclip.tasks.settings.edits import (
    Edit,
    EditStep,
    EditVariant,
    RelevanceSource,
    StepVariant,
    automatic_steps,
    bare,
    replace_steps,
    stand_in,
)
from styleclip.tasks.settings.variants import Method
from styleclip_core.errors import PromptError
from styleclip_core.settings.optimization import fitting_chunk


def check_edits(run: Run, variants: list[EditVariant]) -> None:
    """Refuse prompts and layers that cannot work, before hours of work; warn of other languages."""
    steps = distinct_steps(variants)
    warn_of_languages(run, (prompt for step in steps for prompt in (step.neutral, step.target)))
    if wanted := _named(variants, "global"):
        engine.run(check_steps, run, wanted)


def check_thresholds(
    run: Run,
    steps: Iterable[EditStep],
    table: TableRef | None,
    styles: SampledStyles | None,
    instant: Instant,
    seen: SeenCodes | None = None,
) -> None:
    """Refuse thresholds that no channel reaches, before hours of work on images.

    Alpha scales a direction, so it need not be known; a threshold that is still to be chosen is passed over.
    """
    variants = [
        EditVariant(name=getattr(step, "name", "") or step.target, steps=(variant,))
        for step in steps
        if step.beta != "auto" and step.method == "global"
        for variant in stand_in(step).step_variants()
    ]
    directions(run, variants, {}, table, styles, instant, seen)


def distinct_steps(variants: list[EditVariant]) -> list[StepVariant]:
    """Return every step of the edits once, in order."""
    return list(dict.fromkeys(step for variant in variants for step in variant.steps))


def _named(variants: list[EditVariant], method: Method) -> list[NamedStep]:
    """Return the steps of a method, each once, with what they are called."""
    names = _names(variants)
    return [
        NamedStep(name=names[step], variant=step)
        for step in distinct_steps(variants) if step.method == method
    ]  # fmt: skip


def _names(variants: list[EditVariant]) -> dict[StepVariant, str]:
    """Return what each step is called in a message: its edit and its prompts."""
    return {
        step: f"edit {variant.name!r} ({step.neutral!r} to {step.target!r})"
        for variant in reversed(variants)
        for step in variant.steps
    }


def needs(variants: list[EditVariant], source: RelevanceSource) -> bool:
    """Return whether relevance of some step comes from ``source``; of optimizations, as of matched edits."""
    steps = distinct_steps(variants)
    guided = source == "matched" and any(step.guided for step in steps)
    return guided or any(step.method == "global" and step.relevance == source for step in steps)


def prepare_others(
    run: Run, variants: list[EditVariant], sampling: Sampling
) -> dict[StepVariant, PreparedStep]:
    """Mappers and optimizations; one that cannot work stops the run here, at once."""

    def prepare(step: StepVariant) -> PreparedStep:
        if step.method == "mapper":
            return engine.run(prepare_mapper, run, step)
        return engine.run(prepare_optimization, run, step, sampling)

    wanted = [step for step in distinct_steps(variants) if step.method != "global"]
    return each_of(wanted, _names(variants).__getitem__, prepare)


def find_channels(run: Run, variants: list[EditVariant], seen: SeenCodes | None) -> None:
    """Prompts of optimizations -> the channels that they concern, where these are what moves."""
    guided = [step for step in distinct_steps(variants) if step.guided]
    if seen and guided:
        called = _names(variants).__getitem__
        each_of(guided, called, lambda step: engine.run(compute_channels, run, step, seen))


def directions(
    run: Run,
    variants: list[EditVariant],
    others: dict[StepVariant, PreparedStep],
    table: TableRef | None,
    styles: SampledStyles | None,
    instant: Instant,
    seen: SeenCodes | None = None,
) -> list[PreparedEdit]:
    """Prompts -> style directions; a prompt that names no direction stops the run here, at once."""

    def direct(step: StepVariant) -> PreparedStep:
        # styles and what was seen are None only where no step asks for them, see needs()
        if step.relevance == "matched":
            return engine.run(compute_matched_direction, run, step, cast(SeenCodes, seen))
        sampled = cast(SampledStyles, styles)
        if is_complete(direction_uri(run, plan_instant(run, step, sampled, instant))):
            return engine.run(compute_instant_direction, run, step, sampled, instant)
        with timed(instant_work(run, instant)):
            return engine.run(compute_instant_direction, run, step, sampled, instant)

    # a table says all directions at once, the others are minutes of computing each
    wanted = _named(variants, "global")
    listed = [step for step in wanted if step.variant.relevance == "table"]
    prepared = dict(others)
    if listed and table:
        found = engine.run(compute_directions, run, listed, table)
        prepared |= {step.variant: each for step, each in zip(listed, found, strict=True)}
    alone = [step.variant for step in wanted if step.variant not in prepared]
    prepared |= each_of(alone, _names(variants).__getitem__, direct)
    return [
        PreparedEdit(variant=variant, steps=[prepared[step] for step in variant.steps])
        for variant in variants
    ]


def refuse_uncarried(
    run: Run, steps: list[StepVariant], table: TableRef | None, execution: Execution
) -> list[str]:
    """Warn of words that no channel carries, or refuse them where the run is strict; a line for each.

    Raises:
        PromptError: If the run is strict and there are some.
    """
    if table is None:
        return []
    found = engine.run(find_carried, run, steps, table)
    lines = carried.warnings(found)
    if lines and execution.strict:
        raise PromptError("; ".join(lines) + ". The run is strict; without that it goes on (strict: false)")
    for line in lines:
        get_run_logger().warning(line)
    return lines


def diagnose(run: Run, prepared: list[PreparedEdit]) -> tuple[DiagnosisRef, str]:
    """Style directions -> what they say of the batch, also as a part of its report; warns of near twins."""
    found = engine.run(diagnostics.diagnose_edits, run, prepared)
    for line in diagnostics.warnings(found.correlations):
        get_run_logger().warning(line)
    return found, f"## What the prompts do\n\n{diagnostics.markdown(found)}"


def choose(run: Run, edits: list[Edit], planned: ChoicePlan) -> tuple[list[Edit], list[ChosenStrength]]:
    """Edits of which some say auto -> the same edits in numbers, and the choices made."""
    names = {
        bare(step): f"edit {edit.name or step.target!r} ({step.neutral!r} to {step.target!r})"
        for edit in reversed(edits)
        for step in reversed((edit, *edit.then))
        if step.automatic
    }
    wanted = dict.fromkeys(map(bare, automatic_steps(edits)))

    def decide(step: EditStep) -> ChosenStrength:
        if find_choice(run, step, planned):
            return engine.run(choose_strength, run, step, planned)
        with timed(choosing_work(run, planned.settings)):
            return engine.run(choose_strength, run, step, planned)

    chosen = each_of(wanted, names.__getitem__, decide)

    def number(step: EditStep) -> EditStep:
        return chosen[bare(step)].apply(step) if step.automatic else step

    return replace_steps(edits, number), list(chosen.values())


def assign(
    run: Run, edits: list[Edit], listed: ImageIndex, most: int
) -> tuple[list[Edit], list[Chosen | None]]:
    """Edits that hang on columns -> an edit for every combination, and which images each is for."""
    return _assigned(engine.run(assignments.assign_edits, run, edits, listed, most))


def _assigned(found: assignments.Assignment) -> tuple[list[Edit], list[Chosen | None]]:
    chosen = [
        Chosen(assignment=found.uri, number=number, group=found.group_of(number)) if some else None
        for number, some in enumerate(found.chosen)
    ]
    return found.edits, chosen


def chosen_by_variant(edits: Sequence[Edit], chosen: Sequence[Chosen | None]) -> list[Chosen | None]:
    """Return the images that each variant of edits is for; the strengths of one by columns are groups."""
    return [
        mine.strength(number) if mine else None
        for edit, mine in zip(edits, chosen, strict=True)
        for number, _ in enumerate(edit.variants())
    ]


def assign_here(
    run: Run, edits: list[Edit], listed: ImageIndex, most: int
) -> tuple[list[Edit], list[Chosen | None]]:
    """Do what ``assign`` does for a run that only looks, whose workspace is a temporary folder."""
    if not any(map(differs, edits)):
        return edits, [None] * len(edits)
    # called as a function: what a task returns is kept for Retry, and the folder will have gone
    return _assigned(assignments.assign_edits.fn(run, edits, listed, most))


def fitted(edits: list[Edit], listed: ImageIndex, chosen: Sequence[Chosen | None]) -> list[Edit]:
    """Edits -> the same, where an optimization of few images draws them one by one.

    It is decided here, once for all images of an edit: shards, batches and Retries then share one size of
    a chunk, which is in the name of what they make.
    """

    def fit(edit: Edit, mine: Chosen | None) -> Edit:
        if not any(step.method == "optimization" for step in (edit, *edit.then)):
            return edit
        shards = listed.shards
        images = sum(len(mine.images_of(shard)) for shard in shards) if mine else listed.rows
        return replace_steps([edit], lambda step: step.drawn_by(fitting_chunk(images)))[0]

    return [fit(edit, mine) for edit, mine in zip(edits, chosen, strict=True)]


def plan(
    run: Run,
    edits: list[PreparedEdit],
    listed: ImageIndex,
    settings: Inversion,
    saving: Saving = Saving(),
    chosen: Sequence[Chosen | None] | None = None,
) -> list[planning.EditPlan]:
    """Prepared edits -> where their rows and images will lie, written down for who comes after this run."""
    planned = inversion.plan(run, listed.photos, settings)
    chosen = chosen or [None] * len(edits)
    pairs = zip(edits, chosen, strict=True)
    plans = [planning.plan(run, each, planned, saving, mine) for each, mine in pairs]
    note_batch(run, plans, listed)
    return plans


def invert_and_edit(
    run: Run, plans: list[planning.EditPlan], listed: ImageIndex
) -> list[StepSummary[ShardResult]]:
    """An index of images + planned edits -> latents, edited images and their rows.

    A shard is edited while later ones are inverted, so that writing its images hides behind their
    computing. Its edits are submitted so many places behind that they find its latents done, or nearly.
    """
    # what is drawn of latents is looked at at once, as their edits will ask for that
    planned = plans[0].inversion.model_copy(update={"edited_next": True})
    inverted, edited = list[PrefectFuture[ShardResult]](), list[PrefectFuture[ShardResult]]()
    # where every edit is for some images alone, there may be shards without any
    plans_of = [[plan for plan in plans if plan.touches(shard)] for shard in listed.shards]
    shards = [shard for shard, mine in zip(listed.shards, plans_of, strict=True) if mine]
    plans_of, behind = [mine for mine in plans_of if mine], shards_at_once(run.device)

    for number in range(len(shards) + behind):
        if number < len(shards):
            inverted.append(inversion.invert_shard.submit(run, planned, shards[number]))
        if number >= behind:
            shard, latents = shards[number - behind], inverted[number - behind]
            edited.append(
                editing.edit_shard.submit(
                    run, plans_of[number - behind], shard, return_state=False, wait_for=[latents]
                )
            )

    # on Retry, finished shards with failed items are executed once more
    def invert_again(number: int) -> PrefectFuture[ShardResult]:
        return anew(inversion.invert_shard).submit(run, planned, shards[number])

    def edit_again(number: int) -> PrefectFuture[ShardResult]:
        return anew(editing.edit_shard).submit(run, plans_of[number], shards[number])

    again = {"invert-images": invert_again, "edit-images": edit_again} if is_retry() else {}
    return wait_for({"invert-images": inverted, "edit-images": edited}, again)


def compare(run: Run, plans: Sequence[planning.EditPlan], listed: ImageIndex) -> str:
    """Edits whose steps depend on the image -> how alike those are; empty where there are none."""
    chosen = step_similarity.comparable(plans)
    return engine.run(step_similarity.compare_steps, run, chosen, listed) if chosen else ""


def check_training(run: Run, targets: list[str], settings: MapperTraining) -> None:
    """Refuse prompts that cannot work, and a training that weighs identity without a network for it."""
    weight = settings.settings().identity_weight
    if weight > 0 and not run.models.identity:
        raise SettingsError(
            f"identity_weight is {weight:g}, but there is no identity network; "
            "give --identity or set --identity-weight 0"
        )
    engine.run(mappers.check_targets, run, targets, settings)


def train(run: Run, planned: list[MapperPlan]) -> list[MapperRef]:
    """Prompts -> mappers, one after the other: each may take the whole machine."""
    warn_of_languages(run, [each.target for each in planned])
    trained = []
    for each in planned:
        trained.append(engine.run(mappers.train_mapper, run, each))
        keep(*trained[-1].spent, waited=True)
    return trained


def instant_work(run: Run, settings: Instant) -> Spent:
    """Return the taking of one direction from gradients as it is measured and estimated."""
    return _timed_work(run, "instant direction", f"{settings.codes} codes, {settings.probes} probes")


def choosing_work(run: Run, settings: Choosing) -> Spent:
    """Return the choosing of one strength as it is measured and estimated."""
    return _timed_work(run, "choose strength", f"{settings.images} images")


def _timed_work(run: Run, kind: str, about: str) -> Spent:
    side = engine.generator(run).image_size[0]
    return Spent(kind=kind, about=about, device=device_name(run.device), resolution=side, units=1, seconds=0)
