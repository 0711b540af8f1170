"""What becomes of the names that a pickle of weights may use: plain values, built by functions of ours.

Any other name is refused by the machine, and no name is ever imported.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from styleclip_core.files.values import (
    ArrayRef,
    DType,
    Global,
    PickleRefused,
    Record,
    Span,
    Storage,
    TensorRef,
    checked_key,
)

_MAX_PATH = 4096


def only(arguments: tuple[object, ...]) -> object:
    """Return the one argument of a call.

    Raises:
        PickleRefused: If there is another number of them.
    """
    if len(arguments) != 1:
        raise PickleRefused(f"a call in it has {len(arguments)} arguments instead of one")
    return arguments[0]


def _ordered_dict(arguments: tuple[object, ...]) -> object:
    pairs = only(arguments) if arguments else []
    if not isinstance(pairs, list) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise PickleRefused("a dictionary in it is not made of pairs")
    return {checked_key(key, len(pairs)): value for key, value in pairs}


def _default_dict(arguments: tuple[object, ...]) -> object:
    return {}


def collection(arguments: tuple[object, ...]) -> object:
    """Return the set of a list of scalars.

    Raises:
        PickleRefused: If there are other things in it.
    """
    items = only(arguments) if arguments else []
    if not isinstance(items, list | tuple):
        raise PickleRefused("a set in it is not made of a list")
    return {checked_key(item, len(items)) for item in items}


def _reconstructor(arguments: tuple[object, ...]) -> object:
    if len(arguments) != 3 or not isinstance(arguments[0], Global):
        raise PickleRefused("an object in it has no class")
    made_of, content = arguments[0], arguments[2]

    # the content is that of a built-in base class; any other class is one of a record
    if made_of in DICTIONARIES:
        return dict(content) if isinstance(content, dict) else {}
    if not is_record(made_of):
        raise PickleRefused(f"it makes a {str(made_of)[:100]!r}; nothing of it was run")
    return Record(str(made_of))


def _persistent_object(arguments: tuple[object, ...]) -> object:
    """NVIDIA's persistent objects carry source text, which their own loader executes; it is left alone."""
    # the class's source text lies beside the state, and stays there unread
    meta = only(arguments)
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

    # the last element must lie in the storage, and a stride of 0 must not make more of it than it holds
    count = _product(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if offset < 0 or count > storage.numel or (count and last >= storage.numel):
        raise PickleRefused(
            f"a tensor of {count} elements at {offset} is declared in a storage of {storage.numel}"
        )

    # _rebuild_tensor_v3 gives a type, the older ones leave it to the storage
    named = arguments[6] if len(arguments) == 7 else None
    dtype = TYPES.get(named) if isinstance(named, Global) else None
    return TensorRef(storage, offset, size, stride, dtype or storage.dtype)


def _parameter(arguments: tuple[object, ...]) -> object:
    if not arguments or not isinstance(arguments[0], TensorRef):
        raise PickleRefused("a parameter in it is no tensor")
    return arguments[0]


def _typed_tensor(arguments: tuple[object, ...]) -> object:
    made_by = arguments[0] if arguments else None
    if len(arguments) != 4 or not isinstance(made_by, Global) or not isinstance(arguments[2], tuple):
        raise PickleRefused("a tensor in it is of an unknown class")

    # a subclass names the function that makes it; only torch's own are let in
    if made_by.module != "torch._utils" or made_by not in BUILDERS:
        raise PickleRefused("a tensor in it is made in an unknown way")
    return BUILDERS[made_by](arguments[2])


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
    value = only(arguments)
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
    name = only(arguments)
    if not isinstance(name, str):
        raise PickleRefused("a layout in it has no name")
    return name[:40]


def _array(arguments: tuple[object, ...]) -> object:
    return ArrayRef()


def fill_array(array: ArrayRef, state: object) -> None:
    """Note type, shape and bytes of an array that was made empty.

    Raises:
        PickleRefused: If they do not belong together.
    """
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], DType):
        raise PickleRefused("an array in it has no valid state")
    _, shape, dtype, fortran, data = state
    _complete(array, dtype, shape, data, fortran=bool(fortran))


