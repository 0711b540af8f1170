"""Images of a data set, read as they were listed: whole objects, members of archives, cells of tables.

What lies side by side in one object is fetched together: the images of a shard of archives with one request
or a few, those of a table by its row groups, which neighbouring shards share.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from styleclip.tasks.photographs.datasets.cells import read_cell
from styleclip.tasks.photographs.datasets.places import Place, is_place, parse_place
from styleclip.tasks.photographs.images import ImageShard, ListedImage, read_items
from styleclip.tasks.storage import item_under, join, read_bytes, read_version, version
from styleclip.tasks.storage.ranges import read_range
from styleclip_core.errors import StyleCLIPError

_BLOCK = 2**24  # bytes that are fetched at once
_GAP = 2**18  # bytes between two images that are rather fetched than asked around


class BrokenSampleError(StyleCLIPError):
    """A data set holds no image where it should."""


class ShardReader:
    """Reads the images of one shard, from any number of threads."""

    def __init__(self, prefix: str, shard: ImageShard) -> None:
        self._prefix = prefix
        self._items = {item.key: item for item in read_items(shard)}
        packed = [(item, parse_place(item.place)) for item in self._items.values() if item.place]
        members = [(item, place) for item, place in packed if place.end]
        self._blocks = {key: block for block in _blocks(prefix, members) for key in block.members}
        self._rows: dict[tuple[str, str], list[int]] = {}
        for _, place in packed:
            if place.column:
                self._rows.setdefault((place.object, place.column), []).append(place.row)

    def place(self, key: str) -> str | None:
        """Return where the bytes of an image lie; None if that is an object under its key."""
        return self._items[key].place or None

    def read(self, key: str, etag: str) -> bytes:
        """Return the content of an image; what is raised says whose fault it is, see ``item_under``.

        Args:
            key: Its key.
            etag: Its version, as it was listed.

        Raises:
            BrokenSampleError: If the data set holds no image there.
            ChangedObjectError: If it is another version by now.
            StorageError: If it cannot be read.
        """
        item = self._items[key]
        if item.problem:
            raise BrokenSampleError(item.problem)
        if not item.place:
            with item_under(self._prefix, key):
                return read_version(join(self._prefix, key), etag)

        place = parse_place(item.place)
        with item_under(*place.under(self._prefix)):
            if block := self._blocks.get(key):
                return block.take(key)
            if place.column:
                rows = self._rows[place.object, place.column]
                return _content(
                    place, read_cell(place.uri(self._prefix), etag, place.column, place.row, rows)
                )
            return read_version(place.uri(self._prefix), etag)


def read_image(prefix: str, key: str, place: str | None = "", etag: str = "") -> bytes:
    """Return the content of one image, wherever it lies; what is raised says whose fault it is.

    Args:
        prefix: Of the data set, or of results.
        key: Of the image.
        place: Where its bytes lie if that is no object under its key.
        etag: Version of the object that it lies in; whichever is there if empty.
    """
    if not place:
        with item_under(prefix, key):
            return read_version(join(prefix, key), etag) if etag else read_bytes(join(prefix, key))

    found = parse_place(place)
    uri = found.uri(prefix)
    with item_under(*found.under(prefix)):
        # a part of an object is read of one version, so that it is known which
        etag = etag or version(uri)
        if found.column:
            return _content(found, read_cell(uri, etag, found.column, found.row, [found.row]))
        return read_range(uri, etag, found.start, found.end) if found.end else read_version(uri, etag)


def read_stored(prefix: str, name: str, etag: str = "") -> bytes:
    """Return the content of an image by what tables call it: a key below a prefix, or a place."""
    return read_image(prefix, name, name if is_place(name) else "", etag)


def object_of(name: str) -> str:
    """Return the key of the object that an image lies in, by what tables call the image."""
    return parse_place(name).object if is_place(name) else name


def _content(place: Place, found: bytes | None) -> bytes:
    if not found:
        raise BrokenSampleError(f"row {place.row} of {place.object} has no bytes in {place.column}")
    return found


@dataclass
class _Block:
    """Images that lie side by side, fetched when the first is asked for and kept until the last is."""

    uri: str
    etag: str
    start: int
    end: int
    members: dict[str, tuple[int, int]]
    content: bytes = b""
    taken: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, key: str) -> bytes:
        with self.lock:
            if not self.content:
                self.content = read_range(self.uri, self.etag, self.start, self.end)
            start, end = self.members[key]
            found = self.content[start - self.start : end - self.start]

            # one asked for twice, after a failure of its own say, is fetched again with its block
            self.taken.add(key)
            if len(self.taken) == len(self.members):
                self.content, self.taken = b"", set()
            return found


def _blocks(prefix: str, members: Sequence[tuple[ListedImage, Place]]) -> list[_Block]:
    """Return stretches of bytes that hold members, each in one object."""
    found: list[_Block] = []
    last: tuple[str, str] = ("", "")
    for item, place in sorted(members, key=lambda each: (each[1].object, each[0].etag, each[1].start)):
        block = found[-1] if found and last == (place.object, item.etag) else None
        near = block and place.start - block.end <= _GAP and place.end - block.start <= _BLOCK
        if not block or not near:
            block = _Block(place.uri(prefix), item.etag, place.start, place.end, {})
            found.append(block)
        block.end = max(block.end, place.end)
        block.members[item.key] = (place.start, place.end)
        last = (place.object, item.etag)
    return found
