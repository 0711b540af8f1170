"""What lies under a prefix: listed once, sorted in flat memory."""

from __future__ import annotations

import math
import os
import re
import stat as stat_module
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import fsspec

from styleclip.tasks.storage import temporaries
from styleclip.tasks.storage.filesystems import ask, etag_of, file_etag, filesystem, moment_of
from styleclip.tasks.storage.outages import MissingObjectError, StorageError, explained
from styleclip.tasks.storage.places import here, is_local, local_path, scheme_of
from styleclip.tasks.storage.sorting import Sorted, batched

_ENDING = re.compile(r"(?<=[^/])\.(?=[0-9]*[a-z])[0-9a-z]{1,8}$")
_PAGE, _RUN = 1000, 20_000  # objects of a listing that are asked for, and that are sorted, at once
_KINDS = 1000  # endings that are counted apart


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object under a prefix.

    Attributes:
        key: Its path relative to the prefix, with ``/``.
        etag: Names its version; for local files made of size and modification time.
        size: Bytes.
        modified: When it was written, in seconds since 1970; infinite where the store does not say.
    """

    key: str
    etag: str
    size: int
    modified: float = field(default=math.inf, compare=False)


def first_page(prefix: str, size: int = _PAGE, *, patient: bool = True) -> list[ObjectInfo]:
    """Return about ``size`` of the objects under a prefix, in no order; none if it is empty.

    Raises:
        StorageError: If the prefix cannot be listed; without patience, if that is so just now.
    """
    return next(_pages(prefix, size, patient), [])


def stat(uri: str) -> ObjectInfo:
    """Return what is known of one object; its key is the last part of its URI.

    Raises:
        MissingObjectError: If there is none.
        StorageError: If that cannot be found out.
    """
    name = uri.rpartition("/")[2]
    if is_local(uri):
        with explained(uri, "look for"):
            found = local_path(uri).stat()
            if not stat_module.S_ISREG(found.st_mode):
                raise FileNotFoundError(f"{uri} is no file")
            return _of_file(name, found)

    info = ask(uri, "look for", lambda fs, path: fs.info(path))
    if info.get("type") != "file":
        raise MissingObjectError(f"cannot look for {uri}: it is no object")
    return ObjectInfo(name, etag_of(info), int(info["size"] or 0), moment_of(info))


def list_objects(prefix: str, suffixes: tuple[str, ...] = ()) -> Iterator[ObjectInfo]:
    """Yield the objects under a prefix, sorted by key; see ``sorted_objects``."""
    with sorted_objects(prefix, suffixes) as found:
        yield from found


@contextmanager
def sorted_objects(
    prefix: str, suffixes: tuple[str, ...] = (), passed_over: Counter[str] | None = None
) -> Iterator[Iterable[ObjectInfo]]:
    """List a prefix once and give its objects, sorted by key, to be gone through any number of times.

    However many there are, a page of them is in memory: the others lie in a temporary folder. A key that
    is listed twice, as it can be while objects are written, counts once, as it was seen last.

    Args:
        prefix: URI of a folder.
        suffixes: Lower-case endings to keep; all if empty.
        passed_over: Counts what is not kept by its lower-case ending: ``""`` if it has none, ``"/"`` for a
            link to a folder, which is not followed, as it may lead back to where it lies.

    Raises:
        StorageError: If the prefix cannot be listed, or a name is not UTF-8.
    """
    counts = Counter[str]() if passed_over is None else passed_over
    with tempfile.TemporaryDirectory(prefix="styleclip-listing-") as folder:
        yield _Sorted(_kept(prefix, suffixes, counts), Path(folder))


class _Sorted(Iterable[ObjectInfo]):
    """Objects in the order of their keys."""

    def __init__(self, objects: Iterable[ObjectInfo], folder: Path) -> None:
        rows = ((item.key, item.etag, item.size, item.modified) for item in objects)
        self._rows = Sorted(rows, folder, _RUN)

    def __iter__(self) -> Iterator[ObjectInfo]:
        # of rows that begin alike, the last one was seen last
        for _, same in groupby(self._rows, key=itemgetter(0)):
            *_, last = same
            yield ObjectInfo(*last)


def _kept(prefix: str, suffixes: tuple[str, ...], passed_over: Counter[str]) -> Iterator[ObjectInfo]:
    for page in _pages(prefix):
        for item in page:
            name = item.key.rsplit("/", 1)[-1]
            # the mark of the folder itself, or what a writer has not finished
            if not item.key or name.startswith(temporaries.PREFIX):
                continue
            if item.key.endswith("/") or (suffixes and not item.key.lower().endswith(suffixes)):
                ending = _ending(item.key)
                # what names end in may differ with every name, and memory must not grow with them
                known = ending in passed_over or len(passed_over) < _KINDS
                passed_over[ending if known else ""] += 1
                continue

            # Parquet holds no other text, so such a key would fail much later
            if not _is_utf8(item.key):
                raise StorageError(
                    f"cannot list {prefix}: the name {item.key!a} is not UTF-8; rename the file"
                )
            yield item


def _ending(key: str) -> str:
    """Return the lower-case ending of a key as it is counted: none if it is like no other, say a hash."""
    if key.endswith("/"):
        return "/"
    found = _ENDING.search(key.lower())
    return found[0] if found else ""


def _pages(prefix: str, size: int | None = None, patient: bool = True) -> Iterator[list[ObjectInfo]]:
    """Yield what lies under a prefix, in no order, a page at a time; other kinds of storage have one page."""
    size = size or _PAGE
    if is_local(prefix):
        yield from batched(_local_files(prefix), size)
    elif scheme_of(prefix) == "s3":
        yield from s3_pages(prefix, size, patient=patient)
    else:
        yield from _found(prefix, patient)


def _local_files(prefix: str) -> Iterator[ObjectInfo]:
    """Yield the files under a folder; a folder that goes away meanwhile holds none.

    A link to a folder is yielded too, not followed: its key ends with a slash.
    """
    root = local_path(prefix)
    with explained(prefix, "list"):
        if root.is_file():
            raise StorageError(f"cannot list {prefix}: it is one file; give its folder, {root.parent}")
        # a worker has other disks and another working directory than whoever typed a path into a form
        if not root.is_dir():
            raise MissingObjectError(
                f"cannot list {prefix}: there is no such object or bucket where this is executed ({here()}); "
                "give an absolute path that exists there, or a URI"
            )

        # not os.walk, which passes over a folder that cannot be read without a word
        waiting = [(os.fspath(root), "")]
        while waiting:
            folder, above = waiting.pop()
            # a folder found on the way may go; the prefix itself must be there
            with suppress(*([FileNotFoundError] if above else [])), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, f"{above}{entry.name}/"))
                    elif found := _stat(entry):
                        yield _of_file(above + entry.name, found)


def _of_file(key: str, found: os.stat_result) -> ObjectInfo:
    # a folder is a link to one, which is not followed
    linked = stat_module.S_ISDIR(found.st_mode)
    size = 0 if linked else found.st_size
    return ObjectInfo(f"{key}/" if linked else key, file_etag(found), size, found.st_mtime)


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return what is known of a file, or of a link that leads nowhere; None if it has gone meanwhile."""
    for followed in (True, False):
        with suppress(FileNotFoundError):
            return entry.stat(follow_symlinks=followed)
    return None