def _array_from_buffer(arguments: tuple[object, ...]) -> object:
    if len(arguments) != 4 or not isinstance(arguments[1], DType):
        raise PickleRefused("an array in it has no valid state")
    data, dtype, shape, order = arguments
    array = ArrayRef()
    _complete(array, dtype, shape, data, fortran=order == "F")
    return array


def _complete(array: ArrayRef, dtype: object, shape: object, data: object, *, fortran: bool) -> None:
    # protocol 2 writes bytes as text
    data = data.encode("latin-1") if isinstance(data, str) else data
    if not isinstance(dtype, DType) or not isinstance(data, bytes | Span):
        raise PickleRefused("an array in it is not made of bytes")

    resolved, extents = dtype.resolve(), _extents(shape)
    length = data.length if isinstance(data, Span) else len(data)

    # numpy would read past the bytes' end, or allocate what no byte is there for
    if _product(extents) * resolved.itemsize != length:
        raise PickleRefused(f"an array of shape {list(extents)} is declared over {length} bytes")

    array.dtype, array.shape, array.fortran, array.data = resolved, extents, fortran, data


def _scalar(arguments: tuple[object, ...]) -> object:
    if len(arguments) != 2 or not isinstance(arguments[0], DType) or not isinstance(arguments[1], bytes):
        raise PickleRefused("a number in it is not made of bytes")

    dtype = arguments[0].resolve()
    if len(arguments[1]) != dtype.itemsize:
        raise PickleRefused("a number in it has a wrong length")
    return np.frombuffer(arguments[1], dtype)[0].item()


def _dtype(arguments: tuple[object, ...]) -> object:
    if not arguments or not isinstance(arguments[0], str) or not 0 < len(arguments[0]) < 100:
        raise PickleRefused("an array in it has no type")
    return DType(arguments[0])


def _encoded(arguments: tuple[object, ...]) -> object:
    """Bytes as protocol 2 writes them: text and the name of its encoding."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ("latin1", "latin-1"):
        raise PickleRefused("it encodes text in an unknown way")
    return arguments[0].encode("latin-1")


def _bytearray(arguments: tuple[object, ...]) -> object:
    data = only(arguments) if arguments else b""
    if not isinstance(data, bytes | Span):
        raise PickleRefused("bytes in it are not made of bytes")
    return data


def _typed_list(arguments: tuple[object, ...]) -> object:
    value = only(arguments[:1])
    if not isinstance(value, list | tuple):
        raise PickleRefused("a list in it is not made of a list")
    return list(value)


def _tagged(arguments: tuple[object, ...]) -> object:
    return arguments[0] if arguments else None


_NUMPY = ("numpy.core", "numpy._core")
BUILDERS: dict[object, Callable[[tuple[object, ...]], object]] = {
    Global("collections", "OrderedDict"): _ordered_dict,
    Global("collections", "defaultdict"): _default_dict,
    Global("builtins", "set"): collection,
    Global("builtins", "frozenset"): collection,
    Global("__builtin__", "set"): collection,
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
TYPES: dict[object, torch.dtype | None] = {
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
DICTIONARIES = {
    Global("dnnlib.util", "EasyDict"),
    Global("dnnlib", "EasyDict"),
    Global("collections", "OrderedDict"),
}
_RECORDS = {
    "argparse.Namespace",
    "types.SimpleNamespace",
    "dnnlib.tflib.network.Network",
}


def is_record(found: Global) -> bool:
    """Return whether a name is a class whose objects are kept as their state."""
    return found in DICTIONARIES or str(found) in _RECORDS or found.module.startswith("torch.nn.modules.")


def storage_type(value: object) -> torch.dtype:
    """Return the element type of a storage class's name.

    Raises:
        PickleRefused: If it is none.
    """
    dtype = TYPES.get(value) if isinstance(value, Global) else None
    if dtype is None:
        raise PickleRefused("a storage in it is of an unknown type")
    return dtype
