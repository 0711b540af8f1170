"""Weights files of every kind that the field uses, opened as data.

It reads torch's zip files, torch's older format, TorchScript archives (for their tensors; their code
is never parsed, compiled or run), plain pickles and safetensors. The kind is told from the content, not
from the name. Opening reads the structure; arrays are read one by one when they are asked for, so that
memory holds what a caller keeps and nothing else. A file is named by the SHA-256 of its content.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from styleclip_core.errors import CheckpointError
from styleclip_core.files.builders import storage_type
from styleclip_core.files.pickles import Machine, Window
from styleclip_core.files.values import ArrayRef, Budget, PickleRefused, Span, Storage, TensorRef

_HEADER = "styleclip"
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_CHUNK = 1 << 20
_MAX_ENTRIES = 200_000
_MAX_VISITS, _MAX_NAME = 200_000, 300  # of modules and what lies in them
_MAX_DIRECTORY = 32 << 20  # bytes of a zip file's directory, read as a whole
_MAX_REASON, _MAX_MESSAGE = 240, 600  # characters; a message of a hostile file's length helps nobody
# what parsers and constructors raise on damaged content; all of it means "not these weights"
DAMAGE = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    MemoryError, zipfile.BadZipFile, NotImplementedError, struct.error,
)  # fmt: skip


class Checkpoint:
    """An open weights file.

    Attributes:
        path: Where it lies.
        kind: ``"torch"``, ``"torchscript"``, ``"torch-legacy"`` or ``"pickle"``.
        content: Its structure: plain values, ``Record`` for objects, ``TensorRef`` and ``ArrayRef``
            for arrays that have not been read.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self._stream = path, stream
        self._size = os.fstat(stream.fileno()).st_size

        # bytes of arrays that may be given out, each time anew: honest files share little, a bomb everything
        self._left = 2 * self._size
        self._visits = 0
        self._budget = Budget()

        self._archive: zipfile.ZipFile | None = None
        self._entries: dict[str, Span] = {}
        self._places: dict[str, Span | bytes] = {}
        self._read: dict[TensorRef, Tensor] = {}
        self.kind, self.content = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._read.clear()
        self._stream.close()

    # ---- arrays -------------------------------------------------------------------------------

    def tensor(self, value: object) -> Tensor:
        """Read an array of the file's content; what is a tensor already stays one.

        Raises:
            CheckpointError: If it is no array, or the file is damaged there.
        """
        with guarded(self.path):
            if isinstance(value, Tensor):
                return value
            if isinstance(value, TensorRef):
                if value not in self._read:
                    self._read[value] = self._read_tensor(value)
                else:  # shared here, but a network copies it
                    self._spend(self._read[value].nbytes)
                return self._read[value]
            if isinstance(value, ArrayRef):
                self._spend(value.data.length if isinstance(value.data, Span) else len(value.data))
                array = self._read_array(value)
                return torch.from_numpy(np.ascontiguousarray(array))
            raise PickleRefused(f"a {type(value).__name__} lies where an array should be")

    @property
    def weights(self) -> object:
        """Return the presumable state dict: the one under ``state_dict``, or the whole content."""
        nested = self.content.get("state_dict") if isinstance(self.content, dict) else None
        return nested if isinstance(nested, dict) else self.content

    def state(self, values: object, prefix: str = "") -> dict[str, Tensor]:
        """Read the arrays of a state dict whose names begin with ``prefix``, which is cut off.

        Raises:
            CheckpointError: If it is no dictionary of names and arrays.
        """
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise unreadable(self.path, PickleRefused("its weights are no dictionary of names"))

        # what is no array among the weights (a counter, a version) is left out, not refused
        return {
            name[len(prefix) :]: self.tensor(value)
            for name, value in values.items()
            if name.startswith(prefix) and is_array(value)
        }

    def _read_tensor(self, ref: TensorRef) -> Tensor:
        extent = 1 + sum((n - 1) * step for n, step in zip(ref.size, ref.stride, strict=True))
        if 0 in ref.size:
            return torch.empty(ref.size, dtype=ref.dtype)

        # an untyped storage has elements of one byte; the tensor says what they are
        place, width = self._place(ref.storage), ref.storage.dtype.itemsize
        if ref.storage.dtype == torch.uint8:
            width = ref.dtype.itemsize
        elif ref.dtype != ref.storage.dtype:
            raise PickleRefused("a tensor in it is of another type than its storage")

        start, length = ref.offset * width, extent * width
        held = len(place) if isinstance(place, bytes) else place.length
        if start + length > held:
            raise PickleRefused(f"a tensor reaches {start + length - held} bytes behind its storage")

        # a stride of 0 makes much of little
        self._spend(max(math.prod(ref.size), extent) * width)

        data: np.ndarray | bytearray
        if isinstance(place, bytes):
            data = bytearray(place[start : start + length])
        else:
            data = self._bytes(Span(place.start + start, length))
        return torch.frombuffer(data, dtype=ref.dtype).as_strided(ref.size, ref.stride).contiguous()

    def _read_array(self, ref: ArrayRef) -> np.ndarray:
        if ref.dtype is None:
            raise PickleRefused("an array in it has no content")

        data = ref.data if isinstance(ref.data, bytes) else self._bytes(ref.data)
        array = np.frombuffer(data, ref.dtype).reshape(ref.shape, order="F" if ref.fortran else "C")
        return array.astype(ref.dtype.newbyteorder("="), copy=isinstance(ref.data, bytes))

    def _spend(self, length: int) -> None:
        self._left -= length
        if self._left < 0:
            raise PickleRefused("its arrays share bytes so often that they exceed the file")

    def _bytes(self, span: Span) -> np.ndarray:
        # in torch's memory: a matrix product rounds otherwise where weights do not begin at a multiple of 64
        data = torch.empty(span.length, dtype=torch.uint8).numpy()
        self._stream.seek(span.start)
        if self._stream.readinto(data) != span.length:  # type: ignore[attr-defined]
            raise PickleRefused("it ends in the middle of an array")
        return data

    def _place(self, storage: Storage) -> Span | bytes:
        if storage.key in self._places:
            return self._places[storage.key]
        return self._entry(f"data/{storage.key}")

    def visit(self, values: object) -> None:
        """Count the values walked through: a file can nest one in itself, or hold it under very many names.

        Raises:
            PickleRefused: If it is too much, or a name is too long.
        """
        if isinstance(values, dict | list):
            self._visits += 1 + len(values)
        if self._visits > _MAX_VISITS:
            raise PickleRefused(f"its modules hold each other, or more than {_MAX_VISITS} values")
        if isinstance(values, dict) and any(len(k) > _MAX_NAME for k in values if isinstance(k, str)):
            raise PickleRefused(f"a name in it is longer than {_MAX_NAME} characters")

    # ---- what kind of file --------------------------------------------------------------------

    def _open(self) -> tuple[str, object]:
        head = self._stream.read(16)
        if head.startswith(b"PK\x03\x04"):
            return self._open_zip()
        if head[:1] == b"\x80":
            return self._open_pickle()

        # what people give by mistake: the remedy is another one for each
        kinds = {
            b"<": "a web page, as download sites send instead of a file",
            b"\x93NUMPY": "a numpy array",
            b"\x1f\x8b": "gzip-compressed; unpack it",
            b"version https://git-lfs": "a Git LFS pointer; fetch the file it names",
        }

        for magic, kind in kinds.items():
            if head.lstrip().startswith(magic[:16]):
                raise PickleRefused(f"it is {kind}")

        raise PickleRefused("it is of no known kind")

    def _open_zip(self) -> tuple[str, object]:
        _refuse_long_directory(self._stream, self._size)
        self._archive = archive = zipfile.ZipFile(self._stream)

        # before anything is read: the directory can promise what the file does not hold
        entries, names = archive.infolist(), set(archive.namelist())
        if len(entries) > _MAX_ENTRIES:
            raise PickleRefused(f"it has more than {_MAX_ENTRIES} entries")
        if len(names) < len(entries):
            raise PickleRefused("two of its entries have the same name")
        if sum(entry.compress_size for entry in entries) > self._size:
            raise PickleRefused("its entries overlap")

        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise PickleRefused("it is a zip file but not torch's: 'data.pkl' is missing in it")

        self._folder = pickles[0].removesuffix("data.pkl")
        if f"{self._folder}byteorder" in names:
            span = self._entry("byteorder")
            if span.length > 16 or bytes(self._bytes(span)).strip() != b"little":
                raise PickleRefused("its numbers are big-endian")

        # TorchScript archives have constants beside their data, and classes of their own making
        scripted = f"{self._folder}constants.pkl" in names
        span = self._entry("data.pkl")
        window = Window(self._stream, span.start, span.start + span.length)
        content = Machine(window, self._budget, persistent=_named_storage, scripted=scripted).run()
        return ("torchscript" if scripted else "torch"), content

    def _entry(self, name: str) -> Span:
        """Return where an entry's bytes lie, after its checksum was found right."""
        if name not in self._entries:
            if self._archive is None:
                raise PickleRefused("a storage in it is missing")
            try:
                info = self._archive.getinfo(self._folder + name)
            except KeyError:
                raise PickleRefused(f"its entry {name[:60]!r} is missing") from None

            # torch stores; a compressed entry could grow to a thousand times its size
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise PickleRefused(f"its entry {name[:60]!r} is compressed, which torch never does")
            if info.file_size != info.compress_size:
                raise PickleRefused(f"its entry {name[:60]!r} has two sizes")

            # the local header has lengths of its own, which may differ from those of the directory
            self._stream.seek(info.header_offset)
            header = self._stream.read(30)
            if header[:4] != b"PK\x03\x04":
                raise PickleRefused(f"its entry {name[:60]!r} is damaged")
            skipped = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")

            span = Span(info.header_offset + 30 + skipped, info.file_size)
            if span.start + span.length > self._size:
                raise PickleRefused(f"its entry {name[:60]!r} reaches behind the end of the file")
            if self._checksum(span) != info.CRC:
                raise PickleRefused(f"the checksum of its entry {name[:60]!r} is wrong")

            self._entries[name] = span
        return self._entries[name]

    def _checksum(self, span: Span) -> int:
        self._stream.seek(span.start)
        value, left = 0, span.length
        # in pieces: an entry may be larger than memory
        while left:
            chunk = self._stream.read(min(_CHUNK, left))
            if not chunk:
                raise PickleRefused("it ends in the middle")
            value, left = zlib.crc32(chunk, value), left - len(chunk)
        return value

    def _open_pickle(self) -> tuple[str, object]:
        window = Window(self._stream, 0, self._size)
        content = Machine(window, self._budget, nested=self._nested).run()

        # files from before torch 1.6 are several pickles in a row, of which the first is a number
        if isinstance(content, int) and content == _TORCH_MAGIC:
            return "torch-legacy", self._open_legacy(Window(self._stream, 0, self._size))
        return "pickle", content

    def _nested(self, data: Span | bytes) -> object:
        """Read a storage that lies in a plain pickle as a whole file of torch's old format."""
        if isinstance(data, bytes):  # protocol 2 writes bytes as text, so they are in memory
            return self._open_legacy(Window(io.BytesIO(data), 0, len(data), lazy=False), data)
        back = self._stream.tell()
        content = self._open_legacy(Window(self._stream, data.start, data.start + data.length))
        self._stream.seek(back)
        return content

    def _open_legacy(self, window: Window, held: bytes | None = None) -> object:
        budget = self._budget
        if Machine(window, budget).run() != _TORCH_MAGIC or Machine(window, budget).run() != 1001:
            raise PickleRefused("it is no file of torch's")

        system = Machine(window, budget).run()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise PickleRefused("its numbers are big-endian")

        # keys are unique in one such file, not in the several that a pickle can nest
        wanted: dict[str, tuple[torch.dtype, int]] = {}
        within = f"{len(self._places)}:{window.position}:"

        def storage(name: object) -> Storage:
            found = _named_storage(name)
            if isinstance(name, tuple) and len(name) > 5 and name[5] is not None:
                raise PickleRefused("a storage in it is a view of another, as before torch 0.4")
            wanted[found.key] = (found.dtype, found.numel)
            return replace(found, key=within + found.key)

        content = Machine(window, budget, persistent=storage).run()

        keys = Machine(window, budget).run()
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise PickleRefused("its list of storages is damaged")

        # the arrays follow behind all pickles, in the order of this list
        for key in keys:
            if key not in wanted:
                raise PickleRefused("its list of storages is damaged")
            dtype, numel = wanted.pop(key)
            if int.from_bytes(window.read(8), "little", signed=True) != numel:
                raise PickleRefused("a storage in it has two sizes")
            span = window.skip(numel * dtype.itemsize)
            self._places[within + key] = span if held is None else _cut(held, span, budget)

        if wanted:
            raise PickleRefused("some of its storages are missing")
        return content


