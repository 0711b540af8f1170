"""Which file system a URI names, with whose credentials, and how it is asked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from styleclip.tasks.storage.outages import (
    CredentialsError,
    StorageError,
    StoreSetupError,
    explained,
    patiently,
)
from styleclip.tasks.storage.places import (
    PlaceError,
    canonical_prefix,
    is_local,
    lies_in,
    local_path,
    refuse_credentials,
    scheme_of,
)

_T = TypeVar("_T")


def join(prefix: str, *parts: str) -> str:
    """Return ``prefix`` followed by relative parts.

    The parts are kept as they are: on an object store, ``/a`` and ``a`` are different keys.
    """
    return "/".join([prefix.rstrip("/"), *parts])


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URI and the path on it.

    Raises:
        StorageError: If the URI holds credentials, or there is no such kind of storage.
    """
    refuse_credentials(uri)
    protocol = scheme_of(uri)
    path = str(local_path(uri)) if protocol == "file" else uri

    options, s3 = _options(uri), protocol == "s3"
    if s3 and "?versionId=" in uri:
        raise StorageError(f"cannot use {uri}: s3fs reads '?versionId=' as a version; rename the object")
    if s3:  # whoever calls is patient, so that botocore need not be
        once = {"retries": {"mode": "standard", "total_max_attempts": 1}}
        options = {"use_listings_cache": False, "config_kwargs": once, **options}

    try:
        fs = fsspec.filesystem(protocol, **options)
        # s3fs tries again on its own, beside botocore
        if s3:
            fs.retries = 2
        return fs, path
    except (ImportError, ValueError) as error:
        raise StorageError(
            f"cannot use {uri}: {error}; give a local path, an s3:// URI or install what it needs"
        ) from error


def _options(uri: str) -> dict[str, Any]:
    config = os.environ.get("STYLECLIP_STORAGE_OPTIONS")
    if not config:
        return {}

    # the time of change goes with the path, so that an edited file is read anew
    prefixes = _read_options(config, Path(config).stat().st_mtime_ns if Path(config).exists() else 0)
    place = f"{scheme_of(uri)}://{uri.partition('://')[2].rstrip('/')}" if not is_local(uri) else uri
    matching = [prefix for prefix in prefixes if lies_in(place, prefix)]
    return dict(prefixes[max(matching, key=len)]) if matching else {}


@lru_cache(maxsize=8)
def _read_options(path: str, _changed: int) -> dict[str, dict[str, Any]]:
    try:
        options = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise StorageError(
            f"STYLECLIP_STORAGE_OPTIONS names {path}, which is no readable JSON file: {error}"
        ) from error

    if not isinstance(options, dict) or not all(isinstance(value, dict) for value in options.values()):
        raise StorageError(f"{path} must map URI prefixes to fsspec options")

    try:
        return {canonical_prefix(prefix): value for prefix, value in options.items()}
    except PlaceError as error:
        raise StorageError(f"{path} maps what is no URI prefix: {error}") from error


def ask(
    uri: str, action: str, work: Callable[[fsspec.AbstractFileSystem, str], _T], *, patient: bool = True
) -> _T:
    """Do ``work`` with the file system of a URI, patiently where it is a remote one.

    Without patience a store is asked as it is just now, and what it answers says nothing to those who wait.
    """
    if is_local(uri) or not patient:
        with explained(uri, action):
            return work(*filesystem(uri))

    # waited for by bucket: another store may answer meanwhile
    protocol, bucket = scheme_of(uri), uri.partition("://")[2].split("/", 1)[0]
    try:
        return patiently(f"{protocol}://{bucket}", uri, action, lambda: work(*filesystem(uri)))
    except (CredentialsError, StoreSetupError):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()  # who asks again reads them anew
        raise


def file_etag(found: os.stat_result) -> str:
    """Return the version of a local file, as listings have it.

    A time of modification can be set, and is by whoever copies a file with its times; that of the last change
    cannot, so that two files of one size never pass for each other.
    """
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def etag_of(info: dict[str, Any]) -> str:
    """Return the version of an object, of what a file system tells of it."""
    if info.get("ETag"):
        return str(info["ETag"]).strip('"')

    # kinds of storage name the time differently; with the size it stands for a version
    stamp = info.get("mtime") or info.get("LastModified") or info.get("created") or ""
    return f"{info['size']}-{stamp}"


def moment_of(info: dict[str, Any]) -> float:
    """Return when an object was written, in seconds since 1970; infinite if that is not told."""
    for name in ("LastModified", "mtime", "created"):
        found = info.get(name)
        if isinstance(found, datetime):
            return found.timestamp()
        if isinstance(found, (int, float)):
            return float(found)
    return math.inf
