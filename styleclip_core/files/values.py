"""What a pickle may become: plain values, and notes of where arrays lie that have not been read.

Nothing here holds code of a checkpoint, and nothing that a pickle made is hashed, compared or printed
unless it is a scalar: a few hundred bytes can make a tuple of 2**60 leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

MAX_OPCODES = 2_000_000
_MAX_TEXT = 256 << 20  # bytes, of all text together
_MAX_COPIED_ITEMS = 500_000  # of containers that are made of others
_MAX_NUMBERED = 1 << 14  # integer keys of one dictionary: unlike texts they can be chosen to collide
_ELEMENTS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class PickleRefused(ValueError):
    """A pickle is damaged, too large, or asks for something that is not data."""


@dataclass(slots=True)
class Budget:
    """What all pickles of one file, nested ones included, may still use together.

    Attributes:
        opcodes: Steps of the machine.
        text: Bytes of text, and of byte strings that are read at once.
        copied_text: Bytes of text that are encoded or joined.
        copied_items: Items of containers that are made of other containers.
    """

    opcodes: int = MAX_OPCODES
    text: int = _MAX_TEXT
    copied_text: int = 2 * _MAX_TEXT
    copied_items: int = _MAX_COPIED_ITEMS

    def read_text(self, length: int) -> None:
        """Count text that is about to be read.

        Raises:
            PickleRefused: If it is too much.
        """
        self.text -= length
        if self.text < 0:
            raise PickleRefused(f"it holds more than {_MAX_TEXT} bytes of text")

    def copy(self, *values: object) -> None:
        """Count the size of copied values; a pickle can name one value very often.

        Raises:
            PickleRefused: If it is too much.
        """
        for value in values:
            if isinstance(value, str | bytes):
                self.copied_text -= len(value)
            elif isinstance(value, list | tuple | dict | set):
                self.copied_items -= len(value)

        if self.copied_text < 0 or self.copied_items < 0:
            raise PickleRefused("it copies its own values too often")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of the file that have not been read."""

    start: int
    length: int


class ShortBytes(bytes):
    """Bytes that were read at once, and where they lie."""

    start: int


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle mentions; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Record:
    """An object of a class that we know the name of: its state, none of its code.

    Attributes:
        kind: The class's name, for a persistent object of NVIDIA's without its module.
        state: Its attributes.
    """

    kind: str
    state: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Storage:
    """A typed run of bytes that tensors look into.

    Attributes:
        dtype: Type of its elements.
        numel: How many there are.
        key: Its name in the file.
    """

    dtype: torch.dtype
    numel: int
    key: str


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor that has not been read."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(slots=True, eq=False)
class ArrayRef:
    """A numpy array that has not been read; ``dtype`` is None until its state is known."""

    dtype: np.dtype | None = None
    shape: tuple[int, ...] = ()
    fortran: bool = False
    data: bytes | Span = b""


@dataclass(slots=True, eq=False)
class DType:
    """Type of an array's elements, by numpy's code for it and the order of its bytes."""

    code: str
    order: str = "<"

    def resolve(self) -> np.dtype:
        """Return numpy's type.

        Raises:
            PickleRefused: If it is not of numbers.
        """
        kind = self.code.lstrip("<>|=")
        if kind not in _ELEMENTS:
            raise PickleRefused(f"it holds an array of type {self.code[:20]!r}, not of numbers")

        order = self.code[0] if self.code[0] in "<>" else self.order
        return np.dtype(kind).newbyteorder(">" if order == ">" else "<")


def checked_key(value: object, beside: int = 0) -> object:
    """Return a key of a dictionary, if it is one that is cheap to hash ``beside`` others.

    Raises:
        PickleRefused: If it is not.
    """
    if value is None or isinstance(value, str | bytes):
        return value

    # texts are hashed with a secret, integers are their own hash: chosen ones all fall into one place
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        if beside > _MAX_NUMBERED:
            raise PickleRefused(f"it numbers more than {_MAX_NUMBERED} values")
        return value

    raise PickleRefused(f"it uses a {type(value).__name__} as a key")
