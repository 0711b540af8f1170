"""What a batch of edits shows a person: manifest, contact sheet, one page, and Prefect artifacts."""

from __future__ import annotations

import base64
import io
from collections.abc import Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import jinja2
import pandas as pd
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont, ImageOps
from prefect import task
from pydantic import BaseModel, ConfigDict

import styleclip_core
from styleclip_core.errors import ArtifactConflictError, StyleCLIPError
from styleclip_core.images import decode_image
from tasks.artifacts import Provenance, fingerprint, is_complete, read_table, write_tables
from tasks.caching import PER_RUN
from tasks.directions import ALPHA_UNIT
from tasks.editing import MANIFEST_SCHEMA, SCORES, TIMING_SCHEMA, EditPlan
from tasks.images import ImageIndex
from tasks.outages import StoreError
from tasks.outcomes import OK
from tasks.storage import join, read_bytes, write_bytes_atomic

STEP, VERSION = "report", "3"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_ROWS, _COLUMNS, _TILE, _MARGIN, _HEADER = 8, 12, 128, 4, 40
_SHOWN = [name for name in MANIFEST_SCHEMA.names if name not in ("steps", "settings")]  # the long ones
_PAGES = jinja2.Environment(loader=jinja2.PackageLoader("tasks"), autoescape=True)


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


@dataclass(frozen=True)
class _Batch:
    plans: list[EditPlan]
    manifest: pd.DataFrame


@task(name="write-report", cache_policy=PER_RUN, persist_result=True)
def write_report(plans: list[EditPlan], index: ImageIndex) -> ReportRef:
    """Gather the rows of all edits into a manifest and draw contact sheet and page."""
    attempts = [uri for plan in plans for shard in index.shards for uri in plan.log(shard).attempts()]
    print_ = fingerprint(STEP, VERSION, {"attempts": attempts}, {"index": index.fingerprint})
    folder = join(plans[0].out, "batches", print_[:16])
    provenance = Provenance(
        kind="edits-manifest", fingerprint=print_, step=STEP, version=VERSION,
        parameters={
            "edits": [
                {**plan.prepared.variant.parameters(), "method": plan.prepared.variant.method}
                for plan in plans
            ],
            "photos": index.photos, "alpha_unit": ALPHA_UNIT,
        },
        inputs={"index": index.fingerprint, **{plan.images: plan.fingerprint for plan in plans}},
        generator=plans[0].inversion.hashes.generator, clip=plans[0].inversion.hashes.clip,
        code_version=styleclip_core.__version__,
    )  # fmt: skip
    manifest, timings = join(folder, "manifest.parquet"), join(folder, "timings.parquet")
    if not is_complete(manifest):
        write_tables(manifest, MANIFEST_SCHEMA, _rows(plans, index), provenance)
    if not is_complete(timings):
        with suppress(ArtifactConflictError):  # a run beside this one was first, with other times
            write_tables(timings, TIMING_SCHEMA, _timings(attempts), provenance)
    batch = _Batch(plans, read_table(manifest, columns=_SHOWN).to_pandas())
    written = ReportRef(
        folder=folder,
        manifest=manifest,
        timings=timings,
        contact_sheet=join(folder, "contact-sheet.png"),
        page=join(folder, "index.html"),
        rows=len(batch.manifest),
        failed=int((batch.manifest["status"] != OK).sum()),
    )
    sheet = _png(contact_sheet(batch.plans, batch.manifest))
    write_bytes_atomic(written.contact_sheet, sheet)
    write_bytes_atomic(written.page, _page(batch, index, provenance, sheet).encode())
    return written


