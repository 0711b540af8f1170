"""Scores of the edits that a manifest lists, by networks that need not be those that made them.

Both tables lie beside the manifest, in ``<batch>/evaluations/<16 hex digits>/``, one folder for every set
of judges and attributes; ``find_evaluations`` lists them. ``evaluation.parquet`` has a row for every row of
the manifest (``EVALUATION_SCHEMA``), ``summary.parquet`` a row for every edit and metric
(``SUMMARY_SCHEMA``). Rows of both name their edit by ``variant``, the folder of its images below
``images/`` (the second part of a manifest's ``output_key``).

Columns of ``evaluation.parquet``; null where there is no network for it, or the row's status is not ok:

====================  ==========  =======================================================================
clip_before, _after   -1..1       cosine to the target prompt, before and after the edit
directional           -1..1       cosine of the change of the embedding to the text direction
agreement             -1..1       the same of the step from the next weaker strength of a sweep
target_before,        0..1        zero-shot probability of the target prompt against the neutral one
target_after
identity              -1..1       cosine of the identity embeddings before and after
psnr                  dB          edited against unedited image; infinite where nothing changed
ssim                  -1..1       their structural similarity
l1                    0..1        their mean absolute difference, pixels in 0..1
lpips                 0..         their perceptual distance
target_attribute      name        attribute whose text direction is nearest; null if none is near
target_move           deviations  move of that attribute's logit towards what the edit wants
others_move           deviations  mean absolute move of the logits of the attributes of other groups
worst_attribute,      name,       the one of those that moved most, and its move with its sign
worst_move            deviations
attributes            list        every attribute: zero-shot probability before and after, change of its
                                  logit in standard deviations over the unedited images of the batch
status, error_type,               as in the manifest: failed rows are carried along
error
====================  ==========  =======================================================================
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, cast

import pyarrow as pa
import torch
from PIL import Image
from prefect import task
from pydantic import BaseModel, ConfigDict

import styleclip_core
from styleclip_core.errors import ImageSizeError, StyleCLIPError
from styleclip_core.images import decode_image, fit
from tasks import models
from tasks.artifacts import Provenance, artifact_uri, fingerprint, read_table
from tasks.attributes import AttributePrompts
from tasks.caching import PER_RUN
from tasks.directions import text_vector
from tasks.edits import StepVariant
from tasks.manifest_items import EDIT_FIELDS, EditsIndex, EditsShard
from tasks.outcomes import OK, STATUS_FIELDS, OutcomeLog, Row, failure, success
from tasks.overlap import computing, read_ahead
from tasks.panel import Panel, Place
from tasks.progress import ShardResult
from tasks.settings import Comparison, Judges
from tasks.storage import MissingObjectError, join, list_objects, output_key, read_bytes

STEP, VERSION = "evaluate-edits", "1"
_PICTURES = 32  # that the networks see at once
METRICS = (
    "clip_before", "clip_after", "directional", "agreement", "target_before", "target_after", "identity",
    "psnr", "ssim", "l1", "lpips",
)  # fmt: skip
ATTRIBUTE_TYPE = pa.struct([
    ("attribute", pa.string()), ("before", pa.float32()), ("after", pa.float32()), ("change", pa.float32()),
])  # fmt: skip
EVALUATION_SCHEMA = pa.schema([
    ("image_key", pa.string()), *EDIT_FIELDS, ("output_key", pa.string()),
    *[(name, pa.float32()) for name in METRICS],
    ("target_attribute", pa.string()), ("target_move", pa.float32()), ("others_move", pa.float32()),
    ("worst_attribute", pa.string()), ("worst_move", pa.float32()), ("attributes", pa.list_(ATTRIBUTE_TYPE)),
    *STATUS_FIELDS,
])  # fmt: skip
SUMMARY_SCHEMA = pa.schema([
    *EDIT_FIELDS, ("metric", pa.string()), ("attribute", pa.string()), ("unit", pa.string()),
    ("mean", pa.float64()), ("standard_error", pa.float64()), ("n", pa.int64()), ("failed", pa.int64()),
])  # fmt: skip
UNITS = {
    "psnr": "dB", "l1": "of the pixel range", "lpips": "distance",
    "target_before": "probability", "target_after": "probability", "target_reached": "fraction of images",
    "agreement_positive": "fraction of steps",
    "target_move": "standard deviations", "others_move": "standard deviations",
    "attribute_before": "probability", "attribute_after": "probability",
    "attribute_change": "standard deviations",
}  # fmt: skip
SCORED_SCHEMA = pa.schema([  # what a shard knows: deviations need all of them
    ("image_key", pa.string()), ("variant", pa.string()), *[(name, pa.float32()) for name in METRICS],
    ("logits_before", pa.list_(pa.float32())), ("logits_after", pa.list_(pa.float32())), *STATUS_FIELDS,
])  # fmt: skip


class EvaluationPlan(BaseModel):
    """What judges a manifest, and where its scores will lie.

    Attributes:
        index: The manifest.
        judges: Who looks at its images.
        comparison: With what, and how prompts are embedded.
        attributes: What images are scored for, beside the edit's own prompts.
        before: Folder of the unedited images.
        drawn: Whether those are inversions, which have names of ours, or photographs.
        folder: Where the scores of shards lie; a row that another manifest has too is scored once.
        hashes: Content hashes of the judges.
        result: Where the two tables lie, beside the manifest.
        fingerprint: Names both.
    """

    model_config = ConfigDict(frozen=True)

    index: EditsIndex
    judges: Judges
    comparison: Comparison
    attributes: tuple[AttributePrompts, ...]
    before: str
    drawn: bool
    hashes: dict[str, str]
    folder: str = ""
    result: str = ""
    fingerprint: str = ""

    def log(self, shard: EditsShard) -> OutcomeLog:
        """Return the attempts at a shard."""
        return OutcomeLog(self.folder, shard.digest, ("image_key", "variant"))

    def parameters(self) -> dict[str, Any]:
        """Return what decides the scores of a row, beside the networks."""
        return {
            "out": self.index.out, "unedited": self.before, **self.comparison.model_dump(),
            "attributes": [each.model_dump() for each in self.attributes],
        }  # fmt: skip

    def before_uri(self, image_key: str) -> str:
        """Return where an image lies as it was before any edit."""
        return join(self.before, output_key(image_key, suffix=".png") if self.drawn else image_key)


class EvaluationRef(BaseModel):
    """Where the tables of an evaluation lie."""

    model_config = ConfigDict(frozen=True)

    folder: str
    evaluation: str
    summary: str
    rows: int = 0
    failed: int = 0


def find_evaluations(manifest: str) -> list[EvaluationRef]:
    """Return the evaluations that lie beside a manifest, by folder; there may be one for every set of judges.

    Raises:
        StorageError: If they cannot be listed.
    """
    folder = join(manifest.rsplit("/", 1)[0], "evaluations")
    try:
        found = [item.key for item in list_objects(folder, suffixes=("/summary.parquet",))]
    except MissingObjectError:
        return []
    return [reference(join(folder, key.rsplit("/", 1)[0])) for key in found]


def reference(folder: str) -> EvaluationRef:
    """Return where the tables of an evaluation lie in its folder."""
    tables = {name: join(folder, f"{name}.parquet") for name in ("evaluation", "summary")}
    return EvaluationRef(folder=folder, **tables)


@task(name="plan-evaluation", cache_policy=PER_RUN, persist_result=True)
def plan_evaluation(
    index: EditsIndex,
    judges: Judges,
    comparison: Comparison,
    attributes: list[AttributePrompts],
    before: str,
    workspace: str,
    device: str,
) -> EvaluationPlan:
    """Load the judges and return where their scores lie; prompts that they cannot tell apart end it here.

    Raises:
        PromptError: If CLIP cannot tell an attribute's two prompts apart, or cannot read one.
    """
    hashes = {"clip": models.clip(judges.clip, device).fingerprint}
    if judges.identity:
        hashes["identity"] = models.identity(judges.identity, device).fingerprint
    if judges.perceptual:
        hashes["perceptual"] = models.perceptual(judges.perceptual, device).fingerprint
    for each in attributes:
        pair = StepVariant(neutral=each.negative, target=each.positive, templates=comparison.templates)
        text_vector(pair, judges.clip, device)
    planned = EvaluationPlan(
        index=index, judges=judges, comparison=comparison, attributes=tuple(attributes), before=before,
        drawn=comparison.before == "inversion", hashes=hashes,
    )  # fmt: skip
    shards = fingerprint(STEP, VERSION, planned.parameters(), hashes)
    whole = fingerprint(STEP, VERSION, planned.parameters(), {**hashes, "manifest": index.fingerprint})
    places = {
        "folder": artifact_uri(workspace, "evaluations", shards),
        "result": join(index.manifest.rsplit("/", 1)[0], "evaluations", whole[:16]),
    }
    return planned.model_copy(update={**places, "fingerprint": whole})


@task(
    name="evaluate-shard",
    task_run_name="evaluate-shard-{shard.number}",
    cache_policy=PER_RUN,
    persist_result=True,
)
def evaluate_shard(planned: EvaluationPlan, shard: EditsShard, device: str) -> ShardResult:
    """Score the edited images of one shard; an image with an edit that has no score yet is done as a whole.

    Rows whose edit failed have nothing to score; they are carried along when the tables are gathered.
    """
    started = time.monotonic()
    log = planned.log(shard)
    known = {log.item(row): row for row in log.latest()}
    edited = [row for row in read_table(shard.uri).to_pylist() if row["status"] == OK]
    images = [list(rows) for _, rows in groupby(edited, key=itemgetter("image_key"))]
    todo = [rows for rows in images if any(known.get(log.item(row), {}).get("status") != OK for row in rows)]
    if todo:
        panel = Panel(planned.judges, planned.comparison.templates, planned.attributes, device)
        rows = [row for chunk in _chunks(todo) for row in _score(planned, panel, chunk)]
        log.append(rows, SCORED_SCHEMA, _shard_provenance(planned))
        known |= {log.item(row): row for row in rows}
    failed = shard.rows - len(edited) + sum(row["status"] != OK for row in known.values())
    return ShardResult(
        uri=log.uri(0), rows=shard.rows, failed=failed, reused=not todo, seconds=time.monotonic() - started
    )


def _chunks(images: list[list[Row]]) -> Iterator[list[list[Row]]]:
    """Yield images with all their edits, so many that the networks are busy."""
    chunk: list[list[Row]] = []
    for rows in images:
        chunk.append(rows)
        if sum(len(each) + 1 for each in chunk) >= _PICTURES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _score(planned: EvaluationPlan, panel: Panel, chunk: list[list[Row]]) -> list[Row]:
    """Read the pictures of some images and score their edits; a picture that cannot be read is a row."""
    edited = [row for rows in chunk for row in rows]
    owners = [place for place, rows in enumerate(chunk) for _ in rows]
    uris = [join(planned.index.out, row["output_key"]) for row in edited]
    after = list(read_ahead(uris, _read, ahead=_PICTURES))
    uris = [planned.before_uri(rows[0]["image_key"]) for rows in chunk]
    before = list(read_ahead(uris, _read, ahead=_PICTURES))
    size = next((each.size for each in after if isinstance(each, Image.Image)), (0, 0))
    found, able = list[Row](), list[int]()
    for number, row in enumerate(edited):
        try:
            _check(after[number], before[owners[number]], size)
            able.append(number)
        except (StyleCLIPError, OSError) as error:
            found.append(_scored(row) | failure(error))
    if able:
        height, width = size[1], size[0]
        shown = sorted({owners[number] for number in able})
        unedited = torch.stack([fit(cast(Image.Image, before[owner]), height, width) for owner in shown])
        moved = torch.stack([fit(cast(Image.Image, after[number]), height, width) for number in able])
        places = [_place(edited[number], shown.index(owners[number])) for number in able]
        with computing(panel.device):
            scores = panel.score(unedited, moved, places)
        found += [
            _scored(edited[number]) | score | success() for number, score in zip(able, scores, strict=True)
        ]
    return found


def _read(uri: str) -> Image.Image | Exception:
    """Read and decode a picture, or return why that cannot be."""
    try:
        return decode_image(read_bytes(uri))
    except (StyleCLIPError, OSError) as error:
        return error


def _check(after: Image.Image | Exception, before: Image.Image | Exception, size: tuple[int, int]) -> None:
    """Raise what is wrong with an edited image, or with the image before it."""
    for each in (after, before):
        if isinstance(each, Exception):
            raise each
    if isinstance(after, Image.Image) and after.size != size:
        raise ImageSizeError(
            f"the edited image is {after.width} x {after.height} pixels, others of its batch are {size[0]} x "
            f"{size[1]}; evaluate edits of one generator at a time"
        )


def _place(row: Row, owner: int) -> Place:
    prompts = tuple((each["neutral"], each["target"]) for each in row["prompts"])
    return Place(owner, prompts, row["sweep"], row["position"])


def _scored(row: Row) -> Row:
    return dict.fromkeys(SCORED_SCHEMA.names) | {"image_key": row["image_key"], "variant": row["variant"]}


def _shard_provenance(planned: EvaluationPlan) -> Provenance:
    return Provenance(
        kind="edit-scores", fingerprint=planned.folder.rsplit("/", 1)[1], step=STEP, version=VERSION,
        parameters=planned.parameters(), inputs={}, generator="", clip=planned.hashes["clip"],
        code_version=styleclip_core.__version__,
    )  # fmt: skip
