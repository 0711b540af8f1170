"""The batches of a place, and of other places that share its workspace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from styleclip.tasks.artifacts import Provenance, read_provenance
from styleclip.tasks.reports.page.columns import folders_of
from styleclip.tasks.running.partial import FOLDER as PARTIAL
from styleclip.tasks.running.partial import read_part
from styleclip.tasks.storage import (
    MissingObjectError,
    ObjectInfo,
    exists,
    is_local,
    join,
    list_folders,
    list_objects,
    local_path,
    written,
)
from styleclip_core.errors import StyleCLIPError


class OverlapError(StyleCLIPError):
    """Photographs lie where something is to be deleted."""


@dataclass(frozen=True)
class Batch:
    """A batch of edits, of what its manifest says about itself.

    Attributes:
        name: Its folder under ``OUT/batches``, or under ``OUT/partial`` if it is a part of one.
        out: URI of the place.
        written: When its manifest was written, in seconds since 1970.
        made: What made its manifest.
        under: Which of the two.
    """

    name: str
    out: str
    written: float
    made: Provenance
    under: str = "batches"

    @property
    def manifest(self) -> str:
        """Return the URI of its manifest."""
        return join(self.out, self.under, self.name, "manifest.parquet")

    @property
    def latents(self) -> str:
        """Return the name of its latents; empty if it does not say."""
        # not where they lay: a workspace may be named in several ways
        return str(self.made.parameters.get("latents", "")).rstrip("/").rpartition("/")[2]

    @cached_property
    def variants(self) -> frozenset[str]:
        """Return what names its edits in folders."""
        named = (edit.get("variant") for edit in self.made.parameters.get("edits", []))
        folders = (name.removeprefix("images/") for name in self.made.inputs if name.startswith("images/"))
        return frozenset(filter(None, (*named, *folders)))


@dataclass(frozen=True)
class EditRows:
    """The rows of one edit in a workspace.

    Attributes:
        newest: When the last of them were written, in seconds since 1970.
        out: Place of the images; empty if the rows do not say.
        latents: Name of the latents they were made of.
    """

    newest: float
    out: str
    latents: str


@dataclass(frozen=True)
class Place:
    """What refers to objects of a place.

    Attributes:
        out: URI of the prefix of results.
        workspace: URI of the folder for artifacts.
        batches: Its batches, the oldest first.
        leftovers: Folders of batches without a manifest: of pruning that was interrupted, or of a run that
            has not come so far.
        edits: The rows of edits in the workspace, by fingerprint.
        sharing: Other places whose images the workspace has rows of, with the number of their batches.
        others: The batches of those, and of all places the parts of batches that nothing has completed yet.
    """

    out: str
    workspace: str
    batches: Sequence[Batch]
    leftovers: Sequence[str] = ()
    edits: dict[str, EditRows] = field(default_factory=dict)
    sharing: dict[str, int] = field(default_factory=dict)
    others: Sequence[Batch] = ()

    def folders_in_use(self, remaining: Sequence[Batch]) -> dict[str, set[str]]:
        """Return the names of artifacts that some batches of the place, and all others, refer to, by kind."""
        used: dict[str, set[str]] = {
            kind: set() for kind in ("index", "edits-index", "relevance", "pages", "thumbnails")
        }
        for batch in (*remaining, *self.others):
            used["index"].add(batch.made.inputs.get("index", ""))
            used["edits-index"].add(batch.made.fingerprint)
            used["relevance"].update(batch.made.parameters.get("tables", []))

            # thumbnails are named by the folder's URI, as whoever edited wrote it
            outs = {batch.out, *(each.out for each in self.edits.values() if same(each.out, batch.out))}
            images = [join(out, "images", variant) for out in outs for variant in batch.variants]
            for kind, names in folders_of(batch.made, images).items():
                used[kind] |= names
        return used


def look_at(out: str, workspace: str) -> Place:
    """Return the batches of a place, and what else refers to its workspace.

    Raises:
        DamagedArtifactError: If a manifest cannot be read: what it refers to is not known then.
        StorageError: If the place cannot be listed.
    """
    batches, leftovers = find_batches(out)
    edits = _edits(workspace)

    # a workspace may serve several places, whose manifests count as well
    sharing, others = dict[str, int](), list(_parts(out))
    for place in sorted({normal(each.out) for each in edits.values() if each.out} - {normal(out)}):
        found, _ = find_batches(place)
        sharing[place] = len(found)
        others += [*found, *_parts(place)]
    return Place(out, workspace, batches, leftovers, edits, sharing, others)


def find_batches(out: str) -> tuple[list[Batch], list[str]]:
    """Return the batches of a place, the oldest first, and the folders without a manifest."""
    batches, without = list[Batch](), list[str]()
    for name in list_folders(join(out, "batches")):
        manifest = join(out, "batches", name, "manifest.parquet")
        try:
            moment = written(manifest)
        except MissingObjectError:
            without.append(name)
            continue

        made = read_provenance(manifest, large=True)
        # a table of another kind is somebody else's
        if made.kind == "edits-manifest":
            batches.append(Batch(name, out, moment, made))
    return sorted(batches, key=lambda batch: (batch.written, batch.name)), without


def _parts(out: str) -> Iterator[Batch]:
    """Yield what runs that ended early have left of batches, as long as no whole one has taken its place."""
    for name in list_folders(join(out, PARTIAL)):
        part = read_part(join(out, PARTIAL, name))
        if part is None or part.superseded_by:
            continue

        manifest = join(out, PARTIAL, name, "manifest.parquet")
        if exists(manifest):  # else it is the part of a table of another kind
            made = read_provenance(manifest, large=True)
            yield Batch(name, out, written(manifest), made, under=PARTIAL)


def has_new_batches(place: Place, remaining: Sequence[Batch]) -> bool:
    """Return whether there is a manifest that is neither of some batches of a place nor of the others."""
    for out in (place.out, *place.sharing):
        known = {batch.name for batch in (*remaining, *place.others) if same(batch.out, out)}
        names = set(list_folders(join(out, "batches"))) - known
        if any(exists(join(out, "batches", name, "manifest.parquet")) for name in names):
            return True
    return False


def _edits(workspace: str) -> dict[str, EditRows]:
    """Return the rows of edits in a workspace; of each edit one file is read."""
    newest, some = dict[str, float](), dict[str, str]()
    for item in listed(join(workspace, "edits")):
        name, _, rest = item.key.partition("/")
        newest[name] = max(newest.get(name, 0.0), item.modified)
        if ".attempt-" in rest and name not in some:
            some[name] = item.key

    found = {}
    for name, key in some.items():
        made = read_provenance(join(workspace, "edits", key))
        out = str(made.parameters.get("out", ""))
        found[name] = EditRows(newest[name], out, made.inputs.get("latents", ""))
    return found


def refuse_overlap(place: Place) -> None:
    """Refuse to delete where photographs of a manifest lie, or above or below them.

    Raises:
        OverlapError: If some do; the message names them and the manifest.
    """
    swept = [join(place.out, name) for name in ("images", "videos", "batches")] + [place.workspace]
    for batch in (*place.batches, *place.others):
        photos = str(batch.made.parameters.get("photos", ""))
        for each in swept if photos else ():
            if _within(photos, each) or _within(each, photos):
                raise OverlapError(
                    f"the photographs {photos} of {batch.manifest} overlap with {each}, where pruning "
                    "deletes; nothing is pruned here: move the photographs, or edit into a place of its own"
                )


def normal(uri: str) -> str:
    """Return a URI as others of the same place are written, too."""
    if is_local(uri):
        return str(local_path(uri).resolve())
    return uri.replace("s3a://", "s3://", 1).rstrip("/")


def same(first: str, second: str) -> bool:
    """Return whether two URIs name one place."""
    return bool(first and second) and normal(first) == normal(second)


def _within(uri: str, folder: str) -> bool:
    return f"{normal(uri)}/".startswith(f"{normal(folder)}/")


def listed(prefix: str) -> Iterator[ObjectInfo]:
    """Yield what lies under a prefix, sorted by key; nothing if it is not there."""
    try:
        yield from list_objects(prefix)
    except MissingObjectError:
        return
