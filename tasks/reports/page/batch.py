"""A batch as its page shows it, read from the manifest a piece at a time.

Only keys and scores are held, some bytes per image and edit; pixels never are.

Shapes: E edits, N images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from styleclip.tasks.artifacts import DamagedArtifactError, Provenance, read_provenance
from styleclip.tasks.artifacts.outcomes import OK
from styleclip.tasks.evaluation.manifest import iter_rows
from styleclip.tasks.reports.page.edits import BatchEdit
from styleclip.tasks.reports.page.links import below, parent, safe_name
from styleclip.tasks.reports.page.outputs import Outputs
from styleclip.tasks.storage import output_key

_STATUS = {OK: 0, "failed": 1, "skipped": 2}
ABSENT = 3
MAX_PROBLEMS = 500
_READ = (
    "image_key", "content_hash", "clip_before", "clip_after", "directional", "identity", "lpips", "channels",
    "output_key", "status", "error_type", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Score:
    """A figure that every image has under every edit.

    Attributes:
        name: Its column.
        title: Its name for a person.
        meaning: What it says, in a sentence.
        high_is_better: Which end is the good one.
    """

    name: str
    title: str
    meaning: str
    high_is_better: bool = True


SCORES = (
    Score("directional", "Directional", "CLIP: cosine of the image's move and the prompts' difference"),
    Score("clip_gain", "CLIP gain", "CLIP similarity to the target, after less before"),
    Score("identity", "Identity", "Cosine of the identity embeddings before and after"),
    Score("lpips", "LPIPS", "Perceptual distance to the image before", high_is_better=False),
)


@dataclass(frozen=True)
class Problem:
    """Why an image has no edit; one for all edits that ended alike."""

    image_key: str
    status: str
    error_type: str
    error: str
    edits: int


@dataclass
class Batch:
    """The rows of a manifest, by image and edit.

    Attributes:
        manifest: Its URI.
        made: What made it.
        keys: Keys of all images, sorted.
        names: What is drawn of each is called, below the folder of the inversions.
        edits: The edits, in the order of the edit file.
        variants: What names each in tables and folders; several of an edit that columns made others of.
        columns: Name of each such edit; empty for the rest.
        status: ``[E, N]`` uint8, 0 where the edit is done.
        values: Scores by column, ``[E, N]`` float32 each, NaN where there is none.
        channels: Style channels that each edit changes, where that is one number.
        outputs: Where edited images lie, below the folders of the edits.
        problems: Why images have no edit, the first ``MAX_PROBLEMS``.
        problem_counts: Rows that are not done, by error.
    """

    manifest: str
    made: Provenance
    keys: list[str]
    names: list[str]
    edits: list[BatchEdit]
    variants: list[list[str]]
    columns: list[str]
    status: np.ndarray
    values: dict[str, np.ndarray]
    channels: list[int | None]
    outputs: Outputs
    problems: list[Problem] = field(default_factory=list)
    problem_counts: Counter[str] = field(default_factory=Counter)
    extra: list[Score] = field(default_factory=list)

    @property
    def out(self) -> str:
        """Return the prefix that holds batches and images."""
        return parent(self.manifest, 3)

    @property
    def folders(self) -> list[str]:
        """Return where each edit's images lie, relative to ``out``; empty if it has none."""
        shown = (self.status == 0).any(axis=1)
        return [
            self.folder(edit) if any_ and all(map(safe_name, self.variants[edit])) else ""
            for edit, any_ in enumerate(shown)
        ]

    def folder(self, edit: int) -> str:
        """Return the folder of an edit's images below ``out``; of one by columns, that of all images."""
        return "images" if self.columns[edit] else f"images/{self.variants[edit][0]}"

    @property
    def numbers(self) -> dict[str, int]:
        """Return the number of the edit that each variant belongs to."""
        return {name: number for number, names in enumerate(self.variants) for name in names}

    @property
    def scores(self) -> list[Score]:
        """Return the scores that at least one image has."""
        return [each for each in (*SCORES, *self.extra) if np.isfinite(self.values[each.name]).any()]

    def done(self) -> int:
        """Return how many rows are done."""
        return int((self.status == 0).sum())

    def mean(self, edit: int, score: str) -> tuple[float, float]:
        """Return mean and standard error of an edit's score; NaN where there is none."""
        values = self.values[score][edit]
        values = values[np.isfinite(values)].astype(np.float64)
        if not len(values):
            return float("nan"), float("nan")

        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        return float(values.mean()), float(error)

    def best_edit(self) -> int:
        """Return the number of the edit that worked best, by the mean of the first score that there is."""
        if not self.scores:
            return 0
        means = [self.mean(edit, self.scores[0].name)[0] for edit in range(len(self.edits))]
        return max(range(len(means)), key=lambda edit: (np.isfinite(means[edit]), means[edit], -edit))


