"""Where the bytes of an image lie that is no object under its own key, in one string.

    00012.tar#bytes=1536-58112                a member of an archive
    train-00003.parquet#row=17&image.bytes    a cell of a table
    s3://others/faces/7.jpg#object            an object elsewhere

What stands before the ``#`` is a key below the data set's prefix, or a URI; in it ``#`` and ``%`` are quoted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from styleclip.tasks.storage import join
from styleclip.tasks.storage.places import has_scheme
from styleclip_core.errors import StyleCLIPError

_FORM = re.compile(r"([^#]+)#(?:bytes=(\d+)-(\d+)|row=(\d+)&([^#]+)|object)")


class BrokenPlaceError(StyleCLIPError):
    """A table says in no known form where an image lies."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image lies.

    Attributes:
        object: Key below the prefix, or a URI.
        start: First byte in the object, of a member.
        end: The byte behind its last one; 0 where it is no member.
        row: Row of a cell.
        column: Its column, ``image`` or ``image.bytes``; empty where it is no cell.
    """

    object: str
    start: int = 0
    end: int = 0
    row: int = 0
    column: str = ""

    def __str__(self) -> str:
        if self.column:
            return f"{_quote(self.object)}#row={self.row}&{_quote(self.column)}"
        if self.end:
            return f"{_quote(self.object)}#bytes={self.start}-{self.end}"
        return f"{_quote(self.object)}#object"

    def under(self, prefix: str) -> tuple[str, str]:
        """Return the prefix that its object lies under, and the object's key there."""
        if not has_scheme(self.object) and not self.object.startswith("/"):
            return prefix, self.object
        folder, _, name = self.object.rpartition("/")
        return folder, name

    def uri(self, prefix: str) -> str:
        """Return where its object lies."""
        return join(*self.under(prefix))


def is_place(text: str) -> bool:
    """Return whether a text is a place's string; a key that ends as an image does is none."""
    return _FORM.fullmatch(text) is not None


def parse_place(text: str) -> Place:
    """Return a place of its string.

    Raises:
        BrokenPlaceError: If it is none.
    """
    found = _FORM.fullmatch(text)
    if not found:
        raise BrokenPlaceError(f"{text!r} says in no known form where an image lies; list the data set again")

    name = unquote(found[1])
    if found[5]:
        return Place(name, row=int(found[4]), column=unquote(found[5]))
    return Place(name, int(found[2]), int(found[3])) if found[2] else Place(name)


def _quote(text: str) -> str:
    # no more than what the form itself needs, so that names stay readable
    return re.sub(r"[%#]", lambda each: f"%{ord(each[0]):02X}", text)
