"""Objects, read and written whole: one is complete or absent, on a disk as in a bucket."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import fsspec.asyn

from styleclip.tasks.storage import direct, temporaries
from styleclip.tasks.storage.filesystems import ask, etag_of, file_etag, moment_of
from styleclip.tasks.storage.outages import ChangedObjectError, MissingObjectError, StorageError, explained
from styleclip.tasks.storage.places import is_local, local_path, scheme_of

_CONTENT_TYPES = {
    "html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "png": "image/png",
    "jpg": "image/jpeg", "webp": "image/webp", "avif": "image/avif", "mp4": "video/mp4",
    "json": "application/json",
}  # fmt: skip


def read_bytes(uri: str) -> bytes:
    """Return an object's content.

    Raises:
        StorageError: If it is missing or cannot be read.
    """
    if is_local(uri):
        with explained(uri, "read"):
            return local_path(uri).read_bytes()

    read = _read_s3 if scheme_of(uri) == "s3" else _read_whole
    return ask(uri, "read", read)


def _read_s3(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    def slow() -> bytes:
        # one request: s3fs otherwise asks for the size first, and no such answer says why it refuses
        content: bytes = fs.cat_file(path, max_concurrency=1)
        return content

    return direct.directly(fs, path, direct.get, slow)


def _read_whole(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    content: bytes = fs.cat_file(path)
    return content


def answers(uri: str) -> bool:
    """Return whether a byte of an object can be read just now; nothing is waited for."""
    try:
        ask(uri, "read", lambda fs, path: fs.cat_file(path, start=0, end=1), patient=False)
    except StorageError:
        return False
    return True


def read_version(uri: str, etag: str, part: slice = slice(None)) -> bytes:
    """Return an object's content as it was listed, or a stretch of it.

    A store that answers conditions is asked for that version; of others, the version is looked at before and
    after reading, so that what is overwritten meanwhile does not pass either.

    Args:
        uri: Where it lies.
        etag: Its version, as ``ObjectInfo`` has it.
        part: The bytes wanted, from a start to a stop within the object; all if not given.

    Raises:
        ChangedObjectError: If it is another version by now.
        StorageError: If it is missing or cannot be read.
    """
    content: bytes | None
    if is_local(uri):
        with explained(uri, "read"):
            content = _read_file_version(local_path(uri), etag, part)
    else:
        read = _read_s3_version if scheme_of(uri) == "s3" else _read_any_version
        content = ask(uri, "read", partial(read, etag=etag, part=part))

    if content is None:
        raise ChangedObjectError(f"{uri} has changed since it was listed; a new run takes the new version")
    return content


def _read_file_version(path: Path, etag: str, part: slice) -> bytes | None:
    """Read a file if it is the version of an etag, from beginning to end."""
    with path.open("rb") as stream:
        # of the open file, not of its name, which may be another file's a moment later
        before = file_etag(os.fstat(stream.fileno()))
        stream.seek(part.start or 0)
        content = stream.read() if part.stop is None else stream.read(part.stop - stream.tell())
        after = file_etag(os.fstat(stream.fileno()))
    return content if before == after == etag else None


def _read_s3_version(fs: fsspec.AbstractFileSystem, path: str, etag: str, part: slice) -> bytes | None:
    """Read an object if it is the version of an etag, with one request."""
    quick = partial(direct.get, etag=etag, part=part)
    return direct.directly(fs, path, quick, lambda: _ask_s3_version(fs, path, etag, part))


def _ask_s3_version(fs: fsspec.AbstractFileSystem, path: str, etag: str, part: slice) -> bytes | None:
    bucket, key, _ = fs.split_path(path)
    wanted = {"Bucket": bucket, "Key": key, "IfMatch": f'"{etag}"'}
    if part.stop is not None:
        wanted["Range"] = f"bytes={part.start or 0}-{part.stop - 1}"

    # s3fs reads without conditions, so the request is made here
    async def read() -> bytes | None:
        answer = await fs._call_s3("get_object", **wanted)
        try:
            content: bytes = await answer["Body"].read()
        finally:
            answer["Body"].close()
        return content if etag_of(answer) == etag else None  # not every store knows conditions

    try:
        found: bytes | None = fsspec.asyn.sync(fs.loop, read)
    except OSError as error:
        if _condition_failed(error):
            return None
        raise
    return found


def _read_any_version(fs: fsspec.AbstractFileSystem, path: str, etag: str, part: slice) -> bytes | None:
    """Read an object if it is the version of an etag, before and after."""
    before = fs.info(path)
    content: bytes = fs.cat_file(path, start=part.start, end=part.stop)
    after = fs.info(path)
    return content if _is_version(before, etag) and _is_version(after, etag) else None


def _is_version(info: dict[str, Any], etag: str) -> bool:
    # some file systems tell a time as a number in listings and as a date elsewhere
    moment = info.get("created")
    as_listed = {**info, "created": moment.timestamp()} if isinstance(moment, datetime) else info
    return etag in (etag_of(info), etag_of(as_listed))


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
        ask(uri, "write", partial(_write_s3 if scheme_of(uri) == "s3" else _write_whole, data=data))
        return

    with _written_aside(uri) as aside, aside.open("wb") as stream:
        stream.write(data)
        _sync(stream)


def _write_s3(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    about = _content_type(path)

    def slow() -> bool:
        fs.pipe_file(path, data, **({"ContentType": about} if about else {}))
        return True

    if len(data) > direct.MOST_BYTES:
        slow()
    else:
        direct.directly(fs, path, partial(direct.put, data=data, content_type=about), slow)


def _write_whole(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    fs.pipe_file(path, data)  # other stores guess the type from the name


def copy_from_local(path: Path, uri: str) -> None:
    """Write a local file as an object, whole or not at all, without reading it into memory.

    Raises:
        StorageError: If it cannot be written; nothing is left behind then.
    """
    if not is_local(uri):
        ask(uri, "write", lambda fs, remote: fs.put_file(str(path), remote))
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
        return ask(uri, "create", partial(_create_object, data=data))

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


def _content_type(path: str) -> str:
    """Return what S3 is told of an object's type; empty where that is not known."""
    return _CONTENT_TYPES.get(path.rpartition(".")[2].lower(), "")


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
        return ask(uri, "look for", _is_in_s3 if scheme_of(uri) == "s3" else _is_file)
    except MissingObjectError:
        return False


def _is_in_s3(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    def slow() -> str:
        try:
            return "there" if _is_file(fs, path) else ""
        except FileNotFoundError:  # an answer
            return ""

    return bool(direct.directly(fs, path, direct.head, slow))


def _is_file(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    return bool(fs.info(path)["type"] == "file")


def version(uri: str) -> str:
    """Return the version of one object: its etag.

    Raises:
        StorageError: If it is missing.
    """
    if is_local(uri):
        with explained(uri, "look for"):
            return file_etag(local_path(uri).stat())
    return ask(uri, "look for", lambda fs, path: etag_of(fs.info(path)))


def written(uri: str) -> float:
    """Return when an object was written, in seconds since 1970; infinite if the store does not say.

    Raises:
        StorageError: If it is missing.
    """
    if is_local(uri):
        with explained(uri, "look for"):
            return local_path(uri).stat().st_mtime
    return ask(uri, "look for", lambda fs, path: moment_of(fs.info(path)))


def copy_to_local(uri: str, path: Path) -> None:
    """Copy an object to a local file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(temporaries.temporary_name())

    try:
        ask(uri, "read", lambda fs, remote: fs.get_file(remote, str(aside)))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
