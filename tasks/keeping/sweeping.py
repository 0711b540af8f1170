"""What of a place goes, in an order in which it may end anywhere: nothing is gone that something names.

A batch goes manifest first, so that no manifest names an image that is deleted after it. What is left of a
batch, and what no manifest refers to, the next pruning finds by looking, whatever an earlier one had in mind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from styleclip.tasks.artifacts import read_provenance
from styleclip.tasks.keeping.batches import Batch, Place, listed
from styleclip.tasks.keeping.references import Held, References
from styleclip.tasks.keeping.tables import night_tables, thinned
from styleclip.tasks.photographs.images import list_name
from styleclip.tasks.storage import MissingObjectError, ObjectInfo, join, list_folders, written

_ARTIFACT, _BATCH = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{16}")
_OF_BATCH = re.compile(
    r"manifest\.parquet|timings\.parquet|contact-sheet\.png|index\.html|pages/[0-9a-f]{16}/[^/]+\.js"
    r"|evaluations/[^/]+/(evaluation|summary)\.parquet"
)
_FIRST = ("manifest.parquet", "index.html")
UNUSED = ("index", "edits-index", "pages", "thumbnails")  # kinds of artifacts that a manifest leads to
WHOLE = ("batches", "relevance", *UNUSED)  # what goes folder by folder


@dataclass(frozen=True)
class Doomed:
    """An object that goes.

    Attributes:
        kind: What it is of.
        prefix: URI of the folder that its key is relative to.
        key: Its key.
        size: Bytes.
        alone: Whether it goes before or after all others, never with one request.
    """

    kind: str
    prefix: str
    key: str
    size: int
    alone: bool = False


@dataclass(frozen=True)
class Grace:
    """What is too young to go, or belongs to work under way.

    An edit or an inversion whose rows were written within the grace is under way, however long ago its first
    images were: of these only such go as are older than the newest manifest that names the edit.

    Attributes:
        before: Moment before which an object was written that may go, in seconds since 1970.
        edits: First digits of the fingerprints of edits under way.
        latents: Names of the latents that those are made of.
        manifests: When the newest manifest was written that names some edit's images or latents.
    """

    before: float
    edits: frozenset[str]
    latents: frozenset[str]
    manifests: dict[str, float]

    @classmethod
    def of(cls, place: Place, before: float) -> Grace:
        """Return what counts as under way at a place."""
        running = {name: rows for name, rows in place.edits.items() if rows.newest > before}
        manifests = dict[str, float]()
        # the oldest first, so that the newest one stays
        for batch in sorted((*place.batches, *place.others), key=lambda batch: batch.written):
            manifests.update(dict.fromkeys((*batch.variants, batch.latents), batch.written))
        return cls(
            before=before, edits=frozenset(name[:8] for name in running),
            latents=frozenset(rows.latents for rows in running.values()), manifests=manifests,
        )  # fmt: skip

    def covers(self, key: str, kind: str, modified: float, inverting: str) -> bool:
        """Return whether an object that nothing refers to stays all the same."""
        if modified >= self.before:
            return True

        # images/<variant>/..., latents/<fingerprint>/...
        name = key.split("/")[2]
        running = (
            name[-8:] in self.edits if kind in ("images", "videos")
            else name in self.latents or name == inverting
        )  # fmt: skip
        return running and modified > self.manifests.get(name, 0.0)


def of_batches(place: Place, names: Iterable[str]) -> Iterator[Doomed]:
    """Yield what goes with some batches: of each the manifest first, then its page, then the rest."""
    for name in names:
        area = join(place.out, "batches")
        for key in _FIRST:
            yield from (
                _doomed("batches", area, name, item, alone=True) for item in _known(area, name, (key,))
            )
        yield from (_doomed("batches", area, name, item) for item in _known(area, name))


def _known(area: str, name: str, only: Sequence[str] = ()) -> Iterator[ObjectInfo]:
    """Yield what is in a batch's folder and of this project: some of it, or what is none of the first."""
    for item in listed(join(area, name)):
        wanted = item.key in only if only else item.key not in _FIRST
        if wanted and _OF_BATCH.fullmatch(item.key):
            yield item


def leftovers(place: Place, grace: Grace) -> list[str]:
    """Return the folders of batches without a manifest in which nothing has been written for long."""
    return [
        name
        for name in place.leftovers
        if _BATCH.fullmatch(name)
        and all(item.modified < grace.before for item in listed(join(place.out, "batches", name)))
    ]


def of_nothing(
    place: Place, references: References, remaining: Sequence[Batch], grace: Grace
) -> Iterator[Doomed]:
    """Yield what no remaining manifest refers to: images and videos, then artifacts, then former tables."""
    for held in unreferenced(references.held(place), grace):
        tree, _, key = held.key.partition("/")
        if held.info:
            yield Doomed(held.kind, place.out if tree == "out" else place.workspace, key, held.info.size)

    used = place.folders_in_use(remaining)
    for kind in UNUSED:
        for name in list_folders(join(place.workspace, kind)):
            if _ARTIFACT.fullmatch(name) and name not in used[kind]:
                yield from _of_artifact(place, kind, name, grace)

    for table in thinned(night_tables(place.workspace), used["relevance"]):
        if table.written < grace.before:
            yield from _of_table(join(place.workspace, "relevance"), table.name)


def unreferenced(found: Iterable[Held], grace: Grace) -> Iterator[Held]:
    """Yield the objects that nothing refers to and that are old enough."""
    inverting = ""
    for held in found:
        # rows of latents come before what was drawn of them: digits before letters
        if not held.kind and ".attempt-" in held.key and held.info and held.info.modified >= grace.before:
            inverting = held.key.split("/")[2]

        if not held.kind or not held.info or held.batches:
            continue
        if not grace.covers(held.key, held.kind, held.info.modified, inverting):
            yield held


def _of_artifact(place: Place, kind: str, name: str, grace: Grace) -> Iterator[Doomed]:
    """Yield what is in an artifact's folder, unless something of it is young or a run may be reading it."""
    area = join(place.workspace, kind)
    items = list(listed(join(area, name)))
    if any(item.modified >= grace.before for item in items):
        return
    if kind == "index" and _is_listed(place, join(area, name), grace):
        return

    # where index.parquet is, a run takes all parts to be there
    for item in sorted(items, key=lambda item: item.key != "index.parquet"):
        if item.key.endswith(".parquet"):
            yield _doomed(kind, area, name, item, alone=item.key == "index.parquet")


def _is_listed(place: Place, prefix: str, grace: Grace) -> bool:
    """Return whether a run of an index's images began within the grace, or that is not known."""
    try:
        about = read_provenance(join(prefix, "index.parquet")).parameters
    except MissingObjectError:  # parts alone are of nobody
        return False

    # every run writes down what it has listed, though the index may be an old one
    try:
        name = list_name(str(about["photos"]), int(about["shard_size"]))
        return written(join(place.workspace, "lineage", f"{name}.json")) >= grace.before
    except (MissingObjectError, KeyError):
        return True


def _of_table(area: str, name: str) -> Iterator[Doomed]:
    """Yield what is in a relevance table's folder; the table last, as without it the rest is not found."""
    for item in sorted(listed(join(area, name)), key=lambda item: item.key == "relevance.parquet"):
        if item.key.endswith(".parquet"):
            yield _doomed("relevance", area, name, item, alone=item.key == "relevance.parquet")


def _doomed(kind: str, area: str, name: str, item: ObjectInfo, *, alone: bool = False) -> Doomed:
    # relative to what is above the folder, which goes too where it is empty then
    return Doomed(kind, area, f"{name}/{item.key}", item.size, alone)
