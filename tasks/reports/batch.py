"""What a batch of edits leaves: manifest, timings, contact sheet, and artifacts in Prefect's UI.

Its page is made of the manifest by ``styleclip.tasks.reports.page``.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont, ImageOps
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import (
    Recipe,
    column_names,
    is_complete,
    iter_batches,
    read_provenance,
    write_tables,
)
from styleclip.tasks.artifacts.outcomes import OK, OutcomeLog, Row
from styleclip.tasks.directions.style_directions import ALPHA_UNIT
from styleclip.tasks.editing.plans import EditPlan
from styleclip.tasks.editing.schemas import TIMING_SCHEMA
from styleclip.tasks.photographs.images import ImageIndex, ImageShard
from styleclip.tasks.photographs.reading import read_image, read_stored
from styleclip.tasks.reports.manifest import manifest_schema, manifest_tables, timing_tables
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.partial import Part, all_attempts, done_shards
from styleclip.tasks.running.run import Run
from styleclip.tasks.storage import MissingObjectError, StoreError, join, read_item, write_bytes_atomic
from styleclip_core.errors import ArtifactConflictError, StyleCLIPError
from styleclip_core.images import decode_image

STEP, VERSION = "report", "5"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_ROWS, _COLUMNS, _TILE, _MARGIN, _HEADER = 8, 12, 128, 4, 40


class ReportRef(BaseModel):
    """Where the results of a batch lie."""

    model_config = ConfigDict(frozen=True)

    folder: str
    manifest: str
    timings: str
    contact_sheet: str
    page: str
    rows: int
    failed: int


@unit_of_work("write-report")
def write_report(run: Run, plans: list[EditPlan], index: ImageIndex) -> ReportRef:
    """Gather the rows of all edits into a manifest and draw the contact sheet."""
    return _write(run, plans, index, index.shards)


def write_partial_report(run: Run, plans: list[EditPlan], index: ImageIndex, why: str) -> ReportRef | None:
    """Gather the rows of the shards that are done, all edits of them; the whole report if all are.

    Args:
        run: Networks and places.
        plans: The edits.
        index: All images of the batch.
        why: What ended the run, and what goes on from there.

    Returns:
        Where manifest and contact sheet lie; None where no shard is done.
    """
    done = done_shards(index.shards, lambda shard: [log for _, log in _logs(plans, [shard])])
    return _write(run, plans, index, done, why) if done else None


def batch_of(plans: list[EditPlan]) -> dict[str, str]:
    """Return what makes a batch, of whichever images: its edits, and the latents they are made from."""
    return {plan.images: plan.fingerprint for plan in plans} | assigned(plans)


def assigned(plans: list[EditPlan]) -> dict[str, str]:
    """Return what says which images edits are for, where some are not for all."""
    # one step finds it for all edits of a run
    chosen = next((plan.chosen for plan in plans if plan.chosen), None)
    return {"assignment": chosen.assignment.rpartition("/")[2]} if chosen else {}


def _logs(plans: list[EditPlan], shards: list[ImageShard]) -> list[tuple[EditPlan, OutcomeLog]]:
    """Return the attempts at shards, edit by edit, where an edit is for images of the shard."""
    return [(plan, plan.log(shard)) for plan in plans for shard in shards if plan.touches(shard)]


def _write(
    run: Run, plans: list[EditPlan], index: ImageIndex, shards: list[ImageShard], why: str = ""
) -> ReportRef:
    attempts = all_attempts([log for _, log in _logs(plans, shards)])
    recipe = Recipe(
        STEP, VERSION, {"attempts": attempts}, {"index": index.fingerprint, **assigned(plans)},
        run.hashes.generator, run.hashes.clip,
    )  # fmt: skip
    folder = join(run.out, "batches", recipe.fingerprint[:16])

    # attempts name the manifest; it says what they were made of instead, which is shorter
    made = recipe.made("edits-manifest", {**recipe.inputs, **batch_of(plans)})
    made = replace(made, parameters=_made_of(run, plans, index))
    if len(shards) < len(index.shards):
        part = Part.named(batch_of(plans), attempts, len(shards), len(index.shards), why)
        folder, made = part.folder(run.out), part.mark(made)
        part.keep(run.out)

    manifest, timings = join(folder, "manifest.parquet"), join(folder, "timings.parquet")
    if not is_complete(manifest):
        schema = manifest_schema(index)
        write_tables(manifest, schema, manifest_tables(plans, shards, schema), made)
    if not is_complete(timings):
        with suppress(ArtifactConflictError):  # a run beside this one was first, with other times
            write_tables(timings, TIMING_SCHEMA, timing_tables(plans, attempts), made)

    rows, failed, done = _counted(manifest)
    written = ReportRef(
        folder=folder,
        manifest=manifest,
        timings=timings,
        contact_sheet=join(folder, "contact-sheet.png"),
        page=join(folder, "index.html"),
        rows=rows,
        failed=failed,
    )
    write_bytes_atomic(written.contact_sheet, _png(contact_sheet(plans, manifest, done)))
    return written


def broken_items(manifest: str) -> list[Row]:
    """Return key and error of every image that some edit failed on, each kind of error once."""
    found: dict[tuple[str, str], Row] = {}
    for part in iter_batches(manifest, ["image_key", "status", "error_type", "error"]):
        for row in part.filter(pc.not_equal(part["status"], OK)).to_pylist():
            found[row["image_key"], row["error_type"]] = row
    return list(found.values())


def _counted(manifest: str) -> tuple[int, int, Counter[str]]:
    """Return rows, those that failed, and how many edits of each image are done."""
    rows, done = 0, Counter[str]()
    for part in iter_batches(manifest, ["image_key", "status"]):
        rows += part.num_rows
        done.update(part.filter(pc.equal(part["status"], OK))["image_key"].to_pylist())
    return rows, rows - done.total(), done


def _made_of(run: Run, plans: list[EditPlan], index: ImageIndex) -> dict[str, object]:
    """Return the edits, where photographs and latents lie, and what networks and tables are behind them."""
    edits = [
        {
            **plan.prepared.variant.parameters(), "method": plan.prepared.variant.method,
            "variant": plan.variant, **({"column": plan.group} if plan.group else {}),
        }
        for plan in plans
    ]  # fmt: skip

    # steps share directions, and each of these says which table it came from
    directions = {
        step.uri for plan in plans for step in plan.prepared.steps if step.variant.method == "global"
    }
    tables = {read_provenance(uri).inputs.get("relevance", "") for uri in directions}

    others = run.hashes.model_dump(include={"encoder", "identity", "perceptual"})

    return {
        "edits": edits,
        "photos": index.photos,
        "alpha_unit": ALPHA_UNIT,
        "latents": plans[0].inversion.folder,
        "models": {name: hash_ for name, hash_ in others.items() if hash_},
        "tables": sorted(filter(None, tables)),
    }


def contact_sheet(plans: list[EditPlan], manifest: str, done: Counter[str]) -> Image.Image:
    """Draw photographs in rows, of those with most edits done: the photograph, its inversion, its edits."""
    by_column: dict[str, list[EditPlan]] = {}
    for plan in plans:
        by_column.setdefault(plan.group or plan.variant, []).append(plan)
    shown = list(by_column.values())[:_COLUMNS]

    # rows with holes show little, so images with most edits come first
    most = max(done.values(), default=0)
    keys = sorted(key for key, count in done.items() if count == most)
    # spread over the batch, whose first images may all be of one person
    keys = keys[:: max(1, len(keys) // _ROWS)][:_ROWS]
    images = _images(manifest, keys)

    titles = ["photograph", "inversion", *(_title(each) for each in shown)]
    step = _TILE + _MARGIN
    sheet = Image.new("RGB", (len(titles) * step + _MARGIN, _HEADER + len(keys) * step + _MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for column, title in enumerate(titles):
        lines = [_cut(line, font) for line in title.split("\n")]
        pen.multiline_text((_MARGIN + column * step, 5), "\n".join(lines), fill="black", font=font, spacing=2)

    for row, key in enumerate(keys):
        inversion, image = plans[0].inversion, next(iter(images[key].values()))
        photograph = partial(read_image, inversion.photos, key, image.get("place"))
        inverted = partial(read_item, inversion.reconstructions, inversion.reconstruction_key(image))
        reads: list[Callable[[], bytes]] = [photograph, inverted]
        reads += [_edited(each, images[key]) for each in shown]
        for column, read in enumerate(reads):
            place = (_MARGIN + column * step, _HEADER + row * step)
            _tile(sheet, read, place, whole=column > 0)
    return sheet


def _images(manifest: str, keys: Sequence[str]) -> dict[str, dict[str, Row]]:
    """Return what a manifest says of some images, by key and variant, where the edit is done."""
    wanted = pa.array(keys, pa.string())
    columns = ["image_key", "content_hash", "variant", "output_key", "status"]
    columns += {"place"} & set(column_names(manifest))

    found: dict[str, dict[str, Row]] = {}
    for part in iter_batches(manifest, columns):
        for row in part.filter(pc.is_in(part["image_key"], wanted)).to_pylist():
            if row["status"] == OK:
                found.setdefault(row["image_key"], {})[row["variant"]] = row
    return found


def _edited(plans: Sequence[EditPlan], rows: Mapping[str, Row]) -> Callable[[], bytes]:
    """Return what reads the image of the edit that a photograph has of some, or says that it has none."""
    found = next((row for plan in plans if (row := rows.get(plan.variant))), None)
    if found:
        return partial(read_stored, plans[0].out, found["output_key"])

    def none() -> bytes:
        raise MissingObjectError(f"{plans[0].variant} has no image of it")

    return none


def _tile(sheet: Image.Image, read: Callable[[], bytes], place: tuple[int, int], *, whole: bool) -> None:
    """Draw a generated image whole, of a photograph the middle, which is what its inversion sees."""
    try:
        image = decode_image(read())
    except StoreError:
        raise
    except StyleCLIPError as error:  # a picture that has gone since is drawn as its error
        ImageDraw.Draw(sheet).text(place, type(error).__name__, fill="red")
        return

    size, method = (_TILE, _TILE), Image.Resampling.LANCZOS
    tile = ImageOps.pad(image, size, method, color="white") if whole else ImageOps.fit(image, size, method)
    sheet.paste(tile, place)


def _title(plans: Sequence[EditPlan]) -> str:
    variant = plans[0].prepared.variant
    more = f"\nand {len(plans) - 1} more" if len(plans) > 1 else ""
    return f"{variant.name}\n{variant.summary}" if not more else f"{variant.name}{more}"


def _cut(line: str, font: Font) -> str:
    """Return as much of a line as fits over a tile."""
    if font.getlength(line) <= _TILE:
        return line
    while line and font.getlength(f"{line}...") > _TILE:
        line = line[:-1]
    return f"{line}..."


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
