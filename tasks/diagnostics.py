"""What the prompts of a batch will do, as tables and pictures, before the batch is run.

In the folder of a diagnosis (``<workspace>/diagnostics/<fingerprint>``):

``prompts.parquet``       a row per prompt and beta: text_norm is the distance of the two prompts in CLIP
                          space before it is normalized, channels how many take part at that beta
``channels.parquet``      a row per prompt and strong channel: relevance, consistency, standard error
``correlations.parquet``  a row per pair: cosine of their text directions (kind ``text``), of the style
                          directions at the edits' own beta (``style``), of the steps per image (``step``)
``channels.png``          what the strongest channels of the first 40 prompts do, from -5 to 5 deviations

``coincide`` marks pairs above ``styleclip_core.diagnostics.COINCIDE``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from prefect import task
from pydantic import BaseModel, ConfigDict
from torch import Tensor

import styleclip_core
from styleclip_core.diagnostics import (
    COINCIDE,
    Channel,
    channel_counts,
    channel_images,
    coinciding,
    cosine_matrix,
    strongest_channels,
)
from styleclip_core.editing import ChannelSelection, style_direction
from styleclip_core.errors import NoRelevantChannelError
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.relevance import RelevanceTable
from styleclip_core.sampling import sample_styles
from styleclip_core.style_space import StyleLayout
from tasks import models
from tasks.artifacts import Provenance, artifact_uri, fingerprint, is_complete, read_table, write_table
from tasks.caching import PER_RUN
from tasks.directions import PreparedStep, TableRef, prompt_distance, read_deviations, text_vector
from tasks.edits import StepVariant
from tasks.identity import ModelHashes
from tasks.methods import PreparedEdit
from tasks.outcomes import Row
from tasks.pictures import Strip, draw_strips
from tasks.relevance import read_relevance
from tasks.settings import Models
from tasks.storage import exists, join, write_bytes_atomic

STEP, VERSION = "diagnose-prompts", "1"
BETAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
SIGMAS = (-5.0, 0.0, 5.0)  # the paper's size of a move
SIGMA_NAMES = [f"{sigma:+g} sigma" if sigma else "as it is" for sigma in SIGMAS]
_PORTRAITS, _STRONGEST, _PICTURED, _SEED = (
    3,
    8,
    40,
    5,
)  # a picture of more prompts is too long to be looked at
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


@task(name="diagnose-prompts", cache_policy=PER_RUN, persist_result=True)
def diagnose_prompts(
    variants: list[StepVariant],
    table: TableRef,
    chosen: Models,
    hashes: ModelHashes,
    workspace: str,
    device: str,
) -> DiagnosisRef:
    """Write what a relevance table says of the prompts of a batch, or find it written."""
    shown = _distinct(variants)
    betas = _betas(shown)
    parameters = {"edits": [each.parameters() for each in shown], "betas": betas}
    inputs = {"relevance": table.fingerprint, "clip": hashes.clip, "generator": hashes.generator}
    made = _provenance(parameters, inputs, hashes)
    found = _reference(artifact_uri(workspace, "diagnostics", made.fingerprint))
    if exists(found.pictures):  # the last to be written
        return found
    layout = models.generator(chosen.generator, device).layout
    relevance = read_relevance(table.relevance, layout, hashes)
    std = read_deviations(table.statistics, layout)
    texts = torch.stack([text_vector(each, chosen.clip, device).cpu() for each in shown])
    measured = [relevance.relevance(text) for text in texts]
    names = labels(shown)
    deltas = [_delta(relevance, each, text, std) for each, text in zip(shown, texts, strict=True)]
    prompts = [
        row
        for each, one in zip(shown, measured, strict=True)
        for row in _counts(each, layout, one, prompt_distance(each, chosen, device), betas)
    ]
    strongest = [strongest_channels(layout, one, _STRONGEST) for one in measured]
    channels = [
        row
        for each, ranked in zip(shown, strongest, strict=True)
        for row in channel_rows(each, ranked, relevance)
    ]
    pairs = pair_rows("text", names, cosine_matrix(texts))
    pairs += pair_rows("style", names, cosine_matrix(torch.stack(deltas)))
    _write(found.prompts, prompts, PROMPTS_SCHEMA, made)
    _write(found.channels, channels, CHANNELS_SCHEMA, made)
    _write(found.correlations, pairs, CORRELATIONS_SCHEMA, made)
    drawn = models.generator(chosen.generator, device)
    strips = [
        strip
        for each, ranked in zip(shown[:_PICTURED], strongest, strict=False)
        for strip in channel_strips(f"{each.neutral} -> {each.target}", ranked, std, drawn)
    ]
    write_bytes_atomic(found.pictures, draw_strips(strips, SIGMA_NAMES))
    return found


@task(name="diagnose-edits", cache_policy=PER_RUN, persist_result=True)
def diagnose_edits(
    edits: list[PreparedEdit], chosen: Models, hashes: ModelHashes, workspace: str, device: str
) -> DiagnosisRef:
    """Write what the style directions of a batch say of it; they are there already, so this is cheap."""
    steps = {step.fingerprint: step for edit in edits for step in edit.steps}
    prepared = _first_of_each(list(steps.values()))
    inputs = {str(number): step.fingerprint for number, step in enumerate(prepared)}
    betas = _betas([step.variant for step in prepared])
    made = _provenance({"betas": betas}, inputs | {"clip": hashes.clip}, hashes)
    found = _reference(artifact_uri(workspace, "diagnostics", made.fingerprint), pictures=False)
    if is_complete(found.correlations):  # the last to be written
        return found
    layout = models.generator(chosen.generator, device).layout
    names = labels([step.variant for step in prepared])
    rows, deltas = list[Row](), dict[str, Tensor]()
    for name, step in zip(names, prepared, strict=True):
        if step.variant.method == "global":
            stored = read_table(step.uri, columns=["delta", "relevance"])
            deltas[name], measured = (
                torch.tensor(stored[each][0].as_py()) for each in ("delta", "relevance")
            )
            rows += _counts(step.variant, layout, measured, step.text_norm, betas)
        else:
            rows.append(
                _about(step.variant) | {"text_norm": step.text_norm, "beta": None, "channels": step.channels}
            )
    texts = torch.stack([text_vector(step.variant, chosen.clip, device).cpu() for step in prepared])
    pairs = pair_rows("text", names, cosine_matrix(texts))
    if deltas:
        pairs += pair_rows("style", list(deltas), cosine_matrix(torch.stack(list(deltas.values()))))
    _write(found.prompts, rows, PROMPTS_SCHEMA, made)
    _write(found.correlations, pairs, CORRELATIONS_SCHEMA, made)
    return found


def _first_of_each(steps: list[PreparedStep]) -> list[PreparedStep]:
    """Return the steps that differ in more than their strength."""
    chosen = _distinct([step.variant for step in steps])
    return [next(step for step in steps if step.variant == each) for each in chosen]


def labels(variants: Sequence[StepVariant]) -> list[str]:
    """Return what steps are called in a table of pairs; equal prompts and strengths are numbered."""
    names = [f"{each.neutral} -> {each.target} ({each.summary})" for each in variants]
    return [
        name if names.count(name) == 1 else f"{name} #{names[: place + 1].count(name)}"
        for place, name in enumerate(names)
    ]


def _distinct(variants: list[StepVariant]) -> list[StepVariant]:
    """Return the steps that differ in more than their strength, by the first of each."""
    found: dict[str, StepVariant] = {}
    for each in variants:
        settings = {k: v for k, v in each.parameters().items() if k not in ("alpha", "strength")}
        found.setdefault(repr(sorted(settings.items(), key=lambda item: item[0])), each)
    return list(found.values())


def _delta(table: RelevanceTable, variant: StepVariant, text: Tensor, std: Tensor) -> Tensor:
    """Return the style direction of a step, zeros where there is none; by another method, of all channels."""
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
    """Return a cosine matrix ``[K, K]`` as rows, each pair once; the diagonal with ``own``."""
    near = set(coinciding(matrix))
    return [
        {
            "kind": kind, "first": names[first], "second": names[second],
            "cosine": matrix[first, second].item(), "coincide": (first, second) in near,
        }
        for first in range(len(names))
        for second in range(first if own else first + 1, len(names))
        if matrix[first, second].isfinite()
    ]  # fmt: skip


def overview(found: DiagnosisRef) -> tuple[list[str], list[list[str]]]:
    """Return the prompts as a table for people: a header, and a line for each, with its channels by beta."""
    rows = read_table(found.prompts).to_pylist()
    betas = sorted({row["beta"] for row in rows if row["beta"] is not None})
    lines: dict[tuple[str, ...], dict[float | None, Row]] = {}
    for row in rows:
        lines.setdefault(tuple(row[name] for name in _NAMED), {})[row["beta"]] = row
    header = ["neutral", "target", "‖Δt‖", *(f"beta {beta:g}" for beta in betas)]
    return header, [
        [
            key[0], key[1], f"{next(iter(mine.values()))['text_norm']:.3f}",
            *(str(mine[beta]["channels"]) if beta in mine else "" for beta in betas),
        ]
        for key, mine in lines.items()
    ]  # fmt: skip


def markdown(found: DiagnosisRef) -> str:
    """Return a diagnosis as Markdown, for Prefect's UI."""
    header, lines = overview(found)
    rows = [header, ["---"] * len(header), *lines]
    table = [f"| {' | '.join(row)} |" for row in rows]
    near = [f"- {line}" for line in warnings(found.correlations)]
    return "\n".join([*table, "", *near, "", f"Tables: `{found.folder}`"])