def read_batch(manifest: str) -> Batch:
    """Read the manifest of a batch; its rows may be in any order.

    Raises:
        DamagedArtifactError: If it is no manifest, or has two rows of an image under one edit.
        StorageError: If it cannot be read.
    """
    made = read_provenance(manifest)
    if made.kind != "edits-manifest":
        raise DamagedArtifactError(
            f"{manifest} is a table of kind {made.kind!r}, not the manifest of a batch; give the "
            "manifest.parquet of a folder under OUT/batches"
        )

    columns: dict[str, list[Mapping[str, Any]]] = {}
    for number, record in enumerate(made.parameters["edits"]):
        columns.setdefault(record.get("column", str(number)), []).append(record)
    edits = [BatchEdit.of_all(records) for records in columns.values()]

    # rows may be in any order, so images and edits are counted before scores are filled in
    listed, seen = set[str](), dict[str, None]()
    for part in iter_rows(manifest, ["image_key"]):
        listed.update(_texts(part, "image_key"))
        seen.update(dict.fromkeys(_texts(part, "variant")))

    # metadata written before there was a column of variants does not name them, but rows went edit by edit
    named = [[each["variant"] for each in mine if "variant" in each] for mine in columns.values()]
    older = [*([name] for name in seen), *[[""]] * len(edits)][: len(edits)]
    shape = (len(edits), len(listed))
    batch = Batch(
        manifest=manifest, made=made, keys=sorted(listed), names=[""] * len(listed), edits=edits,
        variants=named if all(named) else older,
        columns=[str(mine[0].get("column", "")) for mine in columns.values()],
        status=np.full(shape, ABSENT, np.uint8),
        values={each.name: np.full(shape, np.nan, np.float32) for each in SCORES},
        channels=[None] * len(edits), outputs=Outputs(len(listed), len(edits)),
    )  # fmt: skip

    _fill(batch)
    return batch


def _fill(batch: Batch) -> None:
    images = {key: number for number, key in enumerate(batch.keys)}
    edits = batch.numbers
    problems: dict[tuple[str, str], Problem] = {}

    for part in iter_rows(batch.manifest, _READ):
        image = np.array([images[key] for key in _texts(part, "image_key")], np.int64)
        edit = np.array([edits.get(name, -1) for name in _texts(part, "variant")], np.int64)

        # a second row would hide the first one, and its outcome
        _, first = np.unique(edit * len(images) + image, return_index=True)
        twice = (edit < 0) | (batch.status[edit, image] != ABSENT)
        twice[np.setdiff1d(np.arange(len(edit)), first)] = True
        if twice.any():
            key = batch.keys[image[twice.argmax()]]
            raise DamagedArtifactError(
                f"{batch.manifest} has more rows of the image {key!a} than its {len(batch.edits)} edits; "
                "write it again"
            )

        # rows of what has failed may not say which version of the image they are of
        for number, content in zip(image, _texts(part, "content_hash"), strict=True):
            if content or not batch.names[number]:
                batch.names[number] = output_key(batch.keys[number], suffix=".png", version=content)

        _fill_values(batch, part, edit, image)
        _fill_outputs(batch, part, edit, image)
        _collect_problems(batch, part, problems)

    batch.problems = list(problems.values())


def _fill_values(batch: Batch, part: pa.RecordBatch, edit: np.ndarray, image: np.ndarray) -> None:
    batch.status[edit, image] = [_STATUS.get(each, 1) for each in _texts(part, "status")]
    for name in ("directional", "identity", "lpips"):
        batch.values[name][edit, image] = _floats(part, name)
    batch.values["clip_gain"][edit, image] = _floats(part, "clip_after") - _floats(part, "clip_before")

    # rows that failed may not say them, and of all others they are the same
    for number, channels in zip(edit, part["channels"].to_pylist(), strict=True):
        if channels is not None and not batch.columns[number]:
            batch.channels[number] = channels


def _fill_outputs(batch: Batch, part: pa.RecordBatch, edit: np.ndarray, image: np.ndarray) -> None:
    rows = zip(edit.tolist(), image.tolist(), _texts(part, "output_key"), strict=True)
    for number, place, key in rows:
        if key and batch.status[number, place] == 0:
            batch.outputs.put(number, place, below(key, batch.folder(number)))


def _collect_problems(batch: Batch, part: pa.RecordBatch, found: dict[tuple[str, str], Problem]) -> None:
    for row, status in enumerate(_texts(part, "status")):
        if status == OK:
            continue

        key, kind, text = (part[name][row].as_py() or "" for name in ("image_key", "error_type", "error"))
        batch.problem_counts[kind] += 1

        # an image that every edit failed on is one problem
        known = found.get((key, kind))
        if known or len(found) < MAX_PROBLEMS:
            found[key, kind] = Problem(key, status, kind, text, known.edits + 1 if known else 1)


def _texts(part: pa.RecordBatch, name: str) -> list[str]:
    texts: list[str] = part[name].to_pylist()
    return texts


def _floats(part: pa.RecordBatch, name: str) -> np.ndarray:
    return np.asarray(part[name].to_numpy(zero_copy_only=False), np.float32)
