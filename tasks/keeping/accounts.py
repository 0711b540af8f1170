"""An account of a place: batches, artifacts by kind, relevance tables, and what nothing refers to."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from styleclip.tasks.keeping.batches import Place, listed, look_at, normal
from styleclip.tasks.keeping.references import Held, references_of
from styleclip.tasks.keeping.sweeping import UNUSED
from styleclip.tasks.keeping.tables import night_tables, thinned
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.run import Run
from styleclip.tasks.storage import ObjectInfo, join, list_folders

_DATA_SETS = re.compile(r"(faces|photographs)_.+")


class BatchAccount(BaseModel):
    """What a batch holds.

    Attributes:
        name: Its folder.
        written: When, as an ISO date and time in UTC.
        edits: How many edits it has.
        rows: Rows of its manifest.
        own: Bytes of its own folder.
        referred: Bytes of the images and videos that it names.
        alone: Bytes of those that no other batch names.
        missing: How many that it names are not there.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    written: str
    edits: int
    rows: int
    own: int
    referred: int
    alone: int
    missing: int


class KindAccount(BaseModel):
    """What a kind of artifact holds.

    Attributes:
        kind: Its name; ``other: ...`` for a folder that is none of the project's.
        folders: How many artifacts, edits or data sets.
        objects: How many objects.
        size: Bytes.
        oldest: When the oldest object was written, as an ISO date in UTC; empty if the store does not say.
        newest: When the newest was.
        unreferenced: Objects that no manifest refers to, of kinds that manifests refer to.
        unreferenced_size: Bytes of those.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    folders: int
    objects: int
    size: int
    oldest: str
    newest: str
    unreferenced: int
    unreferenced_size: int


class TableAccount(BaseModel):
    """A relevance table.

    Attributes:
        name: Its fingerprint.
        day: The day it was written on, in UTC.
        samples: Style codes behind it.
        size: Bytes, with its parts.
        thinned: Whether pruning would delete it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    day: str
    samples: int
    size: int
    thinned: bool


class Account(BaseModel):
    """What a place holds."""

    model_config = ConfigDict(frozen=True)

    out: str
    workspace: str
    batches: list[BatchAccount]
    kinds: list[KindAccount]
    tables: list[TableAccount]
    sharing: dict[str, int]


@dataclass
class _Sum:
    """Objects of a kind, counted one by one in the order of their keys."""

    folders: set[str] = field(default_factory=set)
    objects: int = 0
    size: int = 0
    oldest: float = float("inf")
    newest: float = 0.0
    unreferenced: int = 0
    unreferenced_size: int = 0

    def add(self, folder: str, item: ObjectInfo, *, unreferenced: bool = False) -> None:
        self.folders.add(folder)
        self.objects += 1
        self.size += item.size
        if item.modified < float("inf"):  # that of a store that says it
            self.oldest, self.newest = min(self.oldest, item.modified), max(self.newest, item.modified)
        if unreferenced:
            self.unreferenced += 1
            self.unreferenced_size += item.size

    def account(self, kind: str) -> KindAccount:
        known = self.newest > 0
        return KindAccount(
            kind=kind, folders=len(self.folders), objects=self.objects, size=self.size,
            oldest=_day(self.oldest) if known else "", newest=_day(self.newest) if known else "",
            unreferenced=self.unreferenced, unreferenced_size=self.unreferenced_size,
        )  # fmt: skip


@dataclass
class _Totals:
    """Everything that is counted while a place is gone through once."""

    kinds: dict[str, _Sum] = field(default_factory=dict)
    own: dict[str, int] = field(default_factory=dict)

    def of(self, kind: str) -> _Sum:
        return self.kinds.setdefault(kind, _Sum())


@unit_of_work("account-place")
def account_place(run: Run) -> Account:
    """Say what the run's place holds."""
    return account(run.out, run.workspace)


def account(out: str, workspace: str) -> Account:
    """Say what a place holds; everything under it is listed once, and memory does not grow with it.

    Raises:
        DamagedArtifactError: If a manifest cannot be read.
        StorageError: If the place cannot be listed.
    """
    place, totals = look_at(out, workspace), _Totals()
    used = place.folders_in_use(place.batches)

    # images against the rows that name them; everything else by the folder it lies in
    with references_of(place, place.batches) as references:
        referred = _count_held(references.held(place), len(place.batches), totals)
        rows = references.rows
    _count_results(place, totals)
    _count_artifacts(place, used, totals)

    batches = [
        BatchAccount(
            name=batch.name, written=_moment(batch.written),
            edits=len(batch.made.parameters.get("edits", [])), rows=rows[number],
            own=totals.own.get(batch.name, 0), referred=referred[number][0], alone=referred[number][1],
            missing=referred[number][2],
        )
        for number, batch in enumerate(place.batches)
    ]  # fmt: skip
    return Account(
        out=out, workspace=workspace, batches=batches, tables=list(_tables(workspace, used["relevance"])),
        kinds=[total.account(kind) for kind, total in sorted(totals.kinds.items())], sharing=place.sharing,
    )  # fmt: skip


def _count_held(found: Iterable[Held], batches: int, totals: _Totals) -> list[list[int]]:
    """Count images and latents; return bytes referred to, bytes referred to alone and missing, by batch."""
    counted = [[0, 0, 0] for _ in range(batches)]
    for held in found:
        _, area, folder, *_ = [*held.key.split("/"), ""]
        # what was drawn of latents is named by all batches of a workspace, and is none of their own
        mine = [number for number in held.batches if number < batches] if area != "latents" else []

        for number in mine:
            if held.info is None:
                counted[number][2] += 1
                continue
            counted[number][0] += held.info.size
            counted[number][1] += held.info.size if len(mine) == 1 else 0

        if held.info:
            kind = held.kind or ("latents" if area == "latents" else f"other: {area}")
            unreferenced = bool(held.kind) and not held.batches
            totals.of(kind).add(folder, held.info, unreferenced=unreferenced)
    return counted


def _count_results(place: Place, totals: _Totals) -> None:
    """Count what lies in the folders of a place, but for images, videos and the workspace."""
    workspace = f"{normal(place.workspace)}/"
    for name in list_folders(place.out):
        top = normal(join(place.out, name))
        if name in ("images", "videos") or f"{top}/".startswith(workspace):
            continue

        for item in listed(join(place.out, name)):
            # a workspace may lie deeper
            if f"{top}/{item.key}".startswith(workspace):
                continue
            folder = item.key.partition("/")[0]
            if name == "batches":
                totals.own[folder] = totals.own.get(folder, 0) + item.size
            known = name in ("batches", "scores")
            data_set = _DATA_SETS.fullmatch(name)
            kind = name if known else data_set[1] if data_set else f"other: {name}"
            totals.of(kind).add(folder if known else name, item)


def _count_artifacts(place: Place, used: dict[str, set[str]], totals: _Totals) -> None:
    """Count the artifacts of a workspace, but for latents."""
    for kind in list_folders(place.workspace):
        if kind == "latents":
            continue
        for item in listed(join(place.workspace, kind)):
            folder = item.key.partition("/")[0]
            totals.of(kind).add(folder, item, unreferenced=kind in UNUSED and folder not in used[kind])


def _tables(workspace: str, named: Collection[str]) -> Iterator[TableAccount]:
    found = night_tables(workspace)
    going = {table.name for table in thinned(found, named)}
    for table in found:
        yield TableAccount(
            name=table.name, day=table.day.isoformat(), samples=table.samples, size=table.size,
            thinned=table.name in going,
        )  # fmt: skip


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).date().isoformat()


def _moment(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
