"""Everything that touches storage: a local folder or any fsspec URI, read and written whole.

Credentials and endpoint come from the environment alone (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``,
``AWS_ENDPOINT_URL``, ...), never from a URI or a parameter. Where one run needs several identities,
say a read-only one for its input bucket, ``STYLECLIP_STORAGE_OPTIONS`` names a JSON file that maps
URI prefixes to fsspec options, for S3 usually a profile of the AWS credentials file:

    {"s3://photographs/": {"profile": "reader"}, "s3://results/": {"profile": "writer"}}

The longest prefix that matches decides; a prefix ends where a folder ends, so that
``s3://photographs`` does not speak for ``s3://photographs-raw``. An object is complete or absent: locally
it is written aside and moved, on an object store it is committed by one request. Object keys are
untrusted: ``output_key`` maps any of them to a path that cannot leave its prefix. What fails, why, and
for how long a store that does not answer is waited for, is in ``tasks.outages``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from heapq import merge
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
import fsspec.asyn

from tasks import temporaries
from tasks.outages import AccessDeniedError as AccessDeniedError
from tasks.outages import CredentialsError, StoreError, explained, patiently
from tasks.outages import MissingObjectError as MissingObjectError
from tasks.outages import StorageError as StorageError

_HOLDS_KEYS = re.compile(r"(?!arn:)[^@]*[:@]")  # no bucket has such a name
_PLAIN_FOLDER = re.compile(r"[a-z0-9][a-z0-9_ +-]*")
_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9._ +-]*")
_MAX_PART, _MAX_KEY = 180, 800
_PAGE, _RUN = 1000, 20_000  # objects of a listing that are asked for, and that are sorted, at once
_T = TypeVar("_T")
_CONTENT_TYPES = {
    "html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "png": "image/png",
    "mp4": "video/mp4", "json": "application/json",
}  # fmt: skip


class ChangedObjectError(StorageError):
    """An object is no longer the version that was listed."""


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
    s3 = protocol in ("s3", "s3a")
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


def _refuse_unsafe(uri: str) -> None:
    """Refuse what would leak a secret into logs and results, or be read as something else."""
    if is_local(uri):
        return
    protocol, _, rest = uri.partition("://")

    account = rest.split("/", 1)[0]
    s3 = protocol in ("s3", "s3a")

    # the message does not name the URI: it would repeat the secret
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

    # the time of change goes with the path, so that an edited file is read anew
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


def _ask(uri: str, action: str, work: Callable[[fsspec.AbstractFileSystem, str], _T]) -> _T:
    """Do ``work`` with the file system of a URI, patiently where it is a remote one."""
    if is_local(uri):
        with explained(uri, action):
            return work(*filesystem(uri))

    # waited for by bucket: another store may answer meanwhile
    protocol, _, rest = uri.partition("://")
    try:
        return patiently(f"{protocol}://{rest.split('/', 1)[0]}", uri, action, lambda: work(*filesystem(uri)))
    except CredentialsError:
        fsspec.get_filesystem_class(protocol).clear_instance_cache()  # who asks again reads them anew
        raise


def is_outage(error: BaseException, prefix: str) -> bool:
    """Return whether what went wrong with an object under ``prefix`` is the fault of the whole store.

    An error that may be the object's own (it is gone, it may not be read) counts as such only while the
    prefix can be listed and is not empty, as was the case when the object was found.
    """
    if isinstance(error, ChangedObjectError):
        return False
    if not isinstance(error, StorageError) or isinstance(error, StoreError):
        return isinstance(error, StoreError)

    try:
        return next(_pages(prefix, first=True), None) is None
    except StorageError:
        return True


def read_bytes(uri: str) -> bytes:
    """Return an object's content.

    Raises:
        StorageError: If it is missing or cannot be read.
    """
    if is_local(uri):
        with explained(uri, "read"):
            return local_path(uri).read_bytes()

    # one request: s3fs otherwise asks for the size first, and no such answer says why it refuses
    options = {"max_concurrency": 1} if uri.startswith(("s3://", "s3a://")) else {}
    content: bytes = _ask(uri, "read", lambda fs, path: fs.cat_file(path, **options))
    return content


def read_version(uri: str, etag: str) -> bytes:
    """Return an object's content as it was listed.

    A store that answers conditions is asked for that version; of others, the version is looked at before and
    after reading, so that what is overwritten meanwhile does not pass either.

    Args:
        uri: Where it lies.
        etag: Its version, as ``ObjectInfo`` has it.

    Raises:
        ChangedObjectError: If it is another version by now.
        StorageError: If it is missing or cannot be read.
    """
    content: bytes | None
    if is_local(uri):
        with explained(uri, "read"):
            content = _read_file_version(local_path(uri), etag)
    else:
        read = _read_s3_version if uri.startswith(("s3://", "s3a://")) else _read_any_version
        content = _ask(uri, "read", partial(read, etag=etag))

    if content is None:
        raise ChangedObjectError(f"{uri} has changed since it was listed; a new run takes the new version")
    return content


def _read_file_version(path: Path, etag: str) -> bytes | None:
    """Read a file if it is the version of an etag, from beginning to end."""
    with path.open("rb") as stream:
        # of the open file, not of its name, which may be another file's a moment later
        before = _file_etag(os.fstat(stream.fileno()))
        content = stream.read()
        after = _file_etag(os.fstat(stream.fileno()))
    return content if before == after == etag else None


def _read_s3_version(fs: fsspec.AbstractFileSystem, path: str, etag: str) -> bytes | None:
    """Read an object if it is the version of an etag, with one request."""
    bucket, key, _ = fs.split_path(path)

    # s3fs reads without conditions, so the request is made here
    async def read() -> bytes | None:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, IfMatch=f'"{etag}"')
        try:
            content: bytes = await answer["Body"].read()
        finally:
            answer["Body"].close()
        return content if _etag(answer) == etag else None  # not every store knows conditions

    try:
        found: bytes | None = fsspec.asyn.sync(fs.loop, read)
    except OSError as error:
        if _condition_failed(error):
            return None
        raise
    return found


def _read_any_version(fs: fsspec.AbstractFileSystem, path: str, etag: str) -> bytes | None:
    """Read an object if it is the version of an etag, before and after."""
    before = fs.info(path)
    content: bytes = fs.cat_file(path)
    after = fs.info(path)
    return content if _is_version(before, etag) and _is_version(after, etag) else None


def _is_version(info: dict[str, Any], etag: str) -> bool:
    # some file systems tell a time as a number in listings and as a date elsewhere
    moment = info.get("created")
    as_listed = {**info, "created": moment.timestamp()} if isinstance(moment, datetime) else info
    return etag in (_etag(info), _etag(as_listed))


@contextmanager
def open_binary(uri: str) -> Iterator[BinaryIO]:
    """Open an object to read parts of it; a remote one is copied to a temporary file first.

    Raises:
        StorageError: If it is missing or cannot be read.
    """
    with ExitStack() as stack:
        path = local_path(uri) if is_local(uri) else None
        if path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="styleclip-read-"))) / "object"
            copy_to_local(uri, path)

        # only opening is explained: what a reader raises later is not the store's
        with explained(uri, "read"):
            stream = stack.enter_context(path.open("rb"))
        yield stream


def write_bytes_atomic(uri: str, data: bytes) -> None:
    """Write an object whole or not at all; S3 is told its type, so that a browser shows it.

    Raises:
        StorageError: If it cannot be written; nothing is left behind then.
    """
    if not is_local(uri):
        _ask(uri, "write", lambda fs, path: fs.pipe_file(path, data, **_content_type(uri)))
        return

    with _written_aside(uri) as aside, aside.open("wb") as stream:
        stream.write(data)
        _sync(stream)


def copy_from_local(path: Path, uri: str) -> None:
    """Write a local file as an object, whole or not at all, without reading it into memory.

    Raises:
        StorageError: If it cannot be written; nothing is left behind then.
    """
    if not is_local(uri):
        _ask(uri, "write", lambda fs, remote: fs.put_file(str(path), remote))
        return

    with _written_aside(uri) as aside, path.open("rb") as source, aside.open("wb") as stream:
        shutil.copyfileobj(source, stream)
        _sync(stream)


@contextmanager
def _written_aside(uri: str) -> Iterator[Path]:
    """Give a path beside a local URI; what was written there takes its place if the block ends well."""
    with explained(uri, "write"):
        target = local_path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        # in the target's own folder, since only within one file system is a move a single act
        aside = target.with_name(temporaries.temporary_name())
        try:
            yield aside
            aside.replace(target)
        except BaseException:
            # an interrupt, too, must leave nothing behind
            aside.unlink(missing_ok=True)
            raise


def create_bytes(uri: str, data: bytes) -> bool:
    """Write an object where there is none; of several writers one succeeds.

    Where a store knows no conditional PUT, the last of those that write in the same instant wins.

    Returns:
        Whether this call made it. Where the store's answer was lost on the way, False may come from the
        object that this call made: read what lies there now.

    Raises:
        StorageError: If it cannot be written.
    """
    if not is_local(uri):
        return _ask(uri, "create", partial(_create_object, data=data))

    with explained(uri, "create"):
        target = local_path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)

        aside = target.with_name(temporaries.temporary_name())
        try:
            with aside.open("wb") as stream:
                stream.write(data)
                _sync(stream)
            # a link fails where the name is taken; a move would replace what lies there
            target.hardlink_to(aside)
        except FileExistsError:
            return False
        finally:
            aside.unlink(missing_ok=True)
        return True


def _create_object(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    # looked for first, as a store that knows no conditions would overwrite it
    if fs.exists(path):
        return False

    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        if _condition_failed(error):
            return False
        raise
    return True


def _condition_failed(error: OSError) -> bool:
    """Return whether S3 refused because a condition did not hold; s3fs has no error for that."""
    answer = getattr(error.__cause__, "response", {})
    code = str(answer.get("Error", {}).get("Code", ""))
    return code in ("PreconditionFailed", "ConditionalRequestConflict", "412")


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _content_type(uri: str) -> dict[str, str]:
    """Return what S3 is told of an object's type; other stores guess it from the name."""
    known = _CONTENT_TYPES.get(uri.rpartition(".")[2].lower())
    return {"ContentType": known} if known and uri.startswith(("s3://", "s3a://")) else {}


