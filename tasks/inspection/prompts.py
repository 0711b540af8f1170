"""What the prompts of a batch will do, as tables and pictures, before the batch is run.

In the folder of a diagnosis (``<workspace>/diagnostics/<fingerprint>``):

``prompts.parquet``       a row per prompt and beta: text_norm is the distance of the two prompts in CLIP
                          space before it is normalized, channels how many take part at that beta
``channels.parquet``      a row per prompt and strong channel: relevance, consistency, standard error
``correlations.parquet``  a row per pair: cosine of their text directions (kind ``text``), of the style
                          directions at the edits' own beta (``style``), of the steps per image (``step``);
                          of more than 100 prompts, each with the five that are most like it
``channels.png``          what the strongest channels of the first 40 prompts do, from -5 to 5 deviations

``coincide`` marks pairs above ``styleclip_core.diagnostics.COINCIDE``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from styleclip.tasks.artifacts import Provenance, Recipe, is_complete, read_table, write_table
from styleclip.tasks.artifacts.outcomes import Row
from styleclip.tasks.directions.relevance import read_relevance
from styleclip.tasks.directions.style_directions import (
    PreparedStep,
    TableRef,
    read_deviations,
    read_direction,
)
from styleclip.tasks.editing.methods import PreparedEdit
from styleclip.tasks.inspection.pictures import Strip, draw_strips
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import io_threads, read_ahead
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.shown import code, markdown_table
from styleclip.tasks.running.texts import prompt_distance, text_vector
from styleclip.tasks.settings.edits import StepVariant
from styleclip.tasks.storage import exists, join, write_bytes_atomic
from styleclip_core.diagnostics import (
    COINCIDE,
    Channel,
    channel_counts,
    channel_images,
    cosine_matrix,
    strongest_channels,
)
from styleclip_core.editing import ChannelSelection, StyleDirection, style_direction
from styleclip_core.errors import NoRelevantChannelError
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.prompts import language_warnings
from styleclip_core.relevance import RelevanceTable
from styleclip_core.sampling import sample_styles
from styleclip_core.style_space import StyleLayout

STEP, VERSION = "diagnose-prompts", "1"
BETAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
SIGMAS = (-5.0, 0.0, 5.0)  # the paper's size of a move
SIGMA_NAMES = [f"{sigma:+g} sigma" if sigma else "as it is" for sigma in SIGMAS]
_PORTRAITS, _STRONGEST, _SEED = 3, 8, 5
_PICTURED = 40  # a picture of more prompts is too long to be looked at
_PAIRED, _NEAREST = 100, 5  # steps all of whose pairs are kept; of more, so many pairs of each
_LISTED, _WARNED = 100, 20  # prompts and pairs that people are told of; the rest stands in the tables
PROMPTS_SCHEMA = pa.schema([
    ("neutral", pa.string()), ("target", pa.string()), ("templates", pa.string()), ("method", pa.string()),
    ("text_norm", pa.float32()), ("beta", pa.float64()), ("channels", pa.int32()),
])  # fmt: skip
CHANNELS_SCHEMA = pa.schema([
    ("neutral", pa.string()), ("target", pa.string()), ("rank", pa.int32()), ("name", pa.string()),
    ("layer", pa.string()), ("channel", pa.int32()), ("relevance", pa.float32()),
    ("consistency", pa.float32()), ("standard_error", pa.float32()),
])  # fmt: skip
CORRELATIONS_SCHEMA = pa.schema([
    ("kind", pa.string()), ("first", pa.string()), ("second", pa.string()), ("cosine", pa.float32()),
    ("coincide", pa.bool_()),
])  # fmt: skip


class DiagnosisRef(BaseModel):
    """Where the tables of a diagnosis lie; what was not asked for is empty."""

    model_config = ConfigDict(frozen=True)

    folder: str
    prompts: str = ""
    channels: str = ""
    correlations: str = ""
    pictures: str = ""
    multilingual: bool = False


@unit_of_work("diagnose-prompts")
def diagnose_prompts(run: Run, variants: list[StepVariant], table: TableRef) -> DiagnosisRef:
    """Write what a relevance table says of the prompts of a batch, or find it written."""
    shown = distinct(variants)
    betas = _betas(shown)
    recipe = Recipe(
        STEP, VERSION, {"edits": [each.parameters() for each in shown], "betas": betas},
        {"relevance": table.fingerprint, "clip": run.hashes.clip, "generator": run.hashes.generator},
        run.hashes.generator, run.hashes.clip,
    )  # fmt: skip

    found = _reference(run, recipe)
    if exists(found.pictures):  # the last to be written
        return found

    generator, relevance = run.generator, read_relevance(run, table.relevance)
    layout, std = generator.layout, read_deviations(table.statistics, generator.layout)
    texts = torch.stack([text_vector(run, each).cpu() for each in shown])
    prompts, channels, strips = list[Row](), list[Row](), list[Strip]()

    for number, (each, text) in enumerate(zip(shown, texts, strict=True)):
        measured = relevance.relevance(text)
        prompts += _counts(each, layout, measured, prompt_distance(run, each), betas)

        ranked = strongest_channels(layout, measured, _STRONGEST)
        channels += channel_rows(each, ranked, relevance)
        if number < _PICTURED:
            strips += channel_strips(f"{each.neutral} -> {each.target}", ranked, std, generator)

    # prompts that nearly coincide are found in both: near texts may still move other channels
    names = labels(shown)
    deltas = [_delta(relevance, each, text, std) for each, text in zip(shown, texts, strict=True)]
    pairs = pair_rows("text", names, cosine_matrix(texts))
    pairs += pair_rows("style", names, cosine_matrix(torch.stack(deltas)))

    made = recipe.made("prompt-diagnosis")
    _write(found.prompts, prompts, PROMPTS_SCHEMA, made)
    _write(found.channels, channels, CHANNELS_SCHEMA, made)
    _write(found.correlations, pairs, CORRELATIONS_SCHEMA, made)
    write_bytes_atomic(found.pictures, draw_strips(strips, SIGMA_NAMES))
    return found


@unit_of_work("diagnose-edits")
def diagnose_edits(run: Run, edits: list[PreparedEdit]) -> DiagnosisRef:
    """Write what the style directions of a batch say about it; they are there already, so this is cheap."""
    steps = {step.fingerprint: step for edit in edits for step in edit.steps}
    prepared = _first_of_each(list(steps.values()))
    betas = _betas([step.variant for step in prepared])

    inputs = {str(number): step.fingerprint for number, step in enumerate(prepared)}
    recipe = Recipe(
        STEP, VERSION, {"betas": betas}, inputs | {"clip": run.hashes.clip},
        run.hashes.generator, run.hashes.clip,
    )  # fmt: skip

    found = _reference(run, recipe, pictures=False)
    if is_complete(found.correlations):  # the last to be written
        return found

    # only a style direction has channels by beta; what else there is moves them by image
    layout = run.generator.layout
    names = labels([step.variant for step in prepared])
    rows, deltas = list[Row](), dict[str, Tensor]()
    directions = read_ahead(prepared, _direction_of, ahead=io_threads())
    for name, step, stored in zip(names, prepared, directions, strict=True):
        if stored:
            deltas[name] = stored.delta
            rows += _counts(step.variant, layout, stored.relevance, step.text_norm, betas)
        else:
            about = {"text_norm": step.text_norm, "beta": None, "channels": step.channels}
            rows.append(_about(step.variant) | about)

    texts = torch.stack([text_vector(run, step.variant).cpu() for step in prepared])
    pairs = pair_rows("text", names, cosine_matrix(texts))
    if deltas:
        pairs += pair_rows("style", list(deltas), cosine_matrix(torch.stack(list(deltas.values()))))

    made = recipe.made("prompt-diagnosis")
    _write(found.prompts, rows, PROMPTS_SCHEMA, made)
    _write(found.correlations, pairs, CORRELATIONS_SCHEMA, made)
    return found


def _direction_of(step: PreparedStep) -> StyleDirection | None:
    """Return the style direction of a step; None where its method has none."""
    return read_direction(step.uri, step.fingerprint) if step.variant.method == "global" else None


def _first_of_each(steps: list[PreparedStep]) -> list[PreparedStep]:
    """Return the steps that differ in more than their strength."""
    by_variant = {step.variant: step for step in reversed(steps)}
    return [by_variant[each] for each in distinct([step.variant for step in steps])]


def labels(variants: Sequence[StepVariant]) -> list[str]:
    """Return what steps are called in a table of pairs; equal prompts and strengths are numbered."""
    names = [f"{each.neutral} -> {each.target} ({each.summary})" for each in variants]
    times, seen = Counter(names), Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if times[name] == 1 else f"{name} #{seen[name]}")
    return found


def distinct(variants: list[StepVariant]) -> list[StepVariant]:
    """Return the steps that differ in more than their strength, by the first of each."""
    found: dict[str, StepVariant] = {}
    for each in variants:
        # strength scales a direction and does not turn it
        settings = {k: v for k, v in each.parameters().items() if k not in ("alpha", "strength")}
        found.setdefault(repr(sorted(settings.items(), key=lambda item: item[0])), each)
    return list(found.values())


def _delta(table: RelevanceTable, variant: StepVariant, text: Tensor, std: Tensor) -> Tensor:
    """Return a step's style direction, zeros where there is none; over all channels for other methods."""
    selection = variant.selection() if variant.method == "global" else ChannelSelection(beta=0.0)
    try:
        return style_direction(table, text, std, selection).delta
    except NoRelevantChannelError:
        return torch.zeros_like(std)


