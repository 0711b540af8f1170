"""Images x prompts -> Parquet: what a bucket shows, by CLIP alone, and how often that is right.

``scores.parquet`` has a row per image, and ``accuracy.parquet``, where labels are given, a row per label and
one for every group of labels that exclude each other. Both lie in a folder of their own below ``OUT/scores``.

Shapes: B images, P prompts, D width of the CLIP embedding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from styleclip.tasks.artifacts import Recipe, read_identified, write_table
from styleclip.tasks.artifacts.outcomes import OK, STATUS_FIELDS, OutcomeLog, Row, failure, success
from styleclip.tasks.evaluation.labels import LabelPrompt, load_truth
from styleclip.tasks.photographs.images import ImageIndex, ImageShard, read_shard
from styleclip.tasks.photographs.reading import ShardReader
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import computing, read_ahead
from styleclip.tasks.running.partial import supersede, write_partial_table
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.shards import finish_shard, without_result
from styleclip.tasks.running.texts import target_embedding
from styleclip.tasks.settings import SettingsError, TemplateSet
from styleclip.tasks.storage import join
from styleclip_core.errors import StyleCLIPError
from styleclip_core.images import centre_square, decode_image
from styleclip_core.metrics import area_under_curve
from styleclip_core.zero_shot import attribute_logits, label_probabilities

STEP, VERSION = "score-images", "2"
_BATCH = 64
_SCORE = pa.struct([("label", pa.string()), ("cosine", pa.float32()), ("probability", pa.float32())])
_TOP = pa.struct([("group", pa.string()), ("label", pa.string()), ("probability", pa.float32())])
SCORES_SCHEMA = pa.schema([
    ("image_key", pa.string()), ("etag", pa.string()), ("label", pa.string()), ("probability", pa.float32()),
    ("top", pa.list_(_TOP)), ("scores", pa.list_(_SCORE)), *STATUS_FIELDS,
])  # fmt: skip
ACCURACY_SCHEMA = pa.schema([
    ("label", pa.string()), ("group", pa.string()), ("n", pa.int64()), ("positives", pa.int64()),
    ("accuracy", pa.float64()), ("standard_error", pa.float64()), ("auc", pa.float64()),
])  # fmt: skip


class ScorePlan(BaseModel):
    """What images are scored for, and where the scores will lie."""

    model_config = ConfigDict(frozen=True)

    images: str
    prompts: tuple[LabelPrompt, ...]
    templates: TemplateSet
    recipe: Recipe
    folder: str

    def log(self, shard: ImageShard) -> OutcomeLog:
        """Return the attempts at a shard."""
        return OutcomeLog(self.folder, shard.digest, ("image_key",), shard.before)


class ScoresRef(BaseModel):
    """Where the scores of a bucket lie; ``accuracy`` is empty where there are no labels."""

    model_config = ConfigDict(frozen=True)

    folder: str
    scores: str
    accuracy: str = ""
    rows: int = 0
    failed: int = 0


@unit_of_work("plan-scores")
def plan_scores(run: Run, images: str, prompts: list[LabelPrompt], templates: str) -> ScorePlan:
    """Return where the scores of images lie; a prompt that CLIP cannot read ends it here.

    Raises:
        PromptError: If a prompt is empty or too long.
    """
    # tried here: a prompt that CLIP cannot read must not come to light after hours of images
    for each in prompts:
        for prompt in filter(None, (each.prompt, each.negative)):
            target_embedding(run, prompt, templates)

    listed = [each.model_dump() for each in prompts]
    parameters = {"images": images, "templates": templates, "prompts": listed}
    recipe = Recipe(STEP, VERSION, parameters, {"clip": run.hashes.clip}, clip=run.hashes.clip)
    return ScorePlan(
        images=images,
        prompts=tuple(prompts),
        templates=templates,
        recipe=recipe,
        folder=recipe.folder(run.workspace, "image-scores"),
    )


@unit_of_work("score-shard", "score-shard-{shard.number}")
def score_shard(run: Run, planned: ScorePlan, shard: ImageShard) -> ShardResult:
    """Score the images of one shard that have no scores yet; a broken image is a row with its error."""
    images = read_shard(shard)
    return finish_shard(
        planned.log(shard),
        without_result(images),
        partial(_score, run, planned, ShardReader(planned.images, shard)),
        planned.recipe.made("image-scores", {}),
        lambda: SCORES_SCHEMA,
        versions=dict(images),
    )


def _score(
    run: Run, planned: ScorePlan, reader: ShardReader, todo: Sequence[tuple[str, str]]
) -> Iterator[Row]:
    """Yield the rows of images; the next ones are read while the last ones are embedded."""
    batch: list[tuple[Row, Tensor]] = []
    found = read_ahead(todo, partial(_read, reader, run.clip.input_resolution), ahead=2 * _BATCH)
    for number, (row, image) in enumerate(found, start=1):
        if image is None:
            yield row
        else:
            batch.append((row, image))

        # the last batch may be short, and an image that cannot be read may come last
        if batch and (len(batch) == _BATCH or number == len(todo)):
            with computing(run.device):
                yield from _score_batch(run, planned, batch)
            batch = []


def _read(reader: ShardReader, side: int, item: tuple[str, str]) -> tuple[Row, Tensor | None]:
    """Read an image as CLIP wants it, or return why that cannot be."""
    row = dict.fromkeys(SCORES_SCHEMA.names) | {"image_key": item[0], "etag": item[1]}
    try:
        data = reader.read(*item)
        return row, centre_square(decode_image(data), side)
    except (StyleCLIPError, OSError) as error:
        return row | failure(error), None


@torch.no_grad()
def _score_batch(run: Run, planned: ScorePlan, batch: list[tuple[Row, Tensor]]) -> Iterator[Row]:
    clip, prompts = run.clip, planned.prompts

    def embedded(texts: Iterable[str]) -> Tensor:
        return torch.stack([target_embedding(run, each, planned.templates) for each in texts])

    seen = clip.embed_images(torch.stack([image for _, image in batch]).to(run.device))
    cosines = seen @ embedded(each.prompt for each in prompts).T
    probabilities = label_probabilities(cosines, [_group(each) for each in prompts], clip.logit_scale)

    # a label with a negative prompt excludes no other: it is held against that prompt alone
    pairs = [place for place, each in enumerate(prompts) if each.negative]
    if pairs:
        positive = embedded(prompts[place].prompt for place in pairs)
        negative = embedded(prompts[place].negative for place in pairs)
        where = torch.tensor(pairs, device=seen.device)
        probabilities[:, where] = attribute_logits(seen, positive, negative, clip.logit_scale).sigmoid()

    for (row, _), cosine, probability in zip(batch, cosines.tolist(), probabilities.tolist(), strict=True):
        yield row | _scores(prompts, cosine, probability) | success()


def _group(prompt: LabelPrompt) -> str:
    """Return what a label shares a softmax with: its group, or nothing."""
    # the NUL keeps a label apart from a group of that name
    return f"\0{prompt.label}" if prompt.negative else prompt.group


def _scores(prompts: Sequence[LabelPrompt], cosine: list[float], probability: list[float]) -> Row:
    """Return the columns of one image."""
    # -1 is below any probability, so every group has a top label
    best: dict[str, tuple[float, str]] = {}
    for each, value in zip(prompts, probability, strict=True):
        if not each.negative and value > best.get(each.group, (-1.0, ""))[0]:
            best[each.group] = (value, each.label)

    top = [{"group": group, "label": label, "probability": value} for group, (value, label) in best.items()]
    values = zip(prompts, cosine, probability, strict=True)
    return {
        "scores": [{"label": each.label, "cosine": one, "probability": two} for each, one, two in values],
        "top": top, **({name: top[0][name] for name in ("label", "probability")} if top else {}),
    }  # fmt: skip


@unit_of_work("gather-scores")
def gather_scores(run: Run, planned: ScorePlan, index: ImageIndex, labels: str) -> ScoresRef:
    """Write the scores of all shards as one table, and how often they are right where labels are given.

    Raises:
        SettingsError: If the labels have another form, or are of none of these images.
    """
    rows = sorted(
        (row for shard in index.shards for row in planned.log(shard).latest()),
        key=lambda row: str(row["image_key"]),
    )

    # outcomes are part of the name: a Retry that mends images makes another table
    scored = {"index": index.fingerprint, "outcomes": _digest(rows)}
    given = {"labels": read_identified(labels)[1]} if labels else {}
    inputs = {**scored, **given, **planned.recipe.inputs}
    whole = replace(
        planned.recipe, parameters={**planned.recipe.parameters, "labels": labels}, inputs=inputs
    ).fingerprint

    folder = join(run.out, "scores", whole[:16])
    found = ScoresRef(
        folder=folder, scores=join(folder, "scores.parquet"), rows=len(rows),
        failed=sum(row["status"] != OK for row in rows),
    )  # fmt: skip

    made = replace(planned.recipe.made("image-scores", scored), fingerprint=whole)
    write_table(found.scores, pa.Table.from_pylist(rows, schema=SCORES_SCHEMA), made)
    supersede(run.out, {STEP: planned.recipe.fingerprint}, by=found.scores)
    if not labels:
        return found

    lines = accuracy(planned.prompts, rows, load_truth(labels, planned.prompts))
    if not lines:
        raise SettingsError(
            f"{labels} names none of the images under {planned.images}, e.g. {rows[0]['image_key']}; its "
            "image_key must be relative to that prefix"
        )

    uri = join(folder, "accuracy.parquet")
    made = replace(planned.recipe.made("label-accuracy", inputs), fingerprint=whole)
    write_table(uri, pa.Table.from_pylist(lines, schema=ACCURACY_SCHEMA), made)
    return found.model_copy(update={"accuracy": uri})


def write_partial_scores(run: Run, planned: ScorePlan, index: ImageIndex, why: str) -> str:
    """Write the scores of the shards that are done; see ``write_partial_table``."""
    made = planned.recipe.made("image-scores", {"index": index.fingerprint})
    return write_partial_table("scores.parquet", run.out, SCORES_SCHEMA, made, index.shards, planned.log, why)


def accuracy(
    prompts: Sequence[LabelPrompt], rows: list[Row], truth: Mapping[str, Mapping[str, bool]]
) -> list[Row]:
    """Return how often each label is right (``ACCURACY_SCHEMA``), of the images that have scores and labels.

    A label without a negative prompt counts as said where it is the top of its group, any other where its
    probability is above one half. A group counts as right where its top label holds, over the images of
    which exactly one label of it is known to hold.
    """
    known = [
        (row, truth[row["image_key"]]) for row in rows if row["status"] == OK and row["image_key"] in truth
    ]

    lines = []
    for place, each in enumerate(prompts):
        mine = [(row, said[each.label]) for row, said in known if each.label in said]
        if mine:
            shown = torch.tensor([row["scores"][place]["probability"] for row, _ in mine])
            holds = torch.tensor([said for _, said in mine])
            calls = shown > 0.5 if each.negative else torch.tensor([_says(row, each) for row, _ in mine])

            right = (calls == holds).double().mean().item()
            auc = area_under_curve(shown, holds)
            group = "" if each.negative else each.group
            lines.append(_line(each.label, group, len(mine), int(holds.sum()), right, auc))

    for group in dict.fromkeys(each.group for each in prompts if not each.negative):
        labels = {each.label for each in prompts if not each.negative and each.group == group}

        # where several labels are known to hold, no single top is right
        one = [(row, [name for name in labels if said.get(name)]) for row, said in known]
        tops = [(_top(row, group), names[0]) for row, names in one if len(names) == 1]
        if tops:
            right = sum(top == name for top, name in tops) / len(tops)
            lines.append(_line(None, group, len(tops), len(tops), right, math.nan))
    return lines


def _says(row: Row, prompt: LabelPrompt) -> bool:
    return _top(row, prompt.group) == prompt.label


def _top(row: Row, group: str) -> str:
    return next(str(each["label"]) for each in row["top"] if each["group"] == group)


def _line(label: str | None, group: str, n: int, positives: int, right: float, auc: float) -> Row:
    return {
        "label": label, "group": group, "n": n, "positives": positives, "accuracy": right,
        "standard_error": math.sqrt(right * (1 - right) / n), "auc": None if math.isnan(auc) else auc,
    }  # fmt: skip


def _digest(rows: list[Row]) -> str:
    """Return a name for the outcomes of a run: which images have scores, and of which version."""
    content = repr([(row["image_key"], row["etag"], row["status"], row["error"]) for row in rows])
    return hashlib.sha256(content.encode()).hexdigest()[:24]