def exists(uri: str) -> bool:
    """Return whether there is an object at ``uri``.

    Raises:
        StorageError: If that cannot be found out: an unreachable store is not an absent object.
    """
    if is_local(uri):
        with explained(uri, "look for"):
            return local_path(uri).is_file()

    # not fs.exists: with some stores it takes an error for absence
    try:
        return _ask(uri, "look for", lambda fs, path: bool(fs.info(path)["type"] == "file"))
    except MissingObjectError:
        return False


def version(uri: str) -> str:
    """Return the version of one object: its etag.

    Raises:
        StorageError: If it is missing.
    """
    if is_local(uri):
        with explained(uri, "look for"):
            return _file_etag(local_path(uri).stat())
    return _ask(uri, "look for", lambda fs, path: _etag(fs.info(path)))


def copy_to_local(uri: str, path: Path) -> None:
    """Copy an object to a local file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(temporaries.temporary_name())

    try:
        _ask(uri, "read", lambda fs, remote: fs.get_file(remote, str(aside)))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def list_objects(prefix: str, suffixes: tuple[str, ...] = ()) -> Iterator[ObjectInfo]:
    """Yield the objects under a prefix, sorted by key; see ``sorted_objects``."""
    with sorted_objects(prefix, suffixes) as found:
        yield from found


@contextmanager
def sorted_objects(prefix: str, suffixes: tuple[str, ...] = ()) -> Iterator[Iterable[ObjectInfo]]:
    """List a prefix once and give its objects, sorted by key, to be gone through any number of times.

    However many there are, a page of them is in memory: the others lie in a temporary folder. A key that
    is listed twice, as it can be while objects are written, counts once, as it was seen last.

    Args:
        prefix: URI of a folder.
        suffixes: Lower-case endings to keep; all if empty.

    Raises:
        StorageError: If the prefix cannot be listed, or a name is not UTF-8.
    """
    with tempfile.TemporaryDirectory(prefix="styleclip-listing-") as folder:
        yield _Sorted(_kept(prefix, suffixes), Path(folder))


class _Sorted(Iterable[ObjectInfo]):
    """Objects in the order of their keys: an external merge sort."""

    def __init__(self, objects: Iterable[ObjectInfo], folder: Path) -> None:
        self._runs: list[Callable[[], Iterator[ObjectInfo]]] = []
        for number, run in enumerate(_batched(objects, _RUN)):
            ordered = sorted(run, key=attrgetter("key"))

            # a run that is not full is the whole listing, and never touches the disk
            if number == 0 and len(run) < _RUN:
                self._runs.append(partial(iter, ordered))
            else:
                self._runs.append(partial(_read_run, _write_run(folder / str(number), ordered)))

    def __iter__(self) -> Iterator[ObjectInfo]:
        in_order = merge(*(run() for run in self._runs), key=attrgetter("key"))

        # merging is stable and takes earlier runs first, so the last one was seen last
        for _, same in groupby(in_order, key=attrgetter("key")):
            *_, last = same
            yield last


def _batched(objects: Iterable[ObjectInfo], size: int) -> Iterator[list[ObjectInfo]]:
    rest = iter(objects)
    while batch := list(islice(rest, size)):
        yield batch


def _write_run(path: Path, objects: list[ObjectInfo]) -> Path:
    with explained(str(path), "write"), path.open("w") as stream:
        stream.writelines(json.dumps([item.key, item.etag, item.size]) + "\n" for item in objects)
    return path


def _read_run(path: Path) -> Iterator[ObjectInfo]:
    with path.open() as stream:
        for line in stream:
            yield ObjectInfo(*json.loads(line))


def _kept(prefix: str, suffixes: tuple[str, ...]) -> Iterator[ObjectInfo]:
    for page in _pages(prefix):
        for item in page:
            name = item.key.rsplit("/", 1)[-1]
            # the mark of the folder itself, or what a writer has not finished
            if not item.key or name.startswith(temporaries.PREFIX):
                continue
            if suffixes and not item.key.lower().endswith(suffixes):
                continue

            # Parquet holds no other text, so such a key would fail much later
            if not _is_utf8(item.key):
                raise StorageError(
                    f"cannot list {prefix}: the name {item.key!a} is not UTF-8; rename the file"
                )
            yield item


def _pages(prefix: str, *, first: bool = False) -> Iterator[list[ObjectInfo]]:
    """Yield what lies under a prefix, in no order, a page at a time; of the first, one object is enough."""
    if is_local(prefix):
        yield from _batched(_local_files(prefix), 1 if first else _PAGE)
    elif prefix.startswith(("s3://", "s3a://")):
        yield from _s3_pages(prefix, 1 if first else _PAGE)
    else:
        yield from _found(prefix)


def _local_files(prefix: str) -> Iterator[ObjectInfo]:
    """Yield the files under a folder; a folder that goes away meanwhile holds none."""
    root = local_path(prefix)
    with explained(prefix, "list"):
        if not root.is_dir():
            raise FileNotFoundError(prefix)

        # not os.walk, which passes over a folder that cannot be read without a word
        waiting = [(os.fspath(root), "")]
        while waiting:
            folder, above = waiting.pop()
            # a folder found on the way may go; the prefix itself must be there
            with suppress(*([FileNotFoundError] if above else [])), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, f"{above}{entry.name}/"))
                    elif (found := _stat(entry)) and not stat.S_ISDIR(found.st_mode):
                        yield ObjectInfo(above + entry.name, _file_etag(found), found.st_size)


def _file_etag(found: os.stat_result) -> str:
    return f"{found.st_size}-{found.st_mtime}"


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return what is known of a file, or of a link that leads nowhere; None if it has gone meanwhile."""
    for followed in (True, False):
        with suppress(FileNotFoundError):
            return entry.stat(follow_symlinks=followed)
    return None


