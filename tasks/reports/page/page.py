"""The page of a batch: one HTML file, alone if the batch is small, else with scripts of data beside it.

A page must open from a disk, where a browser fetches nothing but lets a page name scripts and images. So
data that is not in the page itself lies in scripts: the keys, the scores of each edit, and thumbnails of a
few images of one edit at a time. The page asks for what it shows.

Keys and messages are untrusted: the template escapes them, data goes through JSON with ``<`` escaped, the
script sets texts as texts, and the page's own policy lets nothing run but what it was written with.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image
from prefect.logging import get_run_logger

from styleclip.tasks.artifacts import Recipe, read_provenance
from styleclip.tasks.directions.style_directions import ALPHA_UNIT
from styleclip.tasks.reports.page import charts
from styleclip.tasks.reports.page.batch import MAX_PROBLEMS, Batch, Score, read_batch
from styleclip.tasks.reports.page.choices import Choice, read_choice
from styleclip.tasks.reports.page.columns import SIDE
from styleclip.tasks.reports.page.edits import Sweep, sweeps
from styleclip.tasks.reports.page.evaluations import add_evaluations
from styleclip.tasks.reports.page.links import below, parent, relative_link
from styleclip.tasks.reports.page.outputs import Packed
from styleclip.tasks.reports.page.thumbnails import PagePlan, leaves
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import Writes
from styleclip.tasks.running.partial import Part, read_part
from styleclip.tasks.storage import contents_of, join, write_bytes_atomic

STEP, VERSION = "page", "1"
LEAF, PER_PAGE = 12, 24
ALONE = 6_000_000  # bytes of thumbnails that still go into the page itself
_WRITES = 32
_TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("styleclip.tasks.reports.page"), autoescape=True)


@unit_of_work("write-page")
def write_page(plan: PagePlan, size: int, evaluations: list[str], choices: list[str]) -> str:
    """Write the page of a batch beside its manifest, and return its URI; see ``build_page``."""
    uri, files = build_page(plan, size, evaluations, choices)
    get_run_logger().info("%s, %d files of data beside it", uri, files)
    return uri


def build_page(
    plan: PagePlan, size: int, evaluations: Sequence[str] = (), choices: Sequence[str] = ()
) -> tuple[str, int]:
    """Write the page of a batch, and return its URI and the number of files beside it, new or not.

    Args:
        plan: The batch and its thumbnails.
        size: Bytes of all thumbnails.
        evaluations: Tables of further scores.
        choices: Tables of the pairs of alpha and beta that were tried for edits.

    Raises:
        DamagedArtifactError: If a table is not what it should be.
        StorageError: If something cannot be read or written.
    """
    batch = read_batch(plan.source.manifest)
    add_evaluations(batch, list(evaluations))

    # a page that holds too much opens slowly, so what is large lies beside it
    folder, uri = parent(batch.manifest), join(parent(batch.manifest), "index.html")
    base = "" if size <= ALONE else f"pages/{_name(plan, evaluations)}"
    blocks = _Blocks(join(folder, base)) if base else _Blocks()

    shape = None
    for column, number, thumbnails in leaves(plan, LEAF):
        shape = shape or _shape(thumbnails)
        encoded = [base64.b64encode(each).decode() for each in thumbnails]
        blocks.put(f"thumbs-{column}-{number}", encoded)
    for name, data in _data(batch):
        blocks.put(name, data)
    blocks.finish()

    # the page comes last: it names files that must be there
    meta = _meta(batch, plan, f"./{base}/" if base else "", shape or (1, 1))
    part = read_part(folder) if "partial" in batch.made.parameters else None
    page = render(batch, meta, blocks.kept, evaluations, [read_choice(each) for each in choices], part)
    write_bytes_atomic(uri, page.encode())
    return uri, blocks.written


def write_superseded(folder: str) -> None:
    """Write, in place of the page of a partial folder, one that leads to the whole one."""
    part = read_part(folder)
    if part and part.superseded_by:
        # both lie two folders below OUT
        link = relative_link(below(part.superseded_by, parent(folder, 2)), up=2)
        page = _TEMPLATES.get_template("superseded.html").render(
            css=Markup(_part("page.css")), part=part, link=link
        )
        write_bytes_atomic(join(folder, "index.html"), page.encode())


def _name(plan: PagePlan, evaluations: Sequence[str]) -> str:
    """Return a name for the files of a page: what they hold decides it."""
    inputs = {"manifest": plan.source.fingerprint}
    inputs |= {uri: read_provenance(uri).fingerprint for uri in evaluations}
    return Recipe(STEP, VERSION, {"leaf": LEAF, "side": SIDE}, inputs).fingerprint[:16]


class _Blocks:
    """Where the data of a page goes: into the page, or into scripts beside it.

    A script that is there with the same data is not written again: a run that finds everything done, or a
    few thumbnails mended, writes the page and what is new.
    """

    def __init__(self, folder: str = "") -> None:
        self.kept: list[tuple[str, str]] = []
        self.written = 0
        self._is_there = contents_of(folder) if folder else None
        self._folder, self._writes = folder, Writes[None](_WRITES)
        self._pending: list[Future[None]] = []

    def put(self, name: str, data: object) -> None:
        """Take a block of data; only a few dozen wait to be written, if that is needed."""
        text = script_json(data)
        if not self._folder:
            self.kept.append((name, text))
            return

        code = f"styleclip({json.dumps(name)},{text})\n".encode()
        self._pending.append(self._writes.submit(partial(self._write, name, code)))
        self.written += 1

        # raises what the oldest write did: a broken store ends the page early
        if len(self._pending) > 2 * _WRITES:
            self._pending.pop(0).result()

    def finish(self) -> None:
        """Wait for what is being written.

        Raises:
            StorageError: If something could not be.
        """
        while self._pending:
            self._pending.pop(0).result()

    def _write(self, name: str, code: bytes) -> None:
        if not (self._is_there and self._is_there(f"{name}.js", code)):
            write_bytes_atomic(join(self._folder, f"{name}.js"), code)


def script_json(data: object) -> str:
    """Return JSON that can stand inside a ``script`` element: nothing in it ends the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(batch: Batch) -> Iterator[tuple[str, object]]:
    # most names are the key and what tells its version, so that alone is listed
    pairs = enumerate(zip(batch.keys, batch.names, strict=True))
    named = {number: _less(key, name) for number, (key, name) in pairs if name != key}
    outputs = batch.outputs
    three = enumerate(zip(batch.keys, batch.names, outputs.names, strict=True))
    edited = {
        number: _less(key, name) for number, (key, drawn, name) in three if name and f"{name}.png" != drawn
    }
    yield "keys", {"keys": batch.keys, "names": named, "edited": edited}

    for number in range(len(batch.edits)):
        rows = {score.name: batch.values[score.name][number] for score in batch.scores}
        yield f"edit-{number}", {
            "status": _base64(batch.status[number]),
            "scores": {
                name: _base64(row.astype("<f4")) for name, row in rows.items() if np.isfinite(row).any()
            },
            "others": dict(outputs.others(number)),
            "packed": _packed(outputs.packed.get(number)),
        }  # fmt: skip