def _about(variant: StepVariant) -> Row:
    return variant.model_dump(include={"neutral", "target", "templates", "method"})


def _betas(variants: Sequence[StepVariant]) -> list[float]:
    """Return the usual betas, and those of the batch."""
    return sorted({*BETAS, *(each.beta for each in variants if each.beta is not None)})


def _counts(
    variant: StepVariant, layout: StyleLayout, measured: Tensor, norm: float, betas: Sequence[float]
) -> list[Row]:
    """Return how many channels take part at each beta."""
    counts = channel_counts(layout, measured, betas, variant.include, variant.exclude)
    return [
        {**_about(variant), "text_norm": norm, "beta": beta, "channels": count}
        for beta, count in zip(betas, counts, strict=True)
    ]


def channel_rows(variant: StepVariant, ranked: list[Channel], table: RelevanceTable) -> list[Row]:
    """Return strong channels as rows of ``channels.parquet``."""
    return [
        {
            "neutral": variant.neutral, "target": variant.target, "rank": rank, "name": each.name,
            "layer": each.layer, "channel": each.channel, "relevance": each.relevance,
            "consistency": table.consistency[each.index].item(),
            "standard_error": table.standard_error[each.index].item(),
        }
        for rank, each in enumerate(ranked, start=1)
    ]  # fmt: skip