_NAMED = ("neutral", "target", "templates", "method")


def warnings(uri: str) -> list[str]:
    """Return a line for every pair of a table of correlations that nearly coincides."""
    return [
        f"{row['first']} and {row['second']}: cosine {row['cosine']:.3f} of their {_WHAT[row['kind']]}; from "
        f"{COINCIDE:g} on they do nearly the same" + (", the other way round" if row["cosine"] < 0 else "")
        for row in read_table(uri).to_pylist()
        if row["coincide"]
    ]


_WHAT = {"text": "text directions", "style": "style directions", "step": "steps"}


def channel_strips(title: str, ranked: Sequence[Channel], std: Tensor, generator: Generator) -> list[Strip]:
    """Draw what channels do to a few portraits."""
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


def _reference(folder: str, *, pictures: bool = True) -> DiagnosisRef:
    places = {name: join(folder, f"{name}.parquet") for name in ("prompts", "correlations")}
    if pictures:
        places |= {"channels": join(folder, "channels.parquet"), "pictures": join(folder, "channels.png")}
    return DiagnosisRef(folder=folder, **places)


def _write(uri: str, rows: list[Row], schema: pa.Schema, made: Provenance) -> None:
    write_table(uri, pa.Table.from_pylist(rows, schema=schema), made)


def _provenance(parameters: dict[str, Any], inputs: dict[str, str], hashes: ModelHashes) -> Provenance:
    return Provenance(
        kind="prompt-diagnosis", fingerprint=fingerprint(STEP, VERSION, parameters, inputs), step=STEP,
        version=VERSION, parameters=parameters, inputs=inputs, generator=hashes.generator, clip=hashes.clip,
        code_version=styleclip_core.__version__,
    )  # fmt: skip