def _s3_pages(prefix: str, size: int) -> Iterator[list[ObjectInfo]]:
    fs, path = filesystem(prefix)
    bucket, key, _ = fs.split_path(path.rstrip("/"))
    # the slash keeps out longer names that begin alike
    below = f"{key}/" if key else ""
    wanted = {"Bucket": bucket, "Prefix": below, "MaxKeys": size}

    while True:
        page = _ask(prefix, "list", partial(_s3_page, wanted))
        found = [
            ObjectInfo(item["Key"][len(below) :], _etag(item), int(item["Size"] or 0))
            for item in page.get("Contents", [])
            if not item["Key"].endswith("/")  # the mark of a folder
        ]

        if found:
            yield found
        if not page.get("IsTruncated"):
            return
        wanted["ContinuationToken"] = page["NextContinuationToken"]


def _s3_page(wanted: dict[str, Any], fs: fsspec.AbstractFileSystem, _path: str) -> dict[str, Any]:
    page: dict[str, Any] = fs.call_s3("list_objects_v2", **wanted)
    return page


def _found(prefix: str) -> Iterator[list[ObjectInfo]]:
    """Yield the objects of any other kind of storage, at once: fsspec has no pages."""
    fs, path = filesystem(prefix)
    root = fs._strip_protocol(path).rstrip("/") + "/"
    found = _ask(prefix, "list", lambda fs, path: fs.find(path, detail=True))

    objects = [
        ObjectInfo(name[len(root) :], _etag(info), int(info["size"] or 0)) for name, info in found.items()
    ]
    if objects:
        yield objects


def _is_utf8(key: str) -> bool:
    # a name of other bytes comes from the disk as surrogates, which have no encoding
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _etag(info: dict[str, Any]) -> str:
    if info.get("ETag"):
        return str(info["ETag"]).strip('"')

    # kinds of storage name the time differently; with the size it stands for a version
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
    """Map an object key, whoever chose it, to a relative path of ours.

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
        # no plain folder is called "_", and the hash keeps apart what reads alike
        digest = hashlib.sha256(image_key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        readable = re.sub(r"[^a-z0-9]+", "-", image_key.lower())[-60:].strip("-")
        return f"_/{readable}~{digest}{suffix}"

    # "~" is in no plain name, so a lengthened key is never another key itself
    return image_key if name.endswith(suffix) else f"{image_key}~{suffix}"
