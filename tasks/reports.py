"""What a batch of edits leaves: manifest, timings, contact sheet, and artifacts in Prefect's UI.

Its page is made of the manifest by ``tasks.pages``.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont, ImageOps
from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from pydantic import BaseModel, ConfigDict

import styleclip_core
from styleclip_core.errors import StyleCLIPError
from styleclip_core.images import decode_image
from tasks.artifacts import Provenance, fingerprint, is_complete, read_provenance, read_table, write_table
from tasks.caching import PER_RUN
from tasks.directions import ALPHA_UNIT
from tasks.editing import MANIFEST_SCHEMA, TIMING_SCHEMA, EditPlan
from tasks.images import ImageIndex
from tasks.outcomes import OK
from tasks.pages.links import public_url
from tasks.storage import join, read_bytes, write_bytes_atomic

STEP, VERSION = "report", "4"
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


@dataclass(frozen=True)
class _Batch:
    plans: list[EditPlan]
    manifest: pd.DataFrame
    table: pa.Table
    attempts: list[str]


@task(name="write-report", cache_policy=PER_RUN, persist_result=True)
def write_report(plans: list[EditPlan], index: ImageIndex) -> ReportRef:
    """Gather the rows of all edits into a manifest and draw the contact sheet."""
    batch = _collect(plans, index)
    print_ = fingerprint(STEP, VERSION, {"attempts": batch.attempts}, {"index": index.fingerprint})
    folder = join(plans[0].out, "batches", print_[:16])
    provenance = Provenance(
        kind="edits-manifest", fingerprint=print_, step=STEP, version=VERSION,
        parameters={
            "edits": [
                {**plan.prepared.variant.parameters(), "method": plan.prepared.variant.method}
                for plan in plans
            ],
            "photos": index.photos, "alpha_unit": ALPHA_UNIT, **_made_of(plans),
        },
        inputs={"index": index.fingerprint, **{plan.images: plan.fingerprint for plan in plans}},
        generator=plans[0].inversion.hashes.generator, clip=plans[0].inversion.hashes.clip,
        code_version=styleclip_core.__version__,
    )  # fmt: skip
    written = ReportRef(
        folder=folder,
        manifest=join(folder, "manifest.parquet"),
        timings=join(folder, "timings.parquet"),
        contact_sheet=join(folder, "contact-sheet.png"),
        page=join(folder, "index.html"),
        rows=len(batch.manifest),
        failed=int((batch.manifest["status"] != OK).sum()),
    )
    write_table(written.manifest, batch.table, provenance)
    if not is_complete(written.timings):
        write_table(written.timings, _timings(batch.attempts), provenance)
    write_bytes_atomic(written.contact_sheet, _png(contact_sheet(batch.plans, batch.manifest)))
    return written


def _made_of(plans: list[EditPlan]) -> dict[str, object]:
    """Return where the latents lie, and the hashes of networks and relevance tables behind the edits."""
    inversion = plans[0].inversion
    steps = {step.uri: step for plan in plans for step in plan.prepared.steps}
    tables = {
        read_provenance(uri).inputs.get("relevance", "")
        for uri, step in steps.items()
        if step.variant.method == "global"
    }
    others = inversion.hashes.model_dump(include={"encoder", "identity", "perceptual"})
    return {
        "latents": inversion.folder,
        "models": {name: hash_ for name, hash_ in others.items() if hash_},
        "tables": sorted(filter(None, tables)),
    }


def publish(written: ReportRef, steps: list[dict[str, object]]) -> None:
    """Show the batch in Prefect's UI: a summary with the contact sheet, and a link to the page."""
    sheet = Image.open(io.BytesIO(read_bytes(written.contact_sheet)))
    sheet.thumbnail((900, 900))
    small = io.BytesIO()
    sheet.convert("RGB").save(small, "JPEG", quality=80)
    lines = [
        f"{written.rows} edits, {written.failed} failed or skipped. Results: `{written.folder}`", "",
        "| step | shards | computed now | rows | failed | rows/s |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for step in steps:
        rate = float(str(step["rows"])) / max(float(str(step["seconds"])), 1e-6)
        lines.append(
            f"| {step['step']} | {step['shards']} | {step['computed']} | {step['rows']} "
            f"| {step['failed']} | {rate:.1f} |"
        )
    picture = base64.b64encode(small.getvalue()).decode()
    lines += ["", f"![contact sheet](data:image/jpeg;base64,{picture})"]
    create_markdown_artifact("\n".join(lines), key="edit-images-report", description="what this batch did")
    create_link_artifact(
        public_url(written.page),
        link_text="report page",
        key="edit-images-page",
        description=f"before and after, scores and failures of {written.rows} edits: {written.page}",
    )


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


def _collect(plans: list[EditPlan], index: ImageIndex) -> _Batch:
    tables, attempts = [], []
    for plan in plans:
        for shard in index.shards:
            log = plan.log(shard)
            rows = sorted(log.latest(), key=log.item)
            tables.append(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA))
            attempts += log.attempts()
    table = pa.concat_tables(tables)
    return _Batch(plans, table.to_pandas(), table, attempts)


def _timings(attempts: list[str]) -> pa.Table:
    uris = [uri.replace(".attempt-", ".timings-") for uri in attempts]
    tables = [read_table(uri) for uri in uris if is_complete(uri)]
    return pa.concat_tables([TIMING_SCHEMA.empty_table(), *tables])


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
