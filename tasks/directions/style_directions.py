"""Text prompts -> style directions, one small artifact for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future
from functools import lru_cache, partial

import pyarrow as pa
import torch
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import (
    ChangedInputError,
    Provenance,
    Recipe,
    fingerprint,
    is_complete,
    read_provenance,
    read_table,
    vector_column,
    write_table,
)
from styleclip.tasks.directions.relevance import read_relevance
from styleclip.tasks.directions.sampling import read_statistics
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import Writes, io_threads, read_ahead
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.texts import prompt_distance, text_vector
from styleclip.tasks.running.together import each_of
from styleclip.tasks.settings.edits import StepVariant
from styleclip.tasks.storage import join, read_bytes
from styleclip_core.editing import StyleDirection, beta_for, editable_mask, style_direction
from styleclip_core.errors import ArtifactConflictError
from styleclip_core.style_space import StyleLayout

STEP, VERSION = "style-direction", "1"
_FEW_CHANNELS = 10
ALPHA_UNIT = "standard deviations of the most relevant channel"
MATCHED_UNIT = "share of the way to where images that show the target have their channels"


class PreparedStep(BaseModel):
    """What a step of an edit needs: a style direction or a mapper, and what it says of itself.

    Attributes:
        variant: The step.
        uri: Where direction or mapper lies, or the channels of an optimization; empty where it needs none.
        fingerprint: Names what decides the step, beside the latents.
        content: Content hash of a mapper's weights, or the name of an optimization's channels.
        channels: Style channels that change, of a style direction or a mapper.
        layers: Layers they lie in.
        text_norm: Distance of the two prompts in CLIP space.
    """

    model_config = ConfigDict(frozen=True)

    variant: StepVariant
    uri: str
    fingerprint: str
    content: str = ""
    channels: int | None = None
    layers: list[str] = []
    text_norm: float


class TableRef(BaseModel):
    """A relevance table with the statistics it goes with."""

    model_config = ConfigDict(frozen=True)

    relevance: str
    statistics: str
    fingerprint: str


@unit_of_work("find-table")
def find_table(run: Run, folder: str) -> TableRef:
    """Return the relevance table in a folder and its statistics, beside it or where it says they are.

    Raises:
        ArtifactConflictError: If they were made with other networks.
        MissingObjectError: If one is missing.
    """
    relevance, statistics = (join(folder, f"{name}.parquet") for name in ("relevance", "statistics"))
    # read for its check: a table of other networks is refused at once
    read_relevance(run, relevance)
    if not is_complete(statistics):  # a table that was measured says where its statistics lie
        statistics = read_provenance(relevance).inputs.get("statistics", statistics)

    made = read_provenance(statistics)
    if made.generator != run.hashes.generator:
        raise ArtifactConflictError(
            f"{statistics} was made with generator {made.generator[:16]}, this run uses "
            f"{run.hashes.generator[:16]}; give the statistics of this generator"
        )

    return TableRef(relevance=relevance, statistics=statistics, fingerprint=_name_of(relevance, statistics))


def _name_of(relevance: str, statistics: str) -> str:
    """Return the name of a table that somebody gives, from what its files say made them."""
    uris = {"relevance": relevance, "statistics": statistics}
    inputs = {name: read_provenance(uri).fingerprint for name, uri in uris.items()}
    return fingerprint("table", VERSION, {}, inputs)


def check_table(table: TableRef) -> None:
    """Refuse a table that was replaced since the run began: results are named after the one that was there.

    Raises:
        ChangedInputError: If it was.
    """
    # a table that this pipeline measured has its own name, and its statistics need not be read for that
    measured = table.fingerprint == read_provenance(table.relevance).fingerprint
    if not measured and table.fingerprint != _name_of(table.relevance, table.statistics):
        raise ChangedInputError(
            f"{table.relevance} or its statistics have changed since this run began, and results are named "
            f"after {table.fingerprint[:16]}; put the old files back and retry, or start a new run"
        )


class NamedStep(BaseModel):
    """A step, and what it is called in a message: its edit and its prompts."""

    model_config = ConfigDict(frozen=True)

    name: str
    variant: StepVariant


@unit_of_work("check-edits")
def check_steps(run: Run, steps: list[NamedStep]) -> int:
    """Fail at once if CLIP cannot tell prompts apart or a layer pattern matches nothing; count the steps.

    Raises:
        StyleCLIPError: If some cannot work; it names each.
    """
    layout = run.generator.layout

    def check(step: NamedStep) -> float:
        # called for what it raises; the mask is needed much later
        editable_mask(layout, step.variant.include, step.variant.exclude)
        return prompt_distance(run, step.variant)

    return len(each_of(steps, _called, check))


def _called(step: NamedStep) -> str:
    return step.name


def plan_direction(run: Run, variant: StepVariant, table: TableRef) -> Recipe:
    """Return what decides the style direction of one step; nothing is computed."""
    # alpha scales a direction, so all strengths of an edit share one
    parameters = {k: v for k, v in variant.parameters().items() if k != "alpha"}
    return direction_recipe(run, STEP, VERSION, parameters, {"relevance": table.fingerprint})


@unit_of_work("style-directions")
def compute_directions(run: Run, steps: list[NamedStep], table: TableRef) -> list[PreparedStep]:
    """Compute the style directions of steps, or find them done: one task, however many prompts there are.

    Raises:
        NoRelevantChannelError: If no channel reaches the threshold of a step; it names each such step.
        ChangedInputError: If the table was replaced since the run began.
    """
    recipes = {step: plan_direction(run, step.variant, table) for step in steps}
    uris = {step: direction_uri(run, recipe) for step, recipe in recipes.items()}

    # strengths share a direction, so there are fewer of these; each is looked for with a request
    first: dict[str, NamedStep] = {}
    for step, uri in uris.items():
        first.setdefault(uri, step)
    there = read_ahead(first, is_complete, ahead=io_threads())
    missing = [step for step, done in zip(first.values(), there, strict=True) if not done]

    if missing:
        layout = run.generator.layout
        # checked when it is read, not only when the run begins: results are named after it
        check_table(table)
        relevance, std = read_relevance(run, table.relevance), read_deviations(table.statistics, layout)
        writes, written = Writes[None](2 * io_threads()), list[Future[None]]()

        def compute(step: NamedStep) -> None:
            text, variant = text_vector(run, step.variant).cpu(), step.variant
            found = style_direction(relevance, text, std, variant.selection())
            _warn_of_few(variant, layout, found)
            # made here, as only this thread may use the device
            written.append(writes.submit(partial(write_table, *_stored(run, recipes[step], variant, found))))

        each_of(missing, _called, compute)
        for each in written:
            each.result()

    pairs = [(step.variant, uri) for step, uri in uris.items()]
    return list(read_ahead(pairs, lambda pair: prepared(*pair), ahead=io_threads()))


def _warn_of_few(variant: StepVariant, layout: StyleLayout, found: StyleDirection) -> None:
    """Say in the log that an edit changes few channels, and which beta would change more."""
    if variant.beta is None or found.channels >= _FEW_CHANNELS:
        return

    beta = beta_for(layout, found.relevance, variant.selection(), _FEW_CHANNELS)
    if beta > 0:
        # rounded down, so that the beta shown does reach as many
        get_run_logger().warning(
            "%s: only %d channels reach beta %g; at beta %.3f, %d do",
            variant.target, found.channels, variant.beta, math.floor(1000 * beta) / 1000, _FEW_CHANNELS,
        )  # fmt: skip


def direction_recipe(
    run: Run, step: str, version: str, parameters: Mapping[str, object], inputs: Mapping[str, str]
) -> Recipe:
    """Return what decides a style direction: settings and relevance, beside the networks of the run."""
    networks = {"clip": run.hashes.clip, "generator": run.hashes.generator}
    return Recipe(step, version, parameters, {**inputs, **networks}, run.hashes.generator, run.hashes.clip)


def direction_uri(run: Run, recipe: Recipe) -> str:
    """Return where a style direction lies."""
    return join(recipe.folder(run.workspace, "directions"), "direction.parquet")


def read_deviations(statistics: str, layout: StyleLayout) -> torch.Tensor:
    """Return the standard deviation of every editable style channel, ``[N]`` float32."""
    return read_statistics(statistics).std[layout.editable_index].float()


def write_direction(run: Run, recipe: Recipe, variant: StepVariant, found: StyleDirection) -> None:
    """Store the style direction of a step, and facts about it."""
    write_table(*_stored(run, recipe, variant, found))


def _stored(
    run: Run, recipe: Recipe, variant: StepVariant, found: StyleDirection
) -> tuple[str, pa.Table, Provenance]:
    """Return where a style direction is stored, as what, and what is said of it."""
    columns = {
        "delta": found.delta, "relevance": found.relevance, "text_direction": text_vector(run, variant),
    }  # fmt: skip
    if found.pull is not None and found.centre is not None:
        columns |= {"pull": found.pull, "centre": found.centre}
    if found.further is not None:
        columns["further"] = found.further
    table = pa.table({name: vector_column(each[None].cpu().numpy()) for name, each in columns.items()})

    made = recipe.made(
        "style-direction",
        alpha_unit=alpha_unit(variant),
        channels=found.channels,
        layers=list(found.layers),
        text_norm=prompt_distance(run, variant),
    )
    return direction_uri(run, recipe), table, made


def alpha_unit(variant: StepVariant) -> str:
    """Return what the alpha of a step counts."""
    return MATCHED_UNIT if variant.relevance == "matched" else ALPHA_UNIT


def prepared(variant: StepVariant, uri: str) -> PreparedStep:
    """Return a step whose style direction is stored."""
    made = read_provenance(uri)
    about = {name: made.parameters[name] for name in ("channels", "layers", "text_norm")}
    return PreparedStep(variant=variant, uri=uri, fingerprint=made.fingerprint, **about)


@lru_cache(maxsize=1024)  # some tens of KB each; a shard may have as many prompts as images
def read_direction(uri: str, fingerprint: str) -> StyleDirection:
    """Return a stored direction.

    Raises:
        ChangedInputError: If another direction lies there than the one of that fingerprint.
    """
    # one request for both: what made it stands in the table's own file
    content = read_bytes(uri)
    made = read_provenance(uri, content=content)
    if made.fingerprint != fingerprint:
        raise ChangedInputError(
            f"{uri} is the style direction {made.fingerprint[:16]}, not {fingerprint[:16]}; delete it, and "
            "the next run makes it again"
        )

    table, about = read_table(uri, content=content), made.parameters
    vectors = {
        name: torch.tensor(table[name][0].as_py())
        for name in ("delta", "relevance", "pull", "centre", "further")
        if name in table.column_names  # the last three are of matched ones
    }
    return StyleDirection(channels=about["channels"], layers=tuple(about["layers"]), **vectors)
