"""Where the edited images of a batch lie, in some bytes for each, however many there are.

Most are called alike in every folder: what is made of the photograph's key, and the folder's ending. Those
are one name per image and one ending per edit. Images in tars or tables are numbers; what is called
otherwise, as in batches that were begun before names were as they are now, is kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np

from styleclip.tasks.photographs.datasets.places import Place, is_place, parse_place
from styleclip.tasks.reports.page.links import safe_name

_COLUMN = "image.bytes"


class Packed:
    """Images of an edit that lie in objects with others.

    Attributes:
        objects: Names of the objects, below the edit's folder.
        object: Number of an image's object, ``[N]`` int32; -1 for an image that lies in none.
        start: First byte in a tar, or row of a table, ``[N]`` int64.
        end: The byte behind the last one; 0 in a table.
    """

    def __init__(self, images: int) -> None:
        self._numbers: dict[str, int] = {}
        self.object = np.full(images, -1, np.int32)
        self.start, self.end = np.zeros(images, np.int64), np.zeros(images, np.int64)

    @property
    def objects(self) -> list[str]:
        """Return the names of the objects, below the edit's folder, by their numbers."""
        return list(self._numbers)

    def put(self, image: int, place: Place) -> None:
        """Note where an image lies."""
        self.object[image] = self._numbers.setdefault(place.object, len(self._numbers))
        self.start[image], self.end[image] = (place.row, 0) if place.column else (place.start, place.end)

    def name(self, image: int) -> str:
        """Return what tables call the place of an image; empty for one that lies in no object."""
        number, start, end = (int(each[image]) for each in (self.object, self.start, self.end))
        if number < 0:
            return ""
        name = self.objects[number]
        return str(Place(name, start, end) if end else Place(name, row=start, column=_COLUMN))


class Outputs:
    """Where the images of all edits lie, below the folders of the edits.

    Attributes:
        names: What is made of an image is called, without an ending; empty for one that has none loose.
        endings: What the names of an edit's images end in.
        packed: Images in tars and tables, by edit.
    """

    def __init__(self, images: int, edits: int) -> None:
        self._images = images
        self.names = [""] * images
        self.endings = [".png"] * edits
        self.packed: dict[int, Packed] = {}
        self._others: list[dict[int, str]] = [{} for _ in range(edits)]
        self._begun = [False] * edits

    def put(self, edit: int, image: int, name: str) -> None:
        """Note where an image lies, by its key below the edit's folder or by its place there."""
        place = parse_place(name) if is_place(name) else None
        if not safe_name(place.object if place else name):  # whoever wrote it would have it lead elsewhere
            return

        if place:
            self.packed.setdefault(edit, Packed(self._images)).put(image, place)
            return

        ending = PurePosixPath(name).suffix
        if not self._begun[edit]:
            self._begun[edit], self.endings[edit] = True, ending
        if not self.names[image]:
            self.names[image] = name.removesuffix(ending)
        if name != f"{self.names[image]}{self.endings[edit]}":
            self._others[edit][image] = name

    def name(self, edit: int, image: int) -> str:
        """Return the key of an image below the edit's folder, or its place there; empty if it has neither."""
        if edit in self.packed and (found := self.packed[edit].name(image)):
            return found
        usual = f"{self.names[image]}{self.endings[edit]}" if self.names[image] else ""
        return self._others[edit].get(image, usual)

    def others(self, edit: int) -> Iterator[tuple[int, str]]:
        """Yield the images of an edit that are called otherwise than in most folders."""
        yield from self._others[edit].items()
