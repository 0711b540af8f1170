"""Scores of the edits that a manifest lists, by networks that need not be those that made them.

Both tables lie beside the manifest, in ``<batch>/evaluations/<16 hex digits>/``, one folder for every set
of judges and attributes; where rows could not be scored, it has a name with these rows in it, and the next
run, which tries them again, leaves one without. ``evaluation.parquet`` has a row for every row of
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

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter

import pyarrow as pa
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import Recipe, read_table
from styleclip.tasks.artifacts.outcomes import OK, STATUS_FIELDS, Item, OutcomeLog, Row, failure, success
from styleclip.tasks.evaluation.attributes import AttributePrompts
from styleclip.tasks.evaluation.manifest import EDIT_FIELDS, EditsIndex, EditsShard
from styleclip.tasks.evaluation.panel import Panel, Place
from styleclip.tasks.photographs.reading import StoredReader, object_of
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import computing, read_ahead
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.shards import Files, Outcomes, finish_shard
from styleclip.tasks.running.texts import text_vector
from styleclip.tasks.settings import Comparison
from styleclip.tasks.settings.edits import StepVariant
from styleclip.tasks.storage import ChangedObjectError, join, output_key, versions_of
from styleclip_core.errors import ImageSizeError, StyleCLIPError
from styleclip_core.images import decode_image, fit

STEP, VERSION = "evaluate-edits", "3"
JUDGES = ("clip", "identity", "perceptual")  # networks of a run that take part
_PICTURES = 32  # that the networks see at once
_HELD = 2**27  # bytes of tars that are held at once
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
SCORED_SCHEMA = pa.schema([  # what a shard knows: deviations need all of them
    ("image_key", pa.string()), ("variant", pa.string()), ("version", pa.string()),
    ("output_version", pa.string()), ("before_version", pa.string()), ("pictures", pa.string()),
    *[(name, pa.float32()) for name in METRICS],
    ("logits_before", pa.list_(pa.float32())), ("logits_after", pa.list_(pa.float32())), *STATUS_FIELDS,
])  # fmt: skip


class EvaluationPlan(BaseModel):
    """What a manifest is judged by, and where its scores will lie.

    Attributes:
        index: The manifest.
        comparison: What its images are compared with, and how prompts are embedded.
        attributes: What images are scored for, beside the edit's own prompts.
        before: Folder of the unedited images.
        recipe: Of the scores of a row; one that another manifest has too is scored once.
        folder: Where those lie, a log for each shard.
        whole: Recipe of the two tables.
        results: The folder of the evaluations of the manifest.
    """

    model_config = ConfigDict(frozen=True)

    index: EditsIndex
    comparison: Comparison
    attributes: tuple[AttributePrompts, ...]
    before: str
    recipe: Recipe
    folder: str
    whole: Recipe
    results: str

    def log(self, shard: EditsShard) -> OutcomeLog:
        """Return the attempts at a shard."""
        return OutcomeLog(self.folder, shard.digest, ("image_key", "variant"), shard.before, "version")

    @property
    def drawn(self) -> bool:
        """Return whether edits are compared with what the generator drew of a latent."""
        return self.comparison.before == "inversion"

    def before_key(self, row: Row) -> str:
        """Return where the unedited image of a row lies, relative to ``before``."""
        if not self.drawn:
            return str(row.get("place") or row["image_key"])
        return output_key(row["image_key"], suffix=".png", version=row["content_hash"])

    def read_before(self, row: Row, reader: StoredReader) -> bytes:
        """Return the image of a row as it was before any edit.

        Raises:
            ChangedObjectError: If it is not the one any more that was edited, or that was listed.
            StorageError: If it is missing or cannot be read; a ``StoreError`` if that is the store's fault.
        """
        key, made_of = self.before_key(row), row["content_hash"]
        content = reader.read(key)

        # manifests that were written before there was the column do not say what was edited
        if not self.drawn and made_of not in (None, hashlib.sha256(content).hexdigest()):
            raise ChangedObjectError(f"{key} is not the photograph any more that was edited; edit it again")
        return content


class EvaluationRef(BaseModel):
    """Where the tables of an evaluation lie."""

    model_config = ConfigDict(frozen=True)

    folder: str
    evaluation: str
    summary: str
    rows: int = 0
    failed: int = 0


def reference(folder: str) -> EvaluationRef:
    """Return where the tables of an evaluation lie in its folder."""
    tables = {name: join(folder, f"{name}.parquet") for name in ("evaluation", "summary")}
    return EvaluationRef(folder=folder, **tables)


@unit_of_work("plan-evaluation")
def plan_evaluation(
    run: Run, index: EditsIndex, comparison: Comparison, attributes: list[AttributePrompts], before: str
) -> EvaluationPlan:
    """Return where the scores of a manifest lie; attributes that CLIP cannot tell apart end it here.

    Args:
        run: Its networks are the judges, ``out`` is the folder of the manifest.
        index: The manifest.
        comparison: What images are compared with.
        attributes: What they are scored for.
        before: Folder of the unedited images.

    Raises:
        PromptError: If CLIP cannot tell an attribute's two prompts apart, or cannot read one.
    """
    for each in attributes:
        text_vector(
            run, StepVariant(neutral=each.negative, target=each.positive, templates=comparison.templates)
        )

    parameters = {
        "out": index.out, "unedited": before, **comparison.model_dump(),
        "attributes": [each.model_dump() for each in attributes],
    }  # fmt: skip
    judges = {name: hash_ for name in JUDGES if (hash_ := getattr(run.hashes, name))}
    recipe = Recipe(STEP, VERSION, parameters, judges, clip=run.hashes.clip)

    # scores of a row do not depend on what else its manifest lists; deviations, in the tables, do
    whole = replace(recipe, inputs={**judges, "manifest": index.fingerprint})
    return EvaluationPlan(
        index=index,
        comparison=comparison,
        attributes=tuple(attributes),
        before=before,
        recipe=recipe,
        folder=recipe.folder(run.workspace, "evaluations"),
        whole=whole,
        results=join(run.out, "evaluations"),
    )


@unit_of_work("evaluate-shard", "evaluate-shard-{shard.number}")
def evaluate_shard(run: Run, planned: EvaluationPlan, shard: EditsShard) -> ShardResult:
    """Score the edited images of one shard; an image with an edit that has no score yet is done as a whole.

    Rows whose edit failed have nothing to score; they are carried along when the tables are gathered.
    """
    log = planned.log(shard)
    edited = [row for row in read_table(shard.uri).to_pylist() if row["status"] == OK]
    images = [list(rows) for _, rows in groupby(edited, key=itemgetter("image_key"))]

    # images as a whole, since an edit's agreement is measured against its weaker neighbour
    def todo(known: Outcomes) -> list[list[Row]]:
        return [
            rows for rows in images if any(known.get(log.item(row), {}).get("status") != OK for row in rows)
        ]

    pictures = _pictures_of(planned, edited)

    def score(missing: Sequence[list[Row]]) -> Iterator[Row]:
        panel = Panel(run, planned.comparison.templates, planned.attributes)
        listed = _listed([row for rows in missing for row in rows], pictures)
        readers = _Readers.of(planned, list(listed.values()))
        for chunk in _chunks([[listed[log.item(row)] for row in rows] for rows in missing]):
            yield from _score(run, planned, panel, readers, chunk)

    done = finish_shard(
        log, todo, score, planned.recipe.made("edit-scores", {}), lambda: SCORED_SCHEMA,
        versions={row["image_key"]: row["version"] for row in edited}, files=pictures,
    )  # fmt: skip
    unedited = shard.rows - len(edited)
    return done.model_copy(update={"rows": shard.rows, "failed": done.failed + unedited})


def _pictures_of(planned: EvaluationPlan, edited: list[Row]) -> list[Files]:
    """Return the pictures that scores are of: the edited images of each variant, and what they came from.

    Photographs are not among them, as the manifest says what they hold.
    """
    by_variant = defaultdict[str, dict[str, str]](dict)
    for row in edited:
        by_variant[row["variant"]][row["image_key"]] = object_of(row["output_key"])

    # the images of a variant lie together, so a listing of them is short
    def output(row: Row, *, variant: str) -> str | None:
        return by_variant[variant].get(row["image_key"]) if row["variant"] == variant else None

    found = [
        Files(planned.index.out, partial(output, variant=variant), "output_version") for variant in by_variant
    ]
    if planned.drawn:
        hashes = {row["image_key"]: row["content_hash"] for row in edited}
        found.append(Files(
            planned.before,
            lambda row: planned.before_key({**row, "content_hash": hashes[row["image_key"]]}),
            "before_version",
        ))  # fmt: skip
    return found


def _listed(rows: list[Row], pictures: Sequence[Files]) -> dict[Item, Row]:
    """Return rows by what names them, each with the versions of its pictures that are there now."""
    found = {
        (row["image_key"], row["variant"]): row | {"output_version": None, "before_version": None}
        for row in rows
    }
    for each in pictures:
        # of what lies in an object with others, the version is the object's
        names = {item: name for item, row in found.items() if (name := each.name(row))}
        there = versions_of(each.prefix, set(names.values()))
        for item, name in names.items():
            found[item][each.version] = there.get(name)  # of one that is not there, reading says so
    return found


@dataclass(frozen=True)
class _Readers:
    """What reads the pictures of a shard, those that lie in one tar together."""

    before: StoredReader
    after: StoredReader

    @classmethod
    def of(cls, planned: EvaluationPlan, rows: Sequence[Row]) -> _Readers:
        """Return what reads rows in the versions that were listed."""
        # images are scored with all their edits, so a stretch of every edit's tar is held at once
        block = _HELD // max(1, len({object_of(row["output_key"]) for row in rows}))
        before = [(planned.before_key(row), row["before_version"] or "") for row in rows]
        after = [(row["output_key"], row["output_version"] or "") for row in rows]
        return cls(StoredReader(planned.before, before), StoredReader(planned.index.out, after, block=block))


def _chunks(images: Sequence[list[Row]]) -> Iterator[list[list[Row]]]:
    """Yield images with all their edits, enough of them at a time to keep the networks busy."""
    chunk: list[list[Row]] = []
    for rows in images:
        chunk.append(rows)
        # an image is one picture before its edits, and one after each
        if sum(len(each) + 1 for each in chunk) >= _PICTURES:
            yield chunk
            chunk = []

    if chunk:
        yield chunk


def _score(
    run: Run, planned: EvaluationPlan, panel: Panel, readers: _Readers, chunk: list[list[Row]]
) -> Iterator[Row]:
    """Read the pictures of some images and score their edits; a picture that cannot be read is a row."""
    edited = [row for rows in chunk for row in rows]
    owners = [place for place, rows in enumerate(chunk) for _ in rows]

    reads: list[Callable[[], bytes]] = [partial(readers.after.read, row["output_key"]) for row in edited]
    reads += [partial(planned.read_before, rows[0], readers.before) for rows in chunk]
    pictures = list(read_ahead(reads, _read, ahead=_PICTURES))
    after, before = pictures[: len(edited)], pictures[len(edited) :]

    # one generator drew them all, so any that can be read tells the size
    size = next((each.image.size for each in after if isinstance(each, _Picture)), (0, 0))

    able: list[tuple[int, _Picture, _Picture]] = []
    for number, row in enumerate(edited):
        mine, other = after[number], before[owners[number]]
        if isinstance(mine, _Picture) and isinstance(other, _Picture) and mine.image.size == size:
            able.append((number, mine, other))
        else:
            yield _scored(row) | _problem(mine, other, size)
    if not able:
        return

    # unedited images whose edits are all broken are not shown to the networks
    height, width = size[1], size[0]
    shown = {owners[number]: other for number, _, other in able}
    unedited = torch.stack([fit(other.image, height, width) for other in shown.values()])
    moved = torch.stack([fit(mine.image, height, width) for _, mine, _ in able])

    order = list(shown)
    places = [_place(edited[number], order.index(owners[number])) for number, _, _ in able]
    with computing(run.device):
        scores = panel.score(unedited, moved, places)

    for (number, mine, other), score in zip(able, scores, strict=True):
        both = hashlib.sha256(f"{other.digest} {mine.digest}".encode()).hexdigest()
        yield _scored(edited[number]) | {"pictures": both} | score | success()


@dataclass(frozen=True)
class _Picture:
    """A picture, and the hash of the file that holds it."""

    image: Image.Image
    digest: str


def _read(read: Callable[[], bytes]) -> _Picture | Row:
    """Read and decode a picture, or return the status columns that say why that cannot be."""
    try:
        content = read()
        return _Picture(decode_image(content), hashlib.sha256(content).hexdigest())
    except (StyleCLIPError, OSError) as error:
        return failure(error)


def _problem(after: _Picture | Row, before: _Picture | Row, size: tuple[int, int]) -> Row:
    """Return the status columns of an edit that cannot be scored, for itself or for the image before it."""
    if not isinstance(after, _Picture):
        return after
    if not isinstance(before, _Picture):
        return before
    width, height = after.image.size
    return failure(ImageSizeError(
        f"the edited image is {width} x {height} pixels, others of its batch are {size[0]} x {size[1]}; "
        "evaluate edits of one generator at a time"
    ))  # fmt: skip


def _place(row: Row, owner: int) -> Place:
    prompts = tuple((each["neutral"], each["target"]) for each in row["prompts"])
    return Place(owner, prompts, row["sweep"], row["position"])


def _scored(row: Row) -> Row:
    named = {
        name: row[name] for name in ("image_key", "variant", "version", "output_version", "before_version")
    }
    return dict.fromkeys(SCORED_SCHEMA.names) | named