def _named_storage(name: object) -> Storage:
    """Return the storage that torch's persistent id ``("storage", type, key, device, numel)`` names."""
    if not isinstance(name, tuple) or len(name) < 5 or name[0] != "storage":
        raise PickleRefused("a storage in it has no name")

    dtype, key, numel = storage_type(name[1]), name[2], name[4]
    if not isinstance(key, str) or not isinstance(numel, int) or numel < 0:
        raise PickleRefused("a storage in it has no key")

    return Storage(dtype, numel, key)


def _cut(held: bytes, span: Span, budget: Budget) -> bytes:
    part = held[span.start : span.start + span.length]
    budget.copy(part)
    return part


def _refuse_long_directory(stream: BinaryIO, size: int) -> None:
    """Check the length that a zip file states for its directory, before zipfile reads that whole."""
    stream.seek(max(0, size - (1 << 16) - 98))  # the longest comment, behind three records
    tail = stream.read()

    # zipfile looks in both places
    lengths = []
    for end in {len(tail) - 22, tail.rfind(b"PK\x05\x06")}:
        if end >= 0 and tail.startswith(b"PK\x05\x06", end):
            zip64 = end - 76  # its record and its locator come right before
            if zip64 >= 0 and tail.startswith(b"PK\x06\x06", zip64):
                lengths.append(int.from_bytes(tail[zip64 + 40 : zip64 + 48], "little"))
            else:
                lengths.append(int.from_bytes(tail[end + 12 : end + 16], "little"))

    if not lengths or max(lengths) > _MAX_DIRECTORY:
        raise PickleRefused("its directory is missing or too long")


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a weights file that is not safetensors, as a context manager.

    Raises:
        CheckpointError: If it is missing, damaged, of an unknown kind, or wants to run something.
    """
    with guarded(path), contextlib.ExitStack() as stack:
        stream = stack.enter_context(_open_file(path))
        checkpoint = Checkpoint(Path(path), stream)
        stack.pop_all()
        return checkpoint


def _open_file(path: str | Path) -> io.BufferedReader:
    """Open a regular file and nothing else: a pipe would block, a device never ends."""
    flags = (getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
    handle = os.open(path, os.O_RDONLY | sum(flags))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise PickleRefused("it is a directory, a pipe or a device, not a file")
    return os.fdopen(handle, "rb")


def is_array(value: object) -> bool:
    """Return whether a value of a checkpoint's content is an array."""
    return isinstance(value, TensorRef | ArrayRef | Tensor)