def _less(key: str, name: str) -> str:
    return name.removeprefix(key) if name.startswith(f"{key}~") else name


def _packed(found: Packed | None) -> dict[str, object] | None:
    """Return where the images of an edit lie in tars or tables; doubles hold any size of a file."""
    if found is None:
        return None
    return {
        "objects": found.objects, "object": _base64(found.object.astype("<i4")),
        "start": _base64(found.start.astype("<f8")), "end": _base64(found.end.astype("<f8")),
    }  # fmt: skip


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _shape(thumbnails: list[bytes]) -> tuple[int, int] | None:
    first = next(filter(None, thumbnails), None)
    return Image.open(io.BytesIO(first)).size if first else None


def _meta(batch: Batch, plan: PagePlan, base: str, shape: tuple[int, int]) -> dict[str, Any]:
    """Return what the script needs to know at once; links lead to ``OUT``, two folders above the page."""
    names = [edit.name for edit in batch.edits]
    inversions = plan.source.inversions
    reconstructions = below(inversions.prefix, batch.out) if inversions else ""

    return {
        "images": len(batch.keys), "opens": batch.best_edit(), "leaf": LEAF, "page": PER_PAGE, "base": base,
        "shape": shape, "inversions": inversions is not None,
        "reconstructions": relative_link(reconstructions, up=2) if reconstructions else "",
        "edits": [
            {
                "name": edit.name, "neutral": edit.neutral, "target": edit.target, "summary": edit.summary,
                "alone": names.count(edit.name) == 1,
                "folder": relative_link(folder, up=2) if folder else "", "ending": ending,
            }
            for edit, folder, ending in zip(
                batch.edits, batch.folders, batch.outputs.endings, strict=True
            )
        ],

        # what the page sorts by, and the grids that it draws
        "scores": [
            {"name": each.name, "title": each.title, "high": each.high_is_better} for each in batch.scores
        ],
        "sweeps": [
            {
                "name": each.name, "target": each.target, "axis": each.axis, "by": each.by,
                "strengths": each.strengths, "thresholds": each.thresholds, "cells": each.cells,
            }
            for each in sweeps(batch.edits)
        ],
    }  # fmt: skip


