"""Parts of objects: a stretch of bytes of a version, and a file-like view of one for readers that seek."""

from __future__ import annotations

import io
import os
from functools import partial
from pathlib import Path

import fsspec
import fsspec.asyn

from tasks.storage.filesystems import ask, etag_of, file_etag
from tasks.storage.objects import condition_failed, is_version
from tasks.storage.outages import ChangedObjectError, explained
from tasks.storage.places import is_local, local_path, scheme_of

_BLOCK = 2**22  # bytes that a view asks a remote store for at once


def read_range(uri: str, etag: str, start: int, end: int) -> bytes:
    """Return the bytes from ``start`` up to ``end`` of an object as it was listed.

    Args:
        uri: Where it lies.
        etag: Its version, as ``ObjectInfo`` has it.
        start: First byte.
        end: The byte behind the last one; not beyond the object's end.

    Raises:
        ChangedObjectError: If it is another version by now, or shorter.
        StorageError: If it is missing or cannot be read.
    """
    content: bytes | None
    if is_local(uri):
        with explained(uri, "read"):
            content = _file_range(local_path(uri), etag, start, end)
    else:
        read = _s3_range if scheme_of(uri) == "s3" else _any_range
        content = ask(uri, "read", partial(read, etag=etag, start=start, end=end))

    if content is None or len(content) != end - start:
        raise ChangedObjectError(f"{uri} has changed since it was listed; a new run takes the new version")
    return content


def _file_range(path: Path, etag: str, start: int, end: int) -> bytes | None:
    with path.open("rb") as stream:
        # of the open file, not of its name, which may be another file's a moment later
        before = file_etag(os.fstat(stream.fileno()))
        stream.seek(start)
        content = stream.read(end - start)
        after = file_etag(os.fstat(stream.fileno()))
    return content if before == after == etag else None


def _s3_range(fs: fsspec.AbstractFileSystem, path: str, etag: str, start: int, end: int) -> bytes | None:
    bucket, key, _ = fs.split_path(path)
    wanted = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{end - 1}", "IfMatch": f'"{etag}"'}

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
        if condition_failed(error):
            return None
        raise
    return found


def _any_range(fs: fsspec.AbstractFileSystem, path: str, etag: str, start: int, end: int) -> bytes | None:
    before = fs.info(path)
    content: bytes = fs.cat_file(path, start=start, end=end)
    after = fs.info(path)
    return content if is_version(before, etag) and is_version(after, etag) else None


class _Raw(io.RawIOBase):
    """An object as a file, every read of which is of one version."""

    def __init__(self, uri: str, etag: str, size: int) -> None:
        super().__init__()
        self._uri, self._etag, self._size, self._at = uri, etag, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        content = read_range(self._uri, self._etag, self._at, end)
        buffer[: len(content)] = content
        self._at = end
        return len(content)


def view(uri: str, etag: str, size: int, *, block: int = _BLOCK) -> io.BufferedReader:
    """Return an object as a file to seek and read in; what it raises is what ``read_range`` raises.

    Args:
        uri: Where it lies.
        etag: Its version, as it was listed.
        size: Its bytes.
        block: Bytes that are asked for at once where a reader wants few.
    """
    return io.BufferedReader(_Raw(uri, etag, size), buffer_size=block)
