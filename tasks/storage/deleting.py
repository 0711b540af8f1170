"""Objects that are deleted: of S3 a thousand with one request, patiently; an error names its object."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import ClientError

from styleclip.tasks.storage.filesystems import ask, join
from styleclip.tasks.storage.listing import s3_place
from styleclip.tasks.storage.outages import (
    AccessDeniedError,
    MissingObjectError,
    StorageError,
    StoreUnavailableError,
    classify,
    explained,
)
from styleclip.tasks.storage.places import is_local, local_path, scheme_of
from styleclip.tasks.storage.sorting import batched

AT_ONCE = 1000  # keys that S3 takes with one request
_GONE = ("NoSuchKey", "NoSuchVersion")


def delete_objects(prefix: str, keys: Iterable[str], *, folders: bool = False) -> int:
    """Delete objects below a prefix; one that has gone already is no error.

    Args:
        prefix: URI of a folder.
        keys: Relative to it; taken a thousand at a time, so that there may be any number.
        folders: Whether folders of this machine go that are empty then; never the prefix itself. Nobody may
            be about to write there.

    Returns:
        How many were asked for.

    Raises:
        AccessDeniedError: If one may not be deleted; the message names it.
        StorageError: If one cannot be; those before it are gone.
    """
    deleted = 0
    for some in batched(keys, AT_ONCE):
        if is_local(prefix):
            for key in some:
                _delete_file(prefix, key, folders)
        elif scheme_of(prefix) == "s3":
            _delete_s3(prefix, some)
        else:
            for key in some:
                with suppress(MissingObjectError):
                    ask(join(prefix, key), "delete", lambda fs, path: fs.rm_file(path))
        deleted += len(some)
    return deleted


def _delete_file(prefix: str, key: str, folders: bool) -> None:
    uri, root = join(prefix, key), local_path(prefix)
    with explained(uri, "delete"):
        local_path(uri).unlink(missing_ok=True)
    if folders:
        _delete_empty(local_path(uri).parent, root)


def _delete_empty(folder: Path, root: Path) -> None:
    """Delete a folder and those above it, up to the root, as far as they are empty."""
    with suppress(OSError):  # one that is not empty cannot be deleted
        while folder != root and folder.is_relative_to(root):
            folder.rmdir()
            folder = folder.parent


def _delete_s3(prefix: str, keys: Sequence[str]) -> None:
    bucket, below = s3_place(prefix)
    wanted = {"Objects": [{"Key": below + key} for key in keys], "Quiet": True}

    refused = ask(prefix, "delete objects of", partial(_request, bucket, wanted))
    for error in refused:
        uri = join(prefix, error.get("Key", "")[len(below) :])
        code, reason = error.get("Code", ""), error.get("Message", "")
        kind = AccessDeniedError if code == "AccessDenied" else StorageError
        raise kind(f"cannot delete {uri}: {code} {reason}; check what the credentials in use may do")


def _request(
    bucket: str, wanted: dict[str, Any], fs: fsspec.AbstractFileSystem, _path: str
) -> list[dict[str, str]]:
    """Ask for a deletion and return the objects that were refused.

    Raises:
        ClientError: If the store says of one that it cannot now, as it does of whole requests.
    """
    answer = fs.call_s3("delete_objects", Bucket=bucket, Delete=wanted)
    refused = [each for each in answer.get("Errors") or [] if each.get("Code") not in _GONE]

    # an object that is gone may be deleted again, so the whole request is
    for each in refused:
        passing = ClientError(
            {"Error": {"Code": each.get("Code", ""), "Message": str(each)}}, "DeleteObjects"
        )
        if issubclass(classify(passing), StoreUnavailableError):
            raise passing
    return refused
