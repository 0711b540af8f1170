"""Scores of all shards -> the two tables of an evaluation.

``styleclip.tasks.evaluation.shards`` explains their columns. Only here are all unedited images known, so only
here do logits become standard deviations.

Shapes: R scored rows, A attributes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from styleclip.tasks.artifacts import read_table, write_table
from styleclip.tasks.artifacts.outcomes import OK, STATUS_FIELDS, Row
from styleclip.tasks.evaluation.attributes import embedded_pairs
from styleclip.tasks.evaluation.manifest import EDIT_FIELDS
from styleclip.tasks.evaluation.panel import Panel, Prompts
from styleclip.tasks.evaluation.shards import (
    EVALUATION_SCHEMA,
    JUDGES,
    METRICS,
    SUMMARY_SCHEMA,
    EvaluationPlan,
    EvaluationRef,
    reference,
)
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.shown import code, markdown_table
from styleclip.tasks.storage import join
from styleclip_core.metrics import mean_and_error
from styleclip_core.zero_shot import Match, match_attribute, standardized_change, unrelated

UNITS = {
    "psnr": "dB", "l1": "of the pixel range", "lpips": "distance", "ssim": "similarity",
    "target_before": "probability", "target_after": "probability", "target_reached": "fraction of images",
    "agreement_positive": "fraction of steps", "target_move": "standard deviations",
    "others_move": "standard deviations", "attribute_before": "probability",
    "attribute_after": "probability", "attribute_change": "standard deviations",
}  # fmt: skip
_MOVES = ("target_move", "others_move")
_EDIT = [name for name, _ in EDIT_FIELDS]


@unit_of_work("gather-evaluation")
def gather_evaluation(run: Run, planned: EvaluationPlan) -> EvaluationRef:
    """Write the tables of an evaluation from the scores of its shards."""
    rows = [
        row
        for shard in planned.index.shards
        for row in _rows(planned, shard.uri, planned.log(shard).latest())
    ]

    _add_moves(run, planned, rows)
    rows.sort(key=lambda row: (row["variant"], row["image_key"]))

    # what the pictures held and which rows a later run may score belong to the name: it must not be taken
    broken = sorted((row["variant"], row["image_key"], row["error"]) for row in rows if row["mendable"])
    seen = sorted((row["variant"], row["image_key"], row["pictures"]) for row in rows if row["pictures"])
    name = f"{planned.whole.fingerprint[:16]}.{_digest(seen)}" + (f"-{_digest(broken)}" if broken else "")
    written, index = reference(join(planned.results, name)), planned.index
    # a CLIP that made the edits flatters them as a judge, so the tables say whether it did
    about = {
        "manifest": index.manifest, "judges": {name: getattr(run.models, name) or None for name in JUDGES},
        "clip_made_the_edits": run.hashes.clip == index.clip,
    }  # fmt: skip

    for uri, kind, schema, content in (
        (written.evaluation, "evaluation", EVALUATION_SCHEMA, rows),
        (written.summary, "evaluation-summary", SUMMARY_SCHEMA, list(_summary(rows))),
    ):
        made = planned.whole.made(kind, **about)
        write_table(uri, pa.Table.from_pylist(content, schema=schema), made)

    failed = sum(row["status"] != OK for row in rows)
    return written.model_copy(update={"rows": len(rows), "failed": failed})


def _rows(planned: EvaluationPlan, shard: str, scored: list[Row]) -> Iterator[Row]:
    """Yield the rows of a shard: of the manifest where the edit failed, of the scores where it did not."""
    scores = {(row["image_key"], row["variant"]): row for row in scored}
    for item in read_table(shard).to_pylist():
        found = scores.get((item["image_key"], item["variant"]), {}) if item["status"] == OK else {}
        outcome = found or item
        yield {
            **dict.fromkeys(EVALUATION_SCHEMA.names),
            **{name: item[name] for name in ("image_key", "output_key", "prompts", "sweep", *_EDIT)},
            **{name: _finite(found.get(name)) for name in METRICS},
            **{name: found.get(name) for name in ("logits_before", "logits_after", "pictures")},
            "mendable": item["status"] == OK and found.get("status") != OK,
            **{name: outcome[name] for name, _ in STATUS_FIELDS},
        }


def _digest(items: list[tuple[str, str, str]]) -> str:
    return hashlib.sha256(repr(items).encode()).hexdigest()[:8]


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


@dataclass(frozen=True)
class _About:
    """The attributes that an edit is about, and those that it should leave alone."""

    match: Match | None
    others: list[int]


def _add_moves(run: Run, planned: EvaluationPlan, rows: list[Row]) -> None:
    """Fill in how far attributes moved, in standard deviations over the unedited images."""
    scored = [row for row in rows if row["logits_after"]]
    if not scored:
        return

    before, after = (
        torch.tensor([row[name] for row in scored]) for name in ("logits_before", "logits_after")
    )

    # an unedited image counts once, however many edits it has
    first = {row["image_key"]: place for place, row in enumerate(scored)}
    unedited = before[list(first.values())].double()
    deviation = unedited.std(dim=0) if len(unedited) > 1 else torch.full((before.shape[1],), torch.nan)
    change = standardized_change(before, after, deviation.to(before))

    about = _abouts(run, planned, scored)
    names = [each.name for each in planned.attributes]
    for place, row in enumerate(scored):
        shown = zip(
            names,
            before[place].sigmoid().tolist(),
            after[place].sigmoid().tolist(),
            change[place].tolist(),
            strict=True,
        )
        row["attributes"] = [
            {"attribute": name, "before": was, "after": now, "change": _finite(moved)}
            for name, was, now, moved in shown
        ]
        row |= _moves(change[place], about[_prompts(row)], names)


def _prompts(row: Row) -> Prompts:
    return tuple((each["neutral"], each["target"]) for each in row["prompts"])


def _abouts(run: Run, planned: EvaluationPlan, scored: list[Row]) -> dict[Prompts, _About]:
    templates = planned.comparison.templates
    panel, pairs = Panel(run, templates), embedded_pairs(run, planned.attributes, templates)
    groups = [each.group for each in planned.attributes]

    # rows are many and prompts few, so each is matched once
    found = {}
    for asked in {_prompts(row) for row in scored}:
        matches = [match_attribute(panel.text((step,)).direction, *pairs) for step in asked]
        touched = {match.index for match in matches if match}
        others = set(range(len(groups))).intersection(*(unrelated(groups, index) for index in touched))
        # an edit of several steps has no one attribute that it aims at
        found[asked] = _About(matches[0] if len(asked) == 1 else None, sorted(others))
    return found


def _moves(change: Tensor, about: _About, names: list[str]) -> Row:
    """Return what moved of one image, from the changes of its logits ``[A]``."""
    moves: Row = {}
    if about.match:
        moves["target_attribute"] = names[about.match.index]
        moves["target_move"] = _finite(about.match.sign * change[about.match.index].item())

    # a single image has no deviation, so none of its changes is finite
    others = [place for place in about.others if change[place].isfinite()]
    if others:
        worst = max(others, key=lambda place: change[place].abs().item())
        moves |= {
            "others_move": change[others].abs().mean().item(),
            "worst_attribute": names[worst],
            "worst_move": change[worst].item(),
        }
    return moves


def _summary(rows: list[Row]) -> Iterator[Row]:
    """Yield a row for every edit and metric, then for every sweep."""
    for mine in _grouped(rows, "variant"):
        about = {name: mine[0][name] for name in _EDIT}
        yield from _lines(about, mine, _metrics(mine))

    for mine in _grouped(rows, "sweep"):
        if len({row["variant"] for row in mine}) > 1:
            # what tells the edits of a sweep apart is not said of the whole
            about = {name: mine[0][name] for name in _EDIT} | dict.fromkeys(("variant", "alpha", "strength"))
            images = [[row["agreement"] for row in each] for each in _grouped(mine, "image_key")]
            yield from _lines(about, mine, _agreements(images))


def _grouped(rows: list[Row], name: str) -> list[list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return list(found.values())


def _lines(
    about: Row, rows: list[Row], metrics: Iterable[tuple[str, str | None, list[float]]]
) -> Iterator[Row]:
    failed = sum(row["status"] != OK for row in rows)

    for metric, attribute, values in metrics:
        mean, error, n = mean_and_error(values)
        if n:
            yield {
                **about, "metric": metric, "attribute": attribute, "unit": UNITS.get(metric, "cosine"),
                "mean": mean, "standard_error": _finite(error), "n": n, "failed": failed,
            }  # fmt: skip


def _metrics(rows: list[Row]) -> Iterator[tuple[str, str | None, list[float]]]:
    """Yield every metric of an edit, with its values."""
    for name in (*METRICS, *_MOVES):
        yield name, None, [row[name] for row in rows if row[name] is not None]

    # fractions, of the images that have the score at all
    for name, metric, least in (
        ("target_reached", "target_after", 0.5),
        ("agreement_positive", "agreement", 0),
    ):
        yield name, None, [float(row[metric] > least) for row in rows if row[metric] is not None]

    scored = [row["attributes"] for row in rows if row["attributes"]]
    for each in zip(*scored, strict=True):
        for name in ("before", "after", "change"):
            values = [one[name] for one in each if one[name] is not None]
            yield f"attribute_{name}", each[0]["attribute"], values


def _agreements(images: list[list[float | None]]) -> Iterator[tuple[str, str | None, list[float]]]:
    """Yield the agreement of a sweep: of every image the mean over its steps, which are not independent."""
    steps = [[value for value in image if value is not None] for image in images]
    steps = [image for image in steps if image]
    yield "agreement", None, [sum(image) / len(image) for image in steps]
    yield "agreement_positive", None, [sum(value > 0 for value in image) / len(image) for image in steps]


def overview(written: EvaluationRef) -> tuple[list[str], list[list[str]]]:
    """Return the summary as a table for people: a header, and a line for every edit."""
    table = read_table(written.summary).to_pandas()
    table["cell"] = [
        _cell(*row) for row in table[["metric", "mean", "standard_error"]].itertuples(index=False)
    ]
    columns = [name for name in _SHOWN if name in set(table["metric"])]

    # rows of a sweep have no variant, those of an attribute have a column of the file alone
    edits = table[table["variant"].notna() & table["attribute"].isna()]
    cells = edits.pivot(index="variant", columns="metric", values="cell").reindex(columns=columns).fillna("")
    counts = edits.groupby("variant")[["n", "failed"]].max().astype(str)
    lines = cells.join(counts).loc[edits["variant"].unique()]  # in the order of the file
    names = [variant.rsplit("_", 1)[0] for variant in lines.index]  # without its hash
    return ["edit", *lines.columns], [[name, *row] for name, row in zip(names, lines.to_numpy(), strict=True)]


_SHOWN = (
    "clip_before", "clip_after", "directional", "agreement", "target_before", "target_after", "target_move",
    "others_move", "identity", "lpips", "psnr", "ssim",
)  # fmt: skip


def _cell(metric: str, mean: float, error: float) -> str:
    digits = 1 if metric == "psnr" else 3
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def markdown(written: EvaluationRef) -> str:
    """Return the summary as Markdown, for Prefect's UI."""
    about = f"{written.rows} rows, {written.failed} failed. Tables: {code(written.folder)}"
    return "\n".join([about, "", *markdown_table(*overview(written))])