def render(
    batch: Batch,
    meta: dict[str, Any],
    blocks: list[tuple[str, str]],
    evaluations: Sequence[str],
    choices: Sequence[Choice],
    part: Part | None = None,
) -> str:
    """Return the page; ``blocks`` are data by name, as JSON that may stand in a script element."""
    script = _part("page.js")

    # the page's policy lets this very script run, and nothing else
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    found = list(sweeps(batch.edits))
    safe = [(name, Markup(text)) for name, text in blocks]

    return _TEMPLATES.get_template("page.html").render(
        policy=_policy(digest), css=Markup(_part("page.css")), script=Markup(script),
        blocks=[("meta", Markup(script_json(meta))), *safe],
        done=batch.done(), rows=batch.status.size, images=len(batch.keys),
        photos=batch.made.parameters["photos"],
        alpha_unit=batch.made.parameters.get("alpha_unit", ALPHA_UNIT),
        headline=_headline(batch), scores=batch.scores, sweeps=found, edits=list(_edit_rows(batch)),
        charts=list(_distributions(batch)), max_rows=charts.MAX_ROWS,
        trades=[*_choices(choices), *_trade_offs(batch, found)],
        problems=batch.problems, max_problems=MAX_PROBLEMS, problem_counts=batch.problem_counts.most_common(),
        facts=list(_facts(batch, evaluations)),
        settings=json.dumps([edit.record for edit in batch.edits], indent=1, ensure_ascii=False), part=part,
    )  # fmt: skip


def _part(name: str) -> str:
    return (resources.files("styleclip.tasks.reports.page") / "templates" / name).read_text(encoding="utf-8")


def _policy(digest: str) -> str:
    """Return what the page may load: its own script, files beside it, pictures of its bucket."""
    # for a browser, a page from a disk is of no origin: 'self' does not match it, so file: is named
    return (
        f"default-src 'none'; script-src 'sha256-{digest}' 'self' file:; style-src 'unsafe-inline'; "
        "img-src 'self' data: file:; base-uri 'none'; form-action 'none'"
    )


def _headline(batch: Batch) -> Iterator[dict[str, str]]:
    failed = batch.status.size - batch.done()
    yield {"title": "Photographs", "value": f"{len(batch.keys):,}", "meaning": "images of the batch"}
    yield {"title": "Failed or skipped", "value": f"{failed:,}", "meaning": "rows without an edited image"}

    for score in batch.scores[:4]:
        values = batch.values[score.name]
        values = values[np.isfinite(values)].astype(np.float64)
        yield {"title": f"{score.title}, mean", "value": f"{values.mean():.3f}", "meaning": score.meaning}


def _edit_rows(batch: Batch) -> Iterator[dict[str, Any]]:
    for number, edit in enumerate(batch.edits):
        yield {
            "edit": edit, "channels": batch.channels[number], "done": int((batch.status[number] == 0).sum()),
            "means": [batch.mean(number, score.name) for score in batch.scores],
        }  # fmt: skip


def _distributions(batch: Batch) -> Iterator[dict[str, Any]]:
    for score in batch.scores:
        svg = charts.distributions(batch, score, range(len(batch.edits)))
        if svg:
            yield {"score": score, "svg": Markup(svg)}


def _choices(choices: Sequence[Choice]) -> Iterator[dict[str, Any]]:
    for choice in choices:
        # the last pair is the chosen one
        beta = "" if choice.betas[-1] is None else f", beta {choice.betas[-1]:g}"
        title = f"{choice.target}: alpha {choice.alphas[-1]:g}{beta} chosen"
        yield {"title": title, "note": choice.reason, "svg": Markup(charts.tried(choice))}


def _trade_offs(batch: Batch, found: list[Sweep]) -> Iterator[dict[str, Any]]:
    effect = _first(batch, "Target move", "Directional")
    cost = _first(batch, "Others moved", "Identity", "LPIPS")
    if effect is None or cost is None:
        return

    for sweep in found:
        note = f"A line per {sweep.by or 'edit'}, points are {sweep.axis}."
        svg = charts.trade_off(batch, effect, cost, sweep)
        yield {"title": sweep.name, "note": note, "svg": Markup(svg)}

    # a single edit's variants are its sweep already
    if 1 < len(batch.edits) <= charts.MAX_ROWS and len({edit.name for edit in batch.edits}) > 1:
        svg = charts.trade_off(batch, effect, cost)
        yield {
            "title": "All edits",
            "note": f"{effect.title} against {cost.title.lower()}.",
            "svg": Markup(svg),
        }


def _first(batch: Batch, *titles: str) -> Score | None:
    known = {score.title: score for score in batch.scores}
    return next((known[title] for title in titles if title in known), None)


def _facts(batch: Batch, evaluations: Sequence[str]) -> Iterator[tuple[str, str]]:
    made = batch.made
    yield "Generator", made.generator
    yield "CLIP", made.clip
    for name, hash_ in made.parameters.get("models", {}).items():
        yield name.capitalize(), hash_

    for table in made.parameters.get("tables", []):
        yield "Relevance table", table

    yield "Image index", made.inputs.get("index", "")
    yield "Batch", made.fingerprint
    yield "Photographs", made.parameters["photos"]
    yield "Results", batch.out

    for uri in evaluations:
        yield "Evaluation", uri
    yield "Code", f"styleclip {made.code_version}, {made.step} {made.version}"