def s3_pages(
    prefix: str, size: int = _PAGE, *, after: str = "", patient: bool = True
) -> Iterator[list[ObjectInfo]]:
    """Yield what lies under a prefix of a bucket, or after a key of it, in pages, as the store sorts it."""
    bucket, below = s3_place(prefix)
    start = {"StartAfter": below + after} if after else {}
    wanted = {"Bucket": bucket, "Prefix": below, "MaxKeys": size, **start}
    for page in _s3_answers(prefix, wanted, patient=patient):
        if found := _s3_objects(page, below):
            yield found


def s3_place(prefix: str) -> tuple[str, str]:
    """Return the bucket of a prefix, and what keys below it begin with."""
    fs, path = filesystem(prefix)
    bucket, key, _ = fs.split_path(path.rstrip("/"))
    # the slash keeps out longer names that begin alike
    return bucket, f"{key}/" if key else ""


def _s3_answers(prefix: str, wanted: dict[str, Any], *, patient: bool = True) -> Iterator[dict[str, Any]]:
    while True:
        page = ask(prefix, "list", partial(_s3_page, wanted), patient=patient)
        yield page
        if not page.get("IsTruncated"):
            return
        wanted = {**wanted, "ContinuationToken": page["NextContinuationToken"]}


def _s3_objects(page: dict[str, Any], below: str) -> list[ObjectInfo]:
    return [
        ObjectInfo(item["Key"][len(below) :], etag_of(item), int(item["Size"] or 0), moment_of(item))
        for item in page.get("Contents", [])
        if not item["Key"].endswith("/")  # the mark of a folder
    ]


def _s3_page(wanted: dict[str, Any], fs: fsspec.AbstractFileSystem, _path: str) -> dict[str, Any]:
    page: dict[str, Any] = fs.call_s3("list_objects_v2", **wanted)
    return page


def _found(prefix: str, patient: bool) -> Iterator[list[ObjectInfo]]:
    """Yield the objects of any other kind of storage, at once: fsspec has no pages."""
    fs, path = filesystem(prefix)
    root = fs._strip_protocol(path).rstrip("/") + "/"
    found = ask(prefix, "list", lambda fs, path: fs.find(path, detail=True), patient=patient)

    objects = [
        ObjectInfo(name[len(root) :], etag_of(info), int(info["size"] or 0), moment_of(info))
        for name, info in found.items()
    ]
    if objects:
        yield objects


def list_folders(prefix: str) -> list[str]:
    """Return the names of the folders right under a prefix, sorted; none if it is not there.

    What lies deeper is not listed where the store can leave it out: S3 tells a thousand folders at a time.

    Raises:
        StorageError: If that cannot be found out.
    """
    if is_local(prefix):
        with (
            explained(prefix, "list"),
            suppress(FileNotFoundError),
            os.scandir(local_path(prefix)) as entries,
        ):
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        return []

    if scheme_of(prefix) == "s3":
        bucket, below = s3_place(prefix)
        pages = _s3_answers(prefix, {"Bucket": bucket, "Prefix": below, "Delimiter": "/"})
        found = (each["Prefix"] for page in pages for each in page.get("CommonPrefixes", []))
        return sorted(name[len(below) : -1] for name in found)

    with suppress(MissingObjectError):
        keys = (item.key for page in _pages(prefix) for item in page)
        return sorted({key.partition("/")[0] for key in keys if "/" in key})
    return []


def _is_utf8(key: str) -> bool:
    # a name of other bytes comes from the disk as surrogates, which have no encoding
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def delete_stale_temporaries(prefix: str) -> int:
    """Delete what killed writers left aside under a local folder; returns how many.

    A file is stale if its writer, a process of this machine, is gone, and in any case after a day.
    """
    if not is_local(prefix) or not local_path(prefix).is_dir():
        return 0

    deleted = 0
    for aside in local_path(prefix).rglob(f"{temporaries.PREFIX}*"):
        if temporaries.is_stale(aside):
            aside.unlink(missing_ok=True)
            deleted += 1

    return deleted
