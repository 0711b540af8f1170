"""Parts of objects: a stretch of bytes of a version, and a file-like view of one for readers that seek."""

from __future__ import annotations

import io

from styleclip.tasks.storage.objects import read_version
from styleclip.tasks.storage.outages import ChangedObjectError

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
    content = read_version(uri, etag, slice(start, end))
    if len(content) != end - start:
        raise ChangedObjectError(f"{uri} is shorter than it was listed; a new run takes the new version")
    return content


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