def is_safetensors(path: str | Path) -> bool:
    """Return whether a file's content begins as safetensors do: a length and a JSON object.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    with guarded(path), _open_file(path) as stream:
        head = stream.read(9)
        size = os.fstat(stream.fileno()).st_size
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, 64 hex digits.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    with guarded(path), _open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_header(path: str | Path) -> dict[str, str]:
    """Read the metadata of one of our safetensors files, without its tensors.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    with guarded(path), _open_safetensors(path) as file:
        # one entry holds them all as JSON, since the format keeps no order among several
        metadata = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
        if not isinstance(metadata, dict):
            raise ValueError(f"its header is {metadata!r:.40}, not an object")
        return metadata


def read_names(path: str | Path) -> list[str]:
    """Read the names of a safetensors file's tensors alone.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    with guarded(path), _open_safetensors(path) as file:
        return list(file.keys())


@contextlib.contextmanager
def _open_safetensors(path: str | Path) -> Iterator[Any]:
    with _open_file(path):  # the library would wait for a pipe
        pass
    with safetensors.safe_open(str(path), framework="pt") as file:
        yield file


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        Its tensors and the metadata of its header.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    metadata = read_header(path)
    with guarded(path), _open_safetensors(path) as file:
        # the library has checked the header by now, and says types and shapes without touching the content
        mapped = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _copied(Path(path), mapped), metadata


def _copied(path: Path, mapped: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read tensors into memory of torch's own, where they begin at a multiple of 64 bytes.

    Where they begin in a file is chance, and a matrix product rounds by where its weights begin. So the same
    weights, stored in two forms, would not give the same bits.
    """
    found = {}
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        places = json.loads(stream.read(length))
        for name, tensor in mapped.items():
            found[name] = torch.empty_like(tensor, memory_format=torch.contiguous_format)
            stream.seek(8 + length + places[name]["data_offsets"][0])
            content = found[name].view(-1).view(torch.uint8).numpy()
            if stream.readinto(content.data) != content.nbytes:
                raise ValueError("it ends in the middle of an array")
    return found


