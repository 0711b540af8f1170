"""Pickles read as data: structure and the place of every array, while nothing is imported or called.

A pickle is a program for a small stack machine. This module runs that machine itself, with the names of
``builders``, each mapped to a function of ours that only builds plain values. Any other name ends with an
error that says which; the standard library's unpickler and torch's are not used. Arrays are not read
either: the machine notes where their bytes lie (``Span``), so that a file of several networks costs
memory only for the one that is wanted.

Bounds: all pickles of a file share one ``Budget`` of opcodes, text and copies, and lengths are checked
against the bytes that are left before anything is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import BinaryIO

from styleclip_core.files.builders import (
    BUILDERS,
    DICTIONARIES,
    TYPES,
    collection,
    fill_array,
    is_record,
    only,
)
from styleclip_core.files.values import (
    MAX_OPCODES,
    ArrayRef,
    Budget,
    DType,
    Global,
    PickleRefused,
    Record,
    ShortBytes,
    Span,
    TensorRef,
    checked_key,
)

_MAX_LINE = 1 << 20
_MAX_INTEGER_BYTES = 64
_MAX_NAME = 256
_LAZY_FROM = 4096  # shorter byte strings are read at once


class Window:
    """A stretch of a file, read in order; reading past its end is an error, not a short answer.

    What is ``lazy`` may be read later, by its place in the file; what only lies in memory may not.
    """

    def __init__(self, stream: BinaryIO, start: int, end: int, *, lazy: bool = True) -> None:
        self._stream, self._position, self.end, self.lazy = stream, start, end, lazy
        stream.seek(start)

    @property
    def position(self) -> int:
        """Return the place of the next byte in the file."""
        return self._position

    def read(self, length: int) -> bytes:
        """Return the next bytes."""
        self._advance(length)
        data = self._stream.read(length)
        if len(data) != length:
            raise PickleRefused("it ends in the middle")
        return data

    def skip(self, length: int) -> Span:
        """Return where the next bytes lie, without reading them."""
        start = self._position
        self._advance(length)
        self._stream.seek(self._position)
        return Span(start, length)

    def readline(self) -> bytes:
        """Return the bytes up to a line's end, without it."""
        line = self._stream.readline(min(_MAX_LINE, self.end - self._position))
        self._position += len(line)
        if not line.endswith(b"\n"):
            raise PickleRefused("it ends in the middle of a line, or the line is too long")
        return line[:-1]

    def _advance(self, length: int) -> None:
        if length < 0 or length > self.end - self._position:
            raise PickleRefused(f"it declares {length} bytes where {self.end - self._position} are left")
        self._position += length


_MARK = object()
_Loader = Callable[[object], object]


