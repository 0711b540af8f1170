"""Pickles read as data: structure and the place of every array, while nothing is imported or called.

A pickle is a program for a small stack machine. This module runs that machine itself, with an allow-list
of names, each mapped to a function of ours that only builds plain values. Any other name ends with an
error that says which; the standard library's unpickler and torch's are not used. Arrays are not read
either: the machine notes where their bytes lie (``Span``), so that a file of several networks costs
memory only for the one that is wanted.

Bounds: all pickles of a file share one ``Budget`` of opcodes, text and copies, lengths are checked
against the bytes that are left before anything is allocated, and nothing that a pickle made is hashed,
compared or printed unless it is a scalar: a few hundred bytes can make a tuple of 2**60 leaves.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import torch

_MAX_OPCODES = 2_000_000
_MAX_TEXT = 256 << 20  # bytes, of all text together
_MAX_COPIED_ITEMS = 500_000  # of containers that are made of others
_MAX_NUMBERED = 1 << 14  # integer keys of one dictionary: unlike texts they can be chosen to collide
_MAX_LINE = 1 << 20
_MAX_INTEGER_BYTES = 64
_MAX_NAME, _MAX_PATH = 256, 4096
_LAZY_FROM = 4096  # shorter byte strings are read at once


class PickleRefused(ValueError):
    """A pickle is damaged, too large, or asks for something that is not data."""


@dataclass(slots=True)
class Budget:
    """What all pickles of one file may still use together, those nested in it included.

    Attributes:
        opcodes: Steps of the machine.
        text: Bytes of text, and of byte strings that are read at once.
        copied_text: Bytes of text that are encoded or joined.
        copied_items: Items of containers that are made of other containers.
    """

    opcodes: int = _MAX_OPCODES
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
        """Count what copies of values take; a pickle can name one value very often.

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


_ELEMENTS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