def write_state(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text metadata as safetensors; the file appears whole or not at all."""
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()

    # the format shares nothing: a tensor that lies in another one's place is written twice
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        tensors[name] = plain.clone() if plain.data_ptr() in places else plain
        places.add(tensors[name].data_ptr())
    # one entry: several would come in an order of their own in every process
    header = {_HEADER: json.dumps(dict(metadata), sort_keys=True)}
    with written_aside(path) as aside:
        safetensors.torch.save_file(tensors, aside, header)


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Yield a file beside ``path`` to write to; it takes the place of ``path`` if nothing fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    # in the same folder: only within one file system does a rename take a place at once
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)

    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o644)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def unreadable(path: str | Path, error: BaseException) -> CheckpointError:
    """Return the error for a file that ``error`` was raised on."""
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"no weights file at {path}; give the path of an existing file")

    reason = printable(" ".join(str(error).split()))[:_MAX_REASON] or type(error).__name__
    return CheckpointError(
        f"{path} cannot be read as weights ({reason}); it is damaged, incomplete or of another kind: "
        "fetch it again"
    )


def printable(text: str) -> str:
    """Replace the characters that would break a line, steer a terminal or fail to be encoded."""
    return "".join(character if character.isprintable() else "?" for character in text[:10_000])


@contextlib.contextmanager
def guarded(path: str | Path) -> Iterator[None]:
    """Turn whatever a file's content causes into one short ``CheckpointError`` that names the file.

    Raises:
        CheckpointError: For every error inside that damaged or hostile content can cause.
    """
    try:
        yield
    except CheckpointError as error:
        message, most = str(error), len(str(path)) + _MAX_MESSAGE
        named = str(path) in message
        if named and len(message) <= most and message.isprintable():
            raise

        # "from None": the long or unprintable original would be printed with it
        message = message if named else f"{path}: {message}"
        if len(message) > most:  # the remedy is at the end
            message = f"{message[: most - 150]} ... {message[-100:]}"
        raise CheckpointError(printable(message)) from None
    except (*DAMAGE, safetensors.SafetensorError) as error:
        raise unreadable(path, error) from error
