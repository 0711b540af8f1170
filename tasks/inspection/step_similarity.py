"""How alike the steps are that edits make in style space, image by image.

A style direction is one step for all images. What a mapper or an optimization does depends on the image;
how much, only its steps can tell (``styleclip_core.diagnostics.step_similarity``).

Shapes: B images, M all style channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import torch
from torch import Tensor

from styleclip.tasks.artifacts import Recipe, is_complete, read_table, write_table
from styleclip.tasks.artifacts.outcomes import OK, Row
from styleclip.tasks.editing.methods import apply_step
from styleclip.tasks.editing.plans import EditPlan
from styleclip.tasks.inspection.prompts import CORRELATIONS_SCHEMA, STEP, VERSION, pair_rows
from styleclip.tasks.photographs.images import ImageIndex
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.run import Run
from styleclip.tasks.storage import join
from styleclip_core.diagnostics import step_similarity
from styleclip_core.editing import EditedLatents

_IMAGES = 64


def comparable(plans: Sequence[EditPlan]) -> list[EditPlan]:
    """Return the edits of one step each, if the steps of one of them depend on the image; else none."""
    single = [plan for plan in plans if len(plan.prepared.steps) == 1]
    varied = [plan for plan in single if plan.prepared.variant.method != "global"]
    return single if varied else []


@unit_of_work("compare-steps")
def compare_steps(run: Run, plans: list[EditPlan], index: ImageIndex) -> str:
    """Write the cosines of the steps of a batch, over its first 64 images; empty where none has all edits.

    Returns:
        URI of a table like ``correlations.parquet``, of kind ``step``. The pair of an edit with itself is
        the mean cosine between its steps of different images.
    """
    keys, latents, edited = _sources(plans, index)
    if not keys:
        return ""

    # images are part of the name: more of them have every edit once failed ones are mended
    inputs = {str(number): plan.fingerprint for number, plan in enumerate(plans)}
    recipe = Recipe(STEP, VERSION, {"images": keys}, inputs, run.hashes.generator, run.hashes.clip)
    uri = join(recipe.folder(run.workspace, "diagnostics"), "correlations.parquet")
    if is_complete(uri):
        return uri

    flat = torch.tensor([latents[key]["w_plus"] for key in keys], device=run.device)
    source = EditedLatents(flat.view(len(keys), run.generator.num_ws, -1))
    steps = [
        _steps(run, plan, {key: rows[key] for key in keys}, source)
        for plan, rows in zip(plans, edited, strict=True)
    ]

    names = [plan.prepared.variant.label for plan in plans]
    rows = pair_rows("step", names, step_similarity(steps), own=True)
    table = pa.Table.from_pylist(rows, schema=CORRELATIONS_SCHEMA)
    write_table(uri, table, recipe.made("step-similarity"))
    return uri


def _sources(
    plans: list[EditPlan], index: ImageIndex
) -> tuple[list[str], dict[str, Row], list[dict[str, Row]]]:
    """Return images that have every edit, their latents, and the rows of every edit."""
    keys, latents, edited = list[str](), dict[str, Row](), [dict[str, Row]() for _ in plans]
    for shard in index.shards:
        found = {row["image_key"]: row for row in plans[0].inversion.log(shard).latest()}
        rows = [{row["image_key"]: row for row in plan.log(shard).latest()} for plan in plans]

        # a pair of edits is compared on the same images, so each must have both
        able = [key for key in found if all(each.get(key, {}).get("status") == OK for each in rows)]
        for key in able[: _IMAGES - len(keys)]:
            keys.append(key)
            latents[key] = found[key]
            for mine, each in zip(edited, rows, strict=True):
                mine[key] = each[key]

        if len(keys) == _IMAGES:
            break
    return keys, latents, edited


@torch.no_grad()
def _steps(run: Run, plan: EditPlan, rows: dict[str, Row], source: EditedLatents) -> Tensor:
    """Return what an edit adds to the style codes of images, ``[B, M]``; rows are by image."""
    (step,) = plan.prepared.steps
    generator = run.generator
    before = source.codes(generator).flat()

    # an optimization is not run again: where it ended is stored
    if step.variant.method == "optimization":
        moved = _optimized(run, rows, source)
    else:
        moved = apply_step(run, [step] * len(rows), source, list(rows), generator).latents
    return moved.codes(generator).flat() - before if isinstance(moved, EditedLatents) else moved - before


def _optimized(run: Run, rows: dict[str, Row], source: EditedLatents) -> EditedLatents | Tensor:
    """Return the stored latents of an optimization, or flat style codes where it moved those."""
    stored: dict[str, list[float]] = {}
    name = ""
    for place in dict.fromkeys(row["steps"][0]["latents"] for row in rows.values()):
        table = read_table(join(run.workspace, place))
        name = next(each for each in ("w_plus", "s") if each in table.column_names)
        stored |= dict(zip(table["image_key"].to_pylist(), table[name].to_pylist(), strict=True))

    flat = torch.tensor([stored[key] for key in rows], device=source.w_plus.device)
    return source.at(flat.view_as(source.w_plus)) if name == "w_plus" else flat