@dataclass(slots=True, eq=False)
class _DType:
    code: str
    order: str = "<"

    def resolve(self) -> np.dtype:
        kind = self.code.lstrip("<>|=")
        if kind not in _ELEMENTS:
            raise PickleRefused(f"it holds an array of type {self.code[:20]!r}, not of numbers")
        order = self.code[0] if self.code[0] in "<>" else self.order
        return np.dtype(kind).newbyteorder(">" if order == ">" else "<")


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
        raise PickleRefused(f"it has more than {_MAX_OPCODES} opcodes")

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
        """Python 2's strings are bytes or text; nobody knows which."""
        length = self._number(form)
        self._budget.read_text(length)
        data = self._window.read(length)
        self._push(data.decode("ascii") if data.isascii() else data)

    def _bytes(self, form: str) -> None:
        length, start = self._number(form), self._window.position
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
        if line in (b"00", b"01"):
            self._push(line == b"01")
        elif len(line) <= 2 * _MAX_INTEGER_BYTES:
            self._push(int(line))
        else:
            raise PickleRefused("it holds an integer of too many digits")

    def _float_line(self) -> None:
        self._push(float(self._line()))

    def _string_line(self) -> None:
        line = self._line()
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
            for item in items:
                target.add(_key(item, len(target)))
        else:
            raise PickleRefused("it appends to something that is no list")

    def _set_items(self, items: list[object]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleRefused("it sets items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key, len(target))] = value

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
        found = Global(module, name)
        if not (found in _BUILDERS or found in _TYPES or _is_record(found) or self._is_scripted(found)):
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
        self._budget.copy(arguments)
        self._budget.copy(*arguments)
        if made_by == Global("torch.storage", "_load_from_bytes"):
            data = _only(arguments)
            if self._nested is None or not isinstance(data, Span | bytes):
                raise PickleRefused("it nests a file where none belongs")
            self._push(self._nested(Span(data.start, len(data)) if isinstance(data, ShortBytes) else data))
        elif made_by in _BUILDERS:
            self._push(_BUILDERS[made_by](arguments))
        else:
            self._push({} if made_by in _DICTIONARIES else self._record(made_by))

    def _new_object(self, with_keywords: bool) -> None:
        if with_keywords:
            self._pop()
        self._pop()  # what the constructor got; a record has no constructor
        made_of = self._pop()
        if not isinstance(made_of, Global):
            raise PickleRefused("it makes an object of something that is no class")
        self._push({} if made_of in _DICTIONARIES else self._record(made_of))

    def _record(self, kind: Global) -> Record:
        if not (_is_record(kind) or self._is_scripted(kind)):
            raise PickleRefused(f"it calls {str(kind)[:100]!r}; nothing of it was run")
        return Record(str(kind))

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Record):
            parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
            for part in parts:
                if isinstance(part, dict):
                    self._budget.copy(part)
                    target.state.update(part)
        elif isinstance(target, ArrayRef):
            if isinstance(state, tuple) and len(state) == 5:
                self._budget.copy(state[4])
            _fill_array(target, state)
        elif isinstance(target, _DType):
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


def _key(value: object, beside: int = 0) -> object:
    """Return a key of a dictionary, if it is one that is cheap to hash ``beside`` others."""
    if value is None or isinstance(value, str | bytes):
        return value
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        if beside > _MAX_NUMBERED:
            raise PickleRefused(f"it numbers more than {_MAX_NUMBERED} values")
        return value
    raise PickleRefused(f"it uses a {type(value).__name__} as a key")


def _only(arguments: tuple[object, ...]) -> object:
    if len(arguments) != 1:
        raise PickleRefused(f"a call in it has {len(arguments)} arguments instead of one")
    return arguments[0]


# ---- what the allowed names build --------------------------------------------------------------------


def _ordered_dict(arguments: tuple[object, ...]) -> object:
    pairs = _only(arguments) if arguments else []
    if not isinstance(pairs, list) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise PickleRefused("a dictionary in it is not made of pairs")
    return {_key(key, len(pairs)): value for key, value in pairs}


def _default_dict(arguments: tuple[object, ...]) -> object:
    return {}


def _collection(arguments: tuple[object, ...]) -> object:
    items = _only(arguments) if arguments else []
    if not isinstance(items, list | tuple):
        raise PickleRefused("a set in it is not made of a list")
    return {_key(item, len(items)) for item in items}


def _reconstructor(arguments: tuple[object, ...]) -> object:
    if len(arguments) != 3 or not isinstance(arguments[0], Global):
        raise PickleRefused("an object in it has no class")
    made_of, content = arguments[0], arguments[2]
    if made_of in _DICTIONARIES:
        return dict(content) if isinstance(content, dict) else {}
    if not _is_record(made_of):
        raise PickleRefused(f"it makes a {str(made_of)[:100]!r}; nothing of it was run")
    return Record(str(made_of))


def _persistent_object(arguments: tuple[object, ...]) -> object:
    """NVIDIA's persistent objects carry source text, which their own loader executes; it is left alone."""
    meta = _only(arguments)
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise PickleRefused("a persistent object in it has no state")
    name = meta.get("class_name")
    return Record(name[:100] if isinstance(name, str) else "", meta["state"])


def _tensor(arguments: tuple[object, ...]) -> object:
    if len(arguments) < 4 or not isinstance(arguments[0], Storage):
        raise PickleRefused("a tensor in it has no storage")
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, Storage) or not isinstance(offset, int) or isinstance(offset, bool):
        raise PickleRefused("a tensor in it has no place in its storage")
    size, stride = _extents(size), _extents(stride)
    if len(size) != len(stride):
        raise PickleRefused("a tensor in it has a size and strides that do not belong together")
    count = _product(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if offset < 0 or count > storage.numel or (count and last >= storage.numel):
        raise PickleRefused(
            f"a tensor of {count} elements at {offset} is declared in a storage of {storage.numel}"
        )
    named = arguments[6] if len(arguments) == 7 else None  # _rebuild_tensor_v3 has it
    dtype = _TYPES.get(named) if isinstance(named, Global) else None
    return TensorRef(storage, offset, size, stride, dtype or storage.dtype)


def _parameter(arguments: tuple[object, ...]) -> object:
    if not arguments or not isinstance(arguments[0], TensorRef):
        raise PickleRefused("a parameter in it is no tensor")
    return arguments[0]


def _typed_tensor(arguments: tuple[object, ...]) -> object:
    made_by = arguments[0] if arguments else None
    if len(arguments) != 4 or not isinstance(made_by, Global) or not isinstance(arguments[2], tuple):
        raise PickleRefused("a tensor in it is of an unknown class")
    if made_by.module != "torch._utils" or made_by not in _BUILDERS:
        raise PickleRefused("a tensor in it is made in an unknown way")
    return _BUILDERS[made_by](arguments[2])


def _extents(value: object) -> tuple[int, ...]:
    if isinstance(value, tuple) and len(value) <= 64 and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 48 for n in value
    ):  # fmt: skip
        return value
    raise PickleRefused("a tensor or array in it has no valid shape")