class Machine:
    """Runs one pickle.

    Args:
        window: Where it lies; afterwards at the first byte behind it.
        budget: What it may use, shared with the other pickles of the file.
        persistent: Resolves persistent ids (tensor storages of torch's files).
        nested: Reads the bytes of a storage that is a whole file of torch's old format.
        scripted: Whether classes of TorchScript (``__torch__...``) are records too.
    """

    def __init__(
        self,
        window: Window,
        budget: Budget | None = None,
        *,
        persistent: _Loader | None = None,
        nested: Callable[[Span | bytes], object] | None = None,
        scripted: bool = False,
    ) -> None:
        self._window, self._persistent, self._nested = window, persistent, nested
        self._scripted = scripted
        self._budget = budget or Budget()
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}

    def run(self) -> object:
        """Return the pickle's value.

        Raises:
            PickleRefused: If it is damaged, too large, or not data.
        """
        read, budget = self._window.read, self._budget

        while budget.opcodes > 0:
            budget.opcodes -= 1
            code = read(1)[0]
            if code == 0x2E:  # STOP
                return self._pop()
            operation = _OPCODES.get(code)
            if operation is None:
                raise PickleRefused(f"it holds the opcode {code:#04x}, which no weights need")
            operation(self)
        raise PickleRefused(f"it has more than {MAX_OPCODES} opcodes")

    # ---- the stack ----------------------------------------------------------------------------

    def _pop(self) -> object:
        if not self._stack or self._stack[-1] is _MARK:
            raise PickleRefused("its stack is empty where a value is needed")
        return self._stack.pop()

    def _top(self) -> object:
        value = self._pop()
        self._stack.append(value)
        return value

    def _pop_to_mark(self) -> list[object]:
        # from the top: marks nest, and the innermost is meant
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                items = self._stack[index + 1 :]
                del self._stack[index:]
                return items
        raise PickleRefused("a mark is missing")

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _number(self, form: str) -> int:
        size = struct.calcsize(form)
        return int(struct.unpack(form, self._window.read(size))[0])

    # ---- values -------------------------------------------------------------------------------

    def _text(self, form: str) -> None:
        length = self._number(form)
        self._budget.read_text(length)
        self._push(_decode(self._window.read(length)))

    def _old_text(self, form: str) -> None:
        """Read a string of Python 2, which may be bytes or text; ASCII is taken for text."""
        length = self._number(form)
        self._budget.read_text(length)
        data = self._window.read(length)
        self._push(data.decode("ascii") if data.isascii() else data)

    def _bytes(self, form: str) -> None:
        length, start = self._number(form), self._window.position

        # long ones are weights, which may never be asked for; short ones are names and shapes
        if length >= _LAZY_FROM and self._window.lazy:
            self._push(self._window.skip(length))
            return

        self._budget.read_text(length)
        data = ShortBytes(self._window.read(length))
        data.start = start
        self._push(data)

    def _long(self, form: str) -> None:
        length = self._number(form)
        if length > _MAX_INTEGER_BYTES:
            raise PickleRefused(f"it holds an integer of {length} bytes")
        self._push(int.from_bytes(self._window.read(length), "little", signed=True))

    def _line(self) -> bytes:
        line = self._window.readline()
        self._budget.read_text(len(line))
        return line

    def _integer_line(self) -> None:
        line = self._line().rstrip(b"L")

        # protocol 0 writes booleans as integers with a zero in front
        if line in (b"00", b"01"):
            self._push(line == b"01")
        # the time that int() takes grows with the square of the digits
        elif len(line) <= 2 * _MAX_INTEGER_BYTES:
            self._push(int(line))
        else:
            raise PickleRefused("it holds an integer of too many digits")

    def _float_line(self) -> None:
        self._push(float(self._line()))

    def _string_line(self) -> None:
        line = self._line()
        # Python's escapes are not interpreted: no writer of weights needs them
        if len(line) < 2 or line[:1] not in (b"'", b'"') or b"\\" in line:
            raise PickleRefused("it holds a quoted string that is no plain text")
        self._push(_decode(line[1:-1]))

    def _unicode_line(self) -> None:
        self._push(_decode(self._line()))

    # ---- containers ---------------------------------------------------------------------------

    def _tuple(self, length: int) -> None:
        items = [self._pop() for _ in range(length)]
        self._push(tuple(reversed(items)))

    def _extend(self, items: list[object]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            # a set hashes what is put in: only what is cheap to hash
            for item in items:
                target.add(checked_key(item, len(target)))
        else:
            raise PickleRefused("it appends to something that is no list")

    def _set_items(self, items: list[object]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleRefused("it sets items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key, len(target))] = value

    # ---- memo ---------------------------------------------------------------------------------

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise PickleRefused("it refers to a value that was never stored")
        self._push(self._memo[index])

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    # ---- names and what is made of them -----------------------------------------------------------

    def _global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleRefused("a name in it is no text")

        if len(module) + len(name) > _MAX_NAME:
            raise PickleRefused(
                f"it wants to use {module[:40] + '.' + name[:40]!r}..., which no weights need"
            )

        # the one gate: whatever is not in our tables ends here, before it could mean anything
        found = Global(module, name)
        if not (found in BUILDERS or found in TYPES or is_record(found) or self._is_scripted(found)):
            raise PickleRefused(
                f"it wants to use {str(found)[:100]!r}, which no weights need; nothing of it was run"
            )

        self._push(found)

    def _is_scripted(self, found: Global) -> bool:
        return self._scripted and found.module.startswith("__torch__")

    def _reduce(self) -> None:
        arguments, made_by = self._pop(), self._pop()
        if not isinstance(made_by, Global) or not isinstance(arguments, tuple):
            raise PickleRefused("it calls something that is no name")

        # a builder copies what it is given, and a pickle can give the same thing a million times
        self._budget.copy(arguments)
        self._budget.copy(*arguments)

        if made_by == Global("torch.storage", "_load_from_bytes"):
            data = only(arguments)
            if self._nested is None or not isinstance(data, Span | bytes):
                raise PickleRefused("it nests a file where none belongs")
            self._push(self._nested(Span(data.start, len(data)) if isinstance(data, ShortBytes) else data))
        elif made_by in BUILDERS:
            self._push(BUILDERS[made_by](arguments))
        else:
            self._push({} if made_by in DICTIONARIES else self._record(made_by))

    def _new_object(self, with_keywords: bool) -> None:
        if with_keywords:
            self._pop()
        self._pop()  # what the constructor got; a record has no constructor

        made_of = self._pop()
        if not isinstance(made_of, Global):
            raise PickleRefused("it makes an object of something that is no class")
        self._push({} if made_of in DICTIONARIES else self._record(made_of))

    def _record(self, kind: Global) -> Record:
        if not (is_record(kind) or self._is_scripted(kind)):
            raise PickleRefused(f"it calls {str(kind)[:100]!r}; nothing of it was run")
        return Record(str(kind))

    def _build(self) -> None:
        state, target = self._pop(), self._top()

        # slots come as a pair of dictionaries, everything else as one
        if isinstance(target, Record):
            parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
            for part in parts:
                if isinstance(part, dict):
                    self._budget.copy(part)
                    target.state.update(part)
        elif isinstance(target, ArrayRef):
            if isinstance(state, tuple) and len(state) == 5:
                self._budget.copy(state[4])
            fill_array(target, state)
        elif isinstance(target, DType):
            order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
            target.order = order if isinstance(order, str) else "="
        elif not isinstance(target, dict | TensorRef):  # attributes of those (_metadata) are not weights
            raise PickleRefused("it gives attributes to a plain value")

    def _persistent_id(self) -> None:
        if self._persistent is None:
            raise PickleRefused("it refers to storages, which a plain pickle has not")
        self._push(self._persistent(self._pop()))


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


_OPCODES: dict[int, Callable[[Machine], object]] = {
    0x80: lambda m: m._window.read(1),  # PROTO
    0x95: lambda m: m._window.read(8),  # FRAME
    ord("("): lambda m: m._push(_MARK),
    ord("0"): lambda m: m._pop(),
    ord("1"): lambda m: m._pop_to_mark(),
    ord("2"): lambda m: m._push(m._top()),
    ord("N"): lambda m: m._push(None),
    0x88: lambda m: m._push(True),
    0x89: lambda m: m._push(False),
    ord("I"): Machine._integer_line,
    ord("L"): Machine._integer_line,
    ord("F"): Machine._float_line,
    ord("S"): Machine._string_line,
    ord("V"): Machine._unicode_line,
    ord("J"): lambda m: m._push(m._number("<i")),
    ord("K"): lambda m: m._push(m._number("<B")),
    ord("M"): lambda m: m._push(m._number("<H")),
    ord("G"): lambda m: m._push(struct.unpack(">d", m._window.read(8))[0]),
    0x8A: lambda m: m._long("<B"),
    0x8B: lambda m: m._long("<i"),
    ord("X"): lambda m: m._text("<I"),
    0x8C: lambda m: m._text("<B"),
    0x8D: lambda m: m._text("<Q"),
    ord("T"): lambda m: m._old_text("<i"),
    ord("U"): lambda m: m._old_text("<B"),
    ord("B"): lambda m: m._bytes("<I"),
    ord("C"): lambda m: m._bytes("<B"),
    0x8E: lambda m: m._bytes("<Q"),
    0x96: lambda m: m._bytes("<Q"),  # BYTEARRAY8
    ord("]"): lambda m: m._push([]),
    ord("}"): lambda m: m._push({}),
    0x8F: lambda m: m._push(set()),
    ord(")"): lambda m: m._push(()),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("t"): lambda m: m._push(tuple(m._pop_to_mark())),
    ord("l"): lambda m: m._push(m._pop_to_mark()),
    ord("d"): lambda m: _dict_from_mark(m),
    0x91: lambda m: m._push(collection((m._pop_to_mark(),))),  # FROZENSET
    ord("a"): lambda m: _append(m),
    ord("e"): lambda m: _at_mark(m, m._extend),
    0x90: lambda m: _at_mark(m, m._extend),  # ADDITEMS
    ord("s"): lambda m: _set_item(m),
    ord("u"): lambda m: _at_mark(m, m._set_items),
    ord("g"): lambda m: m._get(int(m._line())),
    ord("h"): lambda m: m._get(m._number("<B")),
    ord("j"): lambda m: m._get(m._number("<I")),
    ord("p"): lambda m: m._put(int(m._line())),
    ord("q"): lambda m: m._put(m._number("<B")),
    ord("r"): lambda m: m._put(m._number("<I")),
    0x94: lambda m: m._put(len(m._memo)),
    ord("c"): lambda m: m._global(_decode(m._line()), _decode(m._line())),
    0x93: lambda m: _stack_global(m),
    ord("R"): Machine._reduce,
    ord("b"): Machine._build,
    0x81: lambda m: m._new_object(False),
    0x92: lambda m: m._new_object(True),
    ord("Q"): Machine._persistent_id,
}


def _dict_from_mark(machine: Machine) -> None:
    items = machine._pop_to_mark()
    machine._push({})
    machine._set_items(items)


def _append(machine: Machine) -> None:
    item = machine._pop()
    machine._extend([item])


def _set_item(machine: Machine) -> None:
    value, key = machine._pop(), machine._pop()
    machine._set_items([key, value])


def _at_mark(machine: Machine, use: Callable[[list[object]], None]) -> None:
    use(machine._pop_to_mark())


def _stack_global(machine: Machine) -> None:
    name, module = machine._pop(), machine._pop()
    machine._global(module, name)
