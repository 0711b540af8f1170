"""Images of a data set, read as they were listed: whole objects, members of archives, cells of tables.

What lies side by side in one object is fetched together: the images of a shard of archives with one request
or a few, those of a table by its row groups, which neighbouring shards share.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from styleclip.tasks.photographs.datasets.cells import read_cell
from styleclip.tasks.photographs.datasets.places import Place, is_place, parse_place
from styleclip.tasks.photographs.images import ImageShard, read_items
from styleclip.tasks.storage import item_under, join, read_bytes, read_version, version
from styleclip.tasks.storage.ranges import read_range
from styleclip_core.errors import StyleCLIPError

_BLOCK = 2**24  # bytes that are fetched at once
_GAP = 2**18  # bytes between two images that are rather fetched than asked around


class BrokenSampleError(StyleCLIPError):
    """A data set holds no image where it should."""


class StoredReader:
    """Reads images by what tables call them, from any number of threads; neighbours in an object together."""

    def __init__(self, prefix: str, stored: Iterable[tuple[str, str]], *, block: int = _BLOCK) -> None:
        """Take down what will be read.

        Args:
            prefix: Of the data set, or of results.
            stored: Keys below the prefix, or places, each with the version of the object that it lies in;
                whichever is there if that is empty.
            block: Bytes that are fetched at once, of each object in turn; they are kept until all images in
                them have been read.
        """
        self._prefix, self._etags = prefix, dict(stored)
        packed = [(name, parse_place(name)) for name in self._etags if is_place(name)]
        members = [(name, place, self._etags[name]) for name, place in packed if place.end]
        self._blocks = {name: each for each in _blocks(prefix, members, block) for name in each.members}
        self._rows: dict[tuple[str, str], list[int]] = {}
        for _, place in packed:
            if place.column:
                self._rows.setdefault((place.object, place.column), []).append(place.row)

    def read(self, name: str) -> bytes:
        """Return the content of an image; what is raised says whose fault it is, see ``item_under``.

        Raises:
            BrokenSampleError: If there is no image in that place.
            ChangedObjectError: If it is another version by now.
            StorageError: If it cannot be read.
        """
        etag = self._etags[name]
        if not is_place(name):
            return read_image(self._prefix, name, etag=etag)

        place = parse_place(name)
        if block := self._blocks.get(name):
            with item_under(*place.under(self._prefix)):
                return block.take(name)
        rows = self._rows.get((place.object, place.column), [])
        return _read_place(self._prefix, place, etag, rows)


class ShardReader:
    """Reads the images of one shard, from any number of threads."""

    def __init__(self, prefix: str, shard: ImageShard) -> None:
        self._prefix, self._items = prefix, {item.key: item for item in read_items(shard)}
        packed = [item for item in self._items.values() if item.place and not item.problem]
        self._packed = StoredReader(prefix, [(item.place, item.etag) for item in packed])

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
        # a key may look like a place
        return self._packed.read(item.place) if item.place else read_image(self._prefix, key, etag=etag)


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
    return _read_place(prefix, found, etag, [found.row])


def _read_place(prefix: str, place: Place, etag: str, rows: Sequence[int]) -> bytes:
    """Return the content of an image in an object with others; ``rows`` will be read of its table."""
    uri = place.uri(prefix)
    with item_under(*place.under(prefix)):
        # a part of an object is read of one version, so that it is known which
        etag = etag or version(uri)
        if place.column:
            return _content(place, read_cell(uri, etag, place.column, place.row, rows))
        return read_range(uri, etag, place.start, place.end) if place.end else read_version(uri, etag)


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

    def take(self, name: str) -> bytes:
        with self.lock:
            if not self.content:
                self.etag = self.etag or version(self.uri)
                self.content = read_range(self.uri, self.etag, self.start, self.end)
            start, end = self.members[name]
            found = self.content[start - self.start : end - self.start]

            # one asked for twice, after a failure of its own say, is fetched again with its block
            self.taken.add(name)
            if len(self.taken) == len(self.members):
                self.content, self.taken = b"", set()
            return found


def _blocks(prefix: str, members: Sequence[tuple[str, Place, str]], most: int) -> list[_Block]:
    """Return stretches of bytes that hold members, each in one object; members have name, place, version."""
    found: list[_Block] = []
    last: tuple[str, str] = ("", "")
    for name, place, etag in sorted(members, key=lambda each: (each[1].object, each[2], each[1].start)):
        block = found[-1] if found and last == (place.object, etag) else None
        near = block and place.start - block.end <= _GAP and place.end - block.start <= most
        if not block or not near:
            block = _Block(place.uri(prefix), etag, place.start, place.end, {})
            found.append(block)
        block.end = max(block.end, place.end)
        block.members[name] = (place.start, place.end)
        last = (place.object, etag)
    return found