def pair_rows(kind: str, names: Sequence[str], matrix: Tensor, *, own: bool = False) -> list[Row]:
    """Return a cosine matrix ``[K, K]`` as rows, each pair once; the diagonal with ``own``.

    Of more than 100 steps, each is paired with the five that are most like it, or most its opposite: rows
    grow with the steps then, and not with their square.
    """
    near, cosines = (matrix.abs() >= COINCIDE).tolist(), matrix.tolist()
    return [
        {
            "kind": kind, "first": names[first], "second": names[second],
            "cosine": cosines[first][second], "coincide": first != second and near[first][second],
        }
        for first, second in _pairs(matrix, own=own)
        # a step that does nothing has no cosine with any other
        if math.isfinite(cosines[first][second])
    ]  # fmt: skip


def _pairs(matrix: Tensor, *, own: bool) -> Iterator[tuple[int, int]]:
    """Yield the pairs of a cosine matrix that are kept, in order, the lower number first."""
    count = len(matrix)
    if count <= _PAIRED:
        yield from ((a, b) for a in range(count) for b in range(a if own else a + 1, count))
        return

    # of itself a step is not asked, so that it takes none of its places
    like = matrix.abs().nan_to_num(nan=-1.0).fill_diagonal_(-1.0)
    nearest = like.topk(_NEAREST, dim=1).indices.tolist()
    found = {(min(a, b), max(a, b)) for a, mine in enumerate(nearest) for b in mine}
    yield from sorted(found | ({(a, a) for a in range(count)} if own else set()))


