"""WebDataset tar shards: which images an archive holds, where, and what stands beside them.

Members that share a name up to its first dot are one sample, as webdataset has it: images of it are items,
and what is text or JSON beside them becomes their columns. An archive is gone through once; what it holds is
kept in the workspace under its version, so that the next run reads the archives alone that are new.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from styleclip.tasks.artifacts import Recipe, is_complete, read_table, write_table
from styleclip.tasks.photographs.datasets.places import Place
from styleclip.tasks.photographs.datasets.samples import Sample
from styleclip.tasks.storage import ChangedObjectError, ObjectInfo, is_local, join, local_path, stat
from styleclip.tasks.storage.outages import explained
from styleclip.tasks.storage.ranges import view
from styleclip_core.images import ENDINGS

STEP, VERSION = "index-archive", "1"
ENDING = ".tar"
_TEXTS = ("txt", "text", "caption", "cls", "cls2", "id", "index", "inx")  # as webdataset decodes them
_MOST_TEXT = 2**20  # bytes of text beside an image; what is longer is no column
_MEMBERS = pa.schema([
    ("name", pa.string()), ("start", pa.int64()), ("end", pa.int64()), ("problem", pa.string()),
    ("columns", pa.string()),
])  # fmt: skip


def archive_samples(
    prefix: str, archive: ObjectInfo, workspace: str, passed_over: Counter[str]
) -> list[Sample]:
    """Return the images of an archive, in the order of their names.

    What cannot be read of it is a sample with its problem: an image that is cut off, the rest of an archive
    behind a damaged header, an image whose name an earlier one has.

    Args:
        prefix: URI of the data set.
        archive: The archive, as it was listed.
        workspace: URI of the folder for artifacts.
        passed_over: Counts the members that are neither an image nor text of one, by ending.

    Raises:
        ChangedObjectError: If it is another version by now.
        StorageError: If it cannot be read.
    """
    recipe = Recipe(STEP, VERSION, {"archive": join(prefix, archive.key)}, {"version": archive.etag})
    uri = join(recipe.folder(workspace, "archives"), "members.parquet")
    if is_complete(uri):
        rows = read_table(uri).to_pylist()
    else:
        rows = sorted(_members(prefix, archive), key=lambda row: str(row["name"]))
        write_table(uri, pa.Table.from_pylist(rows, _MEMBERS), recipe.made("archive-members"))

    found = []
    for row in rows:
        if row["columns"] is None:  # no image: counted, so that nothing is passed over without a word
            passed_over[row["name"]] += row["end"]
            continue
        place = str(Place(archive.key, row["start"], row["end"])) if row["end"] else ""
        found.append(
            Sample(
                f"{archive.key.removesuffix(ENDING)}/{row['name']}",
                archive.etag,
                row["end"] - row["start"],
                place=place,
                problem=row["problem"],
                columns=json.loads(row["columns"]),
            )
        )
    return found


def _members(prefix: str, archive: ObjectInfo) -> Iterator[dict[str, Any]]:
    """Yield a row for each image of an archive, and one for each ending of what is none."""
    uri = join(prefix, archive.key)
    images: list[dict[str, Any]] = []
    texts: dict[str, dict[str, Any]] = {}
    others, names = Counter[str](), Counter[str]()

    with _opened(uri, archive) as stream:
        for member in _walk(stream, archive, images):
            name = member.name.removeprefix("./")
            base, ending = _split(name)
            if f".{ending.rpartition('.')[2]}".lower() in ENDINGS:
                names[name] += 1
                images.append(_image(name, member, archive, names[name]))
            elif (ending in _TEXTS or ending == "json") and member.size <= _MOST_TEXT:
                stream.seek(member.offset_data)
                texts.setdefault(base, {}).update(_columns(ending, stream.read(member.size), others))
            else:
                others[f".{ending.rpartition('.')[2].lower()}" if ending else ""] += 1

    for row in images:
        yield row | {"columns": json.dumps(texts.get(_split(row["name"])[0], {}), sort_keys=True)}
    for ending, count in others.items():
        yield {"name": ending, "start": 0, "end": count, "problem": "", "columns": None}


def _opened(uri: str, archive: ObjectInfo) -> BinaryIO:
    """Open an archive in the version that was listed."""
    if not is_local(uri):
        return view(uri, archive.etag, archive.size)

    # headers lie far apart, so that a file on a disk is not read in blocks
    if stat(uri).etag != archive.etag:
        raise ChangedObjectError(f"{uri} has changed since it was listed; a new run takes the new version")
    with explained(uri, "read"):
        return local_path(uri).open("rb")


def _walk(stream: BinaryIO, archive: ObjectInfo, images: list[dict[str, Any]]) -> Iterator[tarfile.TarInfo]:
    """Yield the files of an archive; where it is damaged, an image without bytes says from where on."""
    at, reason = 0, ""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while member := tar.next():
                tar.members = []  # type: ignore[attr-defined] # it would keep them all
                at = tar.offset
                if member.isreg():
                    yield member
            at = tar.offset

        # tarfile takes a damaged header for the end, which has nothing but zeros
        stream.seek(at)
        block = stream.read(tarfile.BLOCKSIZE)
        reason = "no header stands there" if any(block) else ""
    except tarfile.TarError as error:
        reason = " ".join(str(error).split())

    # a last image that is cut off says so itself
    if reason and at <= archive.size:
        problem = (
            f"{archive.key} is damaged from byte {at:,} on ({reason}), so what stands there is not known"
        )
        images.append(
            {"name": f"~damaged-at-{at}", "start": 0, "end": 0, "problem": f"{problem}; upload it again"}
        )


def _image(name: str, member: tarfile.TarInfo, archive: ObjectInfo, number: int) -> dict[str, Any]:
    """Return the row of an image; of those that share a name, the second and later ones are told apart."""
    start, end = member.offset_data, member.offset_data + member.size
    if end > archive.size:
        cut_off = f"{archive.key} is cut off: {name} should end at byte {end:,} of {archive.size:,}"
        problem = f"{cut_off}; upload it again"
        return {"name": name, "start": 0, "end": 0, "problem": problem}
    if not member.size:
        return {"name": name, "start": 0, "end": 0, "problem": f"{name} is empty (0 bytes) in {archive.key}"}
    if number > 1:
        stem, dot, ending = name.rpartition(".")
        problem = (
            f"{name} stands {number} times in {archive.key}, and the first one is taken; rename the others"
        )
        return {"name": f"{stem}~{number}{dot}{ending}", "start": 0, "end": 0, "problem": problem}
    return {"name": name, "start": start, "end": end, "problem": ""}


def _split(name: str) -> tuple[str, str]:
    """Return what samples are told apart by, and the rest of a name: up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    base, _, ending = last.partition(".")
    return f"{folder}{slash}{base}", ending


def _columns(ending: str, content: bytes, others: Counter[str]) -> dict[str, Any]:
    """Return what a text of a sample says: JSON by its names, anything else by its ending."""
    try:
        text = content.decode()
        if ending != "json":
            return {ending: text.strip()}
        found = json.loads(text)
    except ValueError:
        others[f".{ending} (unreadable)"] += 1
        return {}
    return found if isinstance(found, dict) else {"json": found}
