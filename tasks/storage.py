"""Everything that touches storage: a local folder or any fsspec URI, read and written whole.

Credentials and endpoint come from the environment alone (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``,
``AWS_ENDPOINT_URL``, ...), never from a URI or a parameter. Where one run needs several identities,
say a read-only one for its input bucket, ``STYLECLIP_STORAGE_OPTIONS`` names a JSON file that maps
URI prefixes to fsspec options, for S3 usually a profile of the AWS credentials file:

    {"s3://photographs/": {"profile": "reader"}, "s3://results/": {"profile": "writer"}}

The longest prefix that matches decides; a prefix ends where a folder ends, so that
``s3://photographs`` does not speak for ``s3://photographs-raw``. An object is complete or absent: locally
it is written aside and moved, on an object store it is committed by one request. Object keys are
untrusted: ``output_key`` maps any of them to a path that cannot leave its prefix.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import fsspec
from botocore.exceptions import BotoCoreError, ClientError

from styleclip_core.errors import StyleCLIPError
from tasks import temporaries

_HOLDS_KEYS = re.compile(r"(?!arn:)[^@]*[:@]")  # no bucket has such a name
_PLAIN_FOLDER = re.compile(r"[a-z0-9][a-z0-9_ +-]*")
_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9._ +-]*")
_MAX_PART, _MAX_KEY = 180, 800
_CONTENT_TYPES = {
    "html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "png": "image/png",
    "mp4": "video/mp4", "json": "application/json",
}  # fmt: skip


class StorageError(StyleCLIPError):
    """An object could not be listed, read or written."""


class MissingObjectError(StorageError):
    """There is no such object or bucket."""


class AccessDeniedError(StorageError):
    """The credentials in use may not do this."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object under a prefix.

    Attributes:
        key: Its path relative to the prefix, with ``/``.
        etag: Names its version; for local files made of size and modification time.
        size: Bytes.
    """

    key: str
    etag: str
    size: int


def is_local(uri: str) -> bool:
    """Return whether a URI is a path on this machine."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """Return the path of a local URI."""
    return Path(uri.removeprefix("file://")).expanduser()


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
    _refuse_unsafe(uri)
    protocol = "file" if is_local(uri) else uri.split("://", 1)[0]
    path = str(local_path(uri)) if protocol == "file" else uri
    options = _options(uri)
    if protocol in ("s3", "s3a"):
        options = {"use_listings_cache": False, **options}
    try:
        return fsspec.filesystem(protocol, **options), path
    except (ImportError, ValueError) as error:
        raise StorageError(
            f"cannot use {uri}: {error}; give a local path, an s3:// URI or install what it needs"
        ) from error


def _refuse_unsafe(uri: str) -> None:
    """Refuse what would leak a secret into logs and results, or be read as something else."""
    if is_local(uri):
        return
    protocol, _, rest = uri.partition("://")
    account = rest.split("/", 1)[0]
    s3 = protocol in ("s3", "s3a")
    if (":" in account.partition("@")[0] and "@" in account) or (s3 and _HOLDS_KEYS.match(account)):
        raise StorageError(
            f"a {protocol}:// URI holds credentials; give them in the environment, e.g. "
            "AWS_ACCESS_KEY_ID or AWS_PROFILE, never in a URI"
        )
    if s3 and "?versionId=" in rest:
        raise StorageError(f"cannot use {uri}: s3fs reads '?versionId=' as a version; rename the object")


def _options(uri: str) -> dict[str, Any]:
    config = os.environ.get("STYLECLIP_STORAGE_OPTIONS")
    if not config:
        return {}
    prefixes = _read_options(config, Path(config).stat().st_mtime_ns if Path(config).exists() else 0)
    matching = [prefix for prefix in prefixes if _covers(prefix, uri)]
    return dict(prefixes[max(matching, key=len)]) if matching else {}


def _covers(prefix: str, uri: str) -> bool:
    """Return whether a URI is a prefix or lies under it, counted in whole folders."""
    return f"{uri.rstrip('/')}/".startswith(prefix if prefix.endswith("/") else f"{prefix}/")


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
    return options


@contextmanager
def _explained(uri: str, action: str) -> Iterator[None]:
    """Turn what storage libraries raise into one error that names object, cause and remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingObjectError(f"cannot {action} {uri}: there is no such object or bucket") from error
    except PermissionError as error:
        raise AccessDeniedError(
            f"cannot {action} {uri}: access denied; check the credentials or the AWS profile in use"
        ) from error
    except TypeError as error:  # s3fs passes an option it does not know on to botocore
        raise StorageError(
            f"cannot {action} {uri}: {error}; check the options in STYLECLIP_STORAGE_OPTIONS"
        ) from error
    except (OSError, BotoCoreError, ClientError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StorageError(
            f"cannot {action} {uri}: {reason}; check the endpoint, the credentials and the network"
        ) from error


def read_bytes(uri: str) -> bytes:
    """Return an object's content.

    Raises:
        StorageError: If it is missing or cannot be read.
    """
    with _explained(uri, "read"):
        if is_local(uri):
            return local_path(uri).read_bytes()
        fs, path = filesystem(uri)
        content: bytes = fs.cat_file(path)
        return content


@contextmanager
def open_binary(uri: str) -> Iterator[IO[bytes]]:
    """Open an object to read parts of it.

    Raises:
        StorageError: If it is missing or cannot be read.
    """
    fs, path = filesystem(uri)
    with _explained(uri, "read"):
        stream = fs.open(path, "rb")
    with stream:
        yield stream


def write_bytes_atomic(uri: str, data: bytes) -> None:
    """Write an object whole or not at all; S3 is told its type, so that a browser shows it.

    Raises:
        StorageError: If it cannot be written; nothing is left behind then.
    """
    with _explained(uri, "write"):
        if not is_local(uri):
            fs, path = filesystem(uri)
            fs.pipe_file(path, data, **_content_type(uri))
            return
        target = local_path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(temporaries.temporary_name())
        try:
            with aside.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(target)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _content_type(uri: str) -> dict[str, str]:
    """Return what an object store is told of an object; others than S3 guess by the name."""
    known = _CONTENT_TYPES.get(uri.rpartition(".")[2].lower())
    return {"ContentType": known} if known and uri.startswith(("s3://", "s3a://")) else {}


def exists(uri: str) -> bool:
    """Return whether there is an object at ``uri``.

    Raises:
        StorageError: If that cannot be found out: an unreachable store is not an absent object.
    """
    with _explained(uri, "look for"):
        if is_local(uri):
            return local_path(uri).is_file()
        fs, path = filesystem(uri)
        try:
            return bool(fs.info(path)["type"] == "file")
        except FileNotFoundError:
            return False


def version(uri: str) -> str:
    """Return the version of one object: its etag.

    Raises:
        StorageError: If it is missing.
    """
    with _explained(uri, "look for"):
        fs, path = filesystem(uri)
        return _etag(fs.info(path))


def copy_to_local(uri: str, path: Path) -> None:
    """Copy an object to a local file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(temporaries.temporary_name())
    try:
        with _explained(uri, "read"):
            fs, remote = filesystem(uri)
            fs.get_file(remote, str(aside))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def list_objects(prefix: str, suffixes: tuple[str, ...] = ()) -> Iterator[ObjectInfo]:
    """Yield the objects under a prefix, sorted by key.

    Args:
        prefix: URI of a folder.
        suffixes: Lower-case endings to keep; all if empty.

    Raises:
        StorageError: If the prefix cannot be listed, or a name is not UTF-8.
    """
    with _explained(prefix, "list"):
        fs, path = filesystem(prefix)
        if is_local(prefix) and not local_path(prefix).is_dir():
            raise FileNotFoundError(prefix)
        found = fs.find(path, detail=True)
    root = fs._strip_protocol(path).rstrip("/") + "/"
    for name in sorted(found):
        key = name[len(root) :]
        if not key or key.rsplit("/", 1)[-1].startswith(temporaries.PREFIX):
            continue
        if not suffixes or key.lower().endswith(suffixes):
            if not _is_utf8(key):
                raise StorageError(f"cannot list {prefix}: the name {key!a} is not UTF-8; rename the file")
            info = found[name]
            yield ObjectInfo(key, _etag(info), int(info["size"] or 0))


def _is_utf8(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _etag(info: dict[str, Any]) -> str:
    if info.get("ETag"):
        return str(info["ETag"]).strip('"')
    stamp = info.get("mtime") or info.get("LastModified") or info.get("created") or ""
    return f"{info['size']}-{stamp}"


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


def output_key(image_key: str, *, suffix: str) -> str:
    """Map an object key of anyone's making to a relative path of ours.

    Plain keys stay readable (``faces/0001.png`` -> ``faces/0001.png``). Any other (``..``, absolute,
    upper case that another key may differ from only by case, odd Unicode, very long) goes to a flat
    folder under a name with its hash. Different keys never share a path, and no path leaves the prefix.

    Args:
        image_key: The key, any string.
        suffix: Ending of the output, e.g. ``".png"``.

    Returns:
        A relative path of at most 900 bytes, each part at most 255.
    """
    *folders, name = image_key.split("/")
    plain = (
        len(image_key) <= _MAX_KEY
        and all(_PLAIN_FOLDER.fullmatch(part) and len(part) <= _MAX_PART for part in folders)
        and _PLAIN_NAME.fullmatch(name) is not None
        and len(name) <= _MAX_PART
        and not name.endswith((" ", "."))
    )
    if not plain:
        digest = hashlib.sha256(image_key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        readable = re.sub(r"[^a-z0-9]+", "-", image_key.lower())[-60:].strip("-")
        return f"_/{readable}~{digest}{suffix}"
    return image_key if name.endswith(suffix) else f"{image_key}~{suffix}"