def contact_sheet(plans: list[EditPlan], manifest: pd.DataFrame) -> Image.Image:
    """Draw photographs in rows: the photograph, its inversion, then its edits."""
    plans = plans[:_COLUMNS]
    complete = manifest[manifest["status"] == OK].groupby("image_key").size()
    keys = sorted(complete[complete == complete.max()].index) if len(complete) else []
    keys = keys[:: max(1, len(keys) // _ROWS)][:_ROWS]
    titles = ["photograph", "inversion", *(_title(plan) for plan in plans)]
    step = _TILE + _MARGIN
    sheet = Image.new("RGB", (len(titles) * step + _MARGIN, _HEADER + len(keys) * step + _MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for column, title in enumerate(titles):
        lines = [_cut(line, font) for line in title.split("\n")]
        pen.multiline_text((_MARGIN + column * step, 5), "\n".join(lines), fill="black", font=font, spacing=2)
    for row, key in enumerate(keys):
        inversion = plans[0].inversion
        uris = [join(inversion.photos, key), inversion.reconstruction_uri(key)]
        uris += [join(plan.out, plan.output_key(key)) for plan in plans]
        for column, uri in enumerate(uris):
            place = (_MARGIN + column * step, _HEADER + row * step)
            _tile(sheet, uri, place, whole=column > 0)
    return sheet


def _tile(sheet: Image.Image, uri: str, place: tuple[int, int], *, whole: bool) -> None:
    """Draw a generated image whole, of a photograph the middle, which is what its inversion sees."""
    try:
        image = decode_image(read_bytes(uri))
    except StoreError:
        raise
    except StyleCLIPError as error:  # a picture that has gone since is drawn as its error
        ImageDraw.Draw(sheet).text(place, type(error).__name__, fill="red")
        return
    size, method = (_TILE, _TILE), Image.Resampling.LANCZOS
    tile = ImageOps.pad(image, size, method, color="white") if whole else ImageOps.fit(image, size, method)
    sheet.paste(tile, place)


def _title(plan: EditPlan) -> str:
    variant = plan.prepared.variant
    return f"{variant.name}\n{variant.summary}"


def _cut(line: str, font: Font) -> str:
    """Return as much of a line as fits over a tile."""
    if font.getlength(line) <= _TILE:
        return line
    while line and font.getlength(f"{line}...") > _TILE:
        line = line[:-1]
    return f"{line}..."


def _rows(plans: list[EditPlan], index: ImageIndex) -> Iterator[pa.Table]:
    """Yield the rows of all edits, a shard at a time."""
    for plan in plans:
        for shard in index.shards:
            yield plan.log(shard).table(MANIFEST_SCHEMA)


def _timings(attempts: list[str]) -> Iterator[pa.Table]:
    for uri in (uri.replace(".attempt-", ".timings-") for uri in attempts):
        if is_complete(uri):
            yield read_table(uri)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _page(batch: _Batch, index: ImageIndex, provenance: Provenance, sheet: bytes) -> str:
    return _PAGES.get_template("report.html").render(
        photos=index.photos,
        images=index.rows,
        edits=_edit_rows(batch),
        problems=_problems(batch.manifest),
        sheet=base64.b64encode(sheet).decode(),
        provenance=provenance,
        alpha_unit=ALPHA_UNIT,
        rows=len(batch.manifest),
        done=int((batch.manifest["status"] == OK).sum()),
    )


def _edit_rows(batch: _Batch) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    manifest = batch.manifest
    for plan in batch.plans:
        variant = plan.prepared.variant
        mine = manifest[manifest["output_key"].fillna("").str.startswith(plan.images + "/")]
        rows.append({
            "variant": variant,
            "channels": [step.channels for step in plan.prepared.steps if step.channels is not None],
            "layers": "; ".join(", ".join(step.layers) for step in plan.prepared.steps),
            "done": len(mine),
            "images": plan.images,
            **{name: mine[name].mean() for name in SCORES},
        })  # fmt: skip
    return rows


def _problems(manifest: pd.DataFrame) -> list[dict[Hashable, object]]:
    broken = manifest[manifest["status"] != OK].drop_duplicates(["image_key", "error_type"])
    return broken[["image_key", "status", "error_type", "error"]].head(500).to_dict("records")