def overview(found: DiagnosisRef) -> tuple[list[str], list[list[str]]]:
    """Return the prompts as a table for people: a header, and a line for each, with its channels by beta."""
    table = read_table(found.prompts).to_pandas()
    betas = sorted(table["beta"].dropna().unique())

    # an edit that is no style direction has one row, without a beta
    lines = []
    for (neutral, target, *_), mine in table.groupby(list(_NAMED), sort=False):
        channels = mine.drop_duplicates("beta", keep="last").set_index("beta")["channels"]
        counts = [f"{channels[beta]:.0f}" if beta in channels.index else "" for beta in betas]
        lines.append([neutral, target, f"{mine['text_norm'].iloc[0]:.3f}", *counts])
    return ["neutral", "target", "‖Δt‖", *(f"beta {beta:g}" for beta in betas)], lines


def markdown(found: DiagnosisRef) -> str:
    """Return a diagnosis as Markdown, for Prefect's UI."""
    header, lines = overview(found)
    more = [f"and {len(lines) - _LISTED} more prompts"] if len(lines) > _LISTED else []
    said = (*more, *foreign(found)[:_WARNED], *warnings(found.correlations))
    table = markdown_table(header, lines[:_LISTED])
    near = [f"- {code(line)}" for line in said]
    return "\n".join([*table, "", *near, "", f"Tables: {code(found.folder)}"])


_NAMED = ("neutral", "target", "templates", "method")


def foreign(found: DiagnosisRef) -> list[str]:
    """Return a line for every prompt of a diagnosis that seems not to be English, if CLIP reads no other."""
    if found.multilingual:
        return []
    table = read_table(found.prompts, columns=["neutral", "target"])
    return language_warnings([*table["neutral"].to_pylist(), *table["target"].to_pylist()])


def warnings(uri: str) -> list[str]:
    """Return a line for each pair of a table of correlations that nearly coincides, 20 pairs at most."""
    table = read_table(uri)
    near = table.filter(table["coincide"])
    lines = [
        f"{row['first']} and {row['second']}: cosine {row['cosine']:.3f} of their {_WHAT[row['kind']]}; from "
        f"{COINCIDE:g} on they do nearly the same" + (", the other way round" if row["cosine"] < 0 else "")
        for row in near.slice(0, _WARNED).to_pylist()
    ]
    more = len(near) - len(lines)
    return [*lines, f"and {more} more pairs that nearly coincide, in {uri}"] if more else lines


_WHAT = {"text": "text directions", "style": "style directions", "step": "steps"}


def channel_strips(title: str, ranked: Sequence[Channel], std: Tensor, generator: Generator) -> list[Strip]:
    """Draw what channels do to a few portraits."""
    # always the same portraits, so that pictures of two tables can be compared
    shared = {"seed": _SEED, "sample_ids": range(_PORTRAITS), "truncation_psi": 0.7}
    label = 0 if generator.config.c_dim else None
    _, _, codes = next(sample_styles(generator, **shared, label=label))  # type: ignore[arg-type]
    return [
        Strip(
            title,
            [each.name, *([f"relevance {each.relevance:+.2f}"] if each.relevance else [])],
            channel_images(generator, codes, each, std[each.index].item(), SIGMAS).cpu(),
        )
        for each in ranked
    ]


def _reference(run: Run, recipe: Recipe, *, pictures: bool = True) -> DiagnosisRef:
    folder = recipe.folder(run.workspace, "diagnostics")
    places = {name: join(folder, f"{name}.parquet") for name in ("prompts", "correlations")}
    if pictures:
        places |= {"channels": join(folder, "channels.parquet"), "pictures": join(folder, "channels.png")}
    multilingual = bool(run.models.clip) and run.clip.multilingual
    return DiagnosisRef(folder=folder, **places, multilingual=multilingual)


def _write(uri: str, rows: list[Row], schema: pa.Schema, made: Provenance) -> None:
    write_table(uri, pa.Table.from_pylist(rows, schema=schema), made)