def _product(extents: tuple[int, ...]) -> int:
    count = 1
    for extent in extents:
        count *= extent
    return count


def _size(arguments: tuple[object, ...]) -> object:
    value = _only(arguments)
    return _extents(tuple(value) if isinstance(value, list) else value)


def _device(arguments: tuple[object, ...]) -> object:
    if len(arguments) > 2 or not all(isinstance(part, str | int) for part in arguments):
        raise PickleRefused("a device in it has no name")
    return ":".join(str(part)[:20] for part in arguments)


def _path(arguments: tuple[object, ...]) -> object:
    parts = [part for part in arguments if isinstance(part, str)]
    if sum(map(len, parts)) > _MAX_PATH:
        raise PickleRefused("a path in it is too long")
    return "/".join(parts)


def _layout(arguments: tuple[object, ...]) -> object:
    name = _only(arguments)
    if not isinstance(name, str):
        raise PickleRefused("a layout in it has no name")
    return name[:40]


def _array(arguments: tuple[object, ...]) -> object:
    return ArrayRef()


def _fill_array(array: ArrayRef, state: object) -> None:
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _DType):
        raise PickleRefused("an array in it has no valid state")
    _, shape, dtype, fortran, data = state
    _complete(array, dtype, shape, data, fortran=bool(fortran))


def _array_from_buffer(arguments: tuple[object, ...]) -> object:
    if len(arguments) != 4 or not isinstance(arguments[1], _DType):
        raise PickleRefused("an array in it has no valid state")
    data, dtype, shape, order = arguments
    array = ArrayRef()
    _complete(array, dtype, shape, data, fortran=order == "F")
    return array


def _complete(array: ArrayRef, dtype: object, shape: object, data: object, *, fortran: bool) -> None:
    data = data.encode("latin-1") if isinstance(data, str) else data
    if not isinstance(dtype, _DType) or not isinstance(data, bytes | Span):
        raise PickleRefused("an array in it is not made of bytes")
    resolved, extents = dtype.resolve(), _extents(shape)
    length = data.length if isinstance(data, Span) else len(data)
    if _product(extents) * resolved.itemsize != length:
        raise PickleRefused(f"an array of shape {list(extents)} is declared over {length} bytes")
    array.dtype, array.shape, array.fortran, array.data = resolved, extents, fortran, data


def _scalar(arguments: tuple[object, ...]) -> object:
    if len(arguments) != 2 or not isinstance(arguments[0], _DType) or not isinstance(arguments[1], bytes):
        raise PickleRefused("a number in it is not made of bytes")
    dtype = arguments[0].resolve()
    if len(arguments[1]) != dtype.itemsize:
        raise PickleRefused("a number in it has a wrong length")
    return np.frombuffer(arguments[1], dtype)[0].item()


def _dtype(arguments: tuple[object, ...]) -> object:
    if not arguments or not isinstance(arguments[0], str) or not 0 < len(arguments[0]) < 100:
        raise PickleRefused("an array in it has no type")
    return _DType(arguments[0])


def _encoded(arguments: tuple[object, ...]) -> object:
    """Bytes as protocol 2 writes them: text and the name of its encoding."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ("latin1", "latin-1"):
        raise PickleRefused("it encodes text in an unknown way")
    return arguments[0].encode("latin-1")


def _bytearray(arguments: tuple[object, ...]) -> object:
    data = _only(arguments) if arguments else b""
    if not isinstance(data, bytes | Span):
        raise PickleRefused("bytes in it are not made of bytes")
    return data


def _typed_list(arguments: tuple[object, ...]) -> object:
    value = _only(arguments[:1])
    if not isinstance(value, list | tuple):
        raise PickleRefused("a list in it is not made of a list")
    return list(value)


def _tagged(arguments: tuple[object, ...]) -> object:
    return arguments[0] if arguments else None


_NUMPY = ("numpy.core", "numpy._core")
_BUILDERS: dict[object, Callable[[tuple[object, ...]], object]] = {
    Global("collections", "OrderedDict"): _ordered_dict,
    Global("collections", "defaultdict"): _default_dict,
    Global("builtins", "set"): _collection,
    Global("builtins", "frozenset"): _collection,
    Global("__builtin__", "set"): _collection,
    Global("builtins", "bytearray"): _bytearray,
    Global("__builtin__", "bytearray"): _bytearray,
    Global("copyreg", "_reconstructor"): _reconstructor,
    Global("copy_reg", "_reconstructor"): _reconstructor,
    Global("_codecs", "encode"): _encoded,
    Global("pathlib", "PosixPath"): _path,
    Global("pathlib", "PurePosixPath"): _path,
    Global("pathlib", "WindowsPath"): _path,
    Global("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v3"): _tensor,
    Global("torch._utils", "_rebuild_parameter"): _parameter,
    Global("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    Global("torch._tensor", "_rebuild_from_type_v2"): _typed_tensor,
    Global("torch.storage", "_load_from_bytes"): _tagged,  # handled by the machine
    Global("torch", "Size"): _size,
    Global("torch", "device"): _device,
    Global("torch.serialization", "_get_layout"): _layout,
    Global("numpy", "dtype"): _dtype,
    **{Global(f"{core}.multiarray", "_reconstruct"): _array for core in _NUMPY},
    **{Global(f"{core}.multiarray", "scalar"): _scalar for core in _NUMPY},
    **{Global(f"{core}.numeric", "_frombuffer"): _array_from_buffer for core in _NUMPY},
    **{
        Global("torch.jit._pickle", f"build_{name}list"): _typed_list
        for name in ("int", "double", "bool", "tensor")
    },
    Global("torch.jit._pickle", "restore_type_tag"): _tagged,
}
_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip
_TYPES: dict[object, torch.dtype | None] = {
    **{Global(module, name): dtype for name, dtype in _DTYPES.items() for module in ("torch", "torch.cuda")},
    **{Global("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _DTYPES.values()},
    Global("torch.storage", "UntypedStorage"): torch.uint8,
    Global("numpy", "ndarray"): None,
    Global("torch", "Tensor"): None,
    Global("torch.nn.parameter", "Parameter"): None,
    Global("builtins", "object"): None,
    Global("__builtin__", "object"): None,
    Global("builtins", "dict"): None,
    Global("__builtin__", "dict"): None,
    Global("builtins", "int"): None,
    Global("builtins", "list"): None,
}
_DICTIONARIES = {
    Global("dnnlib.util", "EasyDict"),
    Global("dnnlib", "EasyDict"),
    Global("collections", "OrderedDict"),
}
_RECORDS = {
    "argparse.Namespace",
    "types.SimpleNamespace",
    "dnnlib.tflib.network.Network",
}


def _is_record(found: Global) -> bool:
    return found in _DICTIONARIES or str(found) in _RECORDS or found.module.startswith("torch.nn.modules.")


def storage_type(value: object) -> torch.dtype:
    """Return the element type of a storage class's name.

    Raises:
        PickleRefused: If it is none.
    """
    dtype = _TYPES.get(value) if isinstance(value, Global) else None
    if dtype is None:
        raise PickleRefused("a storage in it is of an unknown type")
    return dtype


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
    0x91: lambda m: m._push(_collection((m._pop_to_mark(),))),  # FROZENSET
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
