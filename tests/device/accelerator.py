"""An accelerator that computes on the CPU and keeps account of what a real one would wait for.

It is a device of its own for torch, so an operation that mixes it with the host is found, as on CUDA. Every
crossing is counted by the function of the product that asks for it:

    mismatch   tensors of host and device in one operation, which CUDA refuses
    sync       the host waits for the device: ``.item()``, ``.cpu()``, a mask as an index, a solver
    upload     the device waits for memory of the host: ``torch.tensor(..., device=)``, a list as an index
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.utils.backend_registration as registration
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

NAME = "accountant"
ROOT = Path(__file__).parents[2]
PRODUCT = tuple(str(ROOT / part) + "/" for part in ("styleclip/flows", "styleclip/tasks", "styleclip_core"))
aten = torch.ops.aten

# operations whose result, or its size, the host must know before it goes on
WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default,
    aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default, aten.is_nonzero.default,
    aten.repeat_interleave.Tensor, aten.bincount.default,
}  # fmt: skip
SOLVERS = (
    "linalg_qr", "linalg_lstsq", "linalg_inv", "linalg_lu", "linalg_cholesky", "_linalg_svd", "_linalg_eigh",
    "_linalg_solve", "_linalg_det", "linalg_eig", "cholesky", "geqrf",
)  # fmt: skip
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class _Backend(registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)


class Account:
    """Crossings, counted by kind and function: ``styleclip_core/x.py:evaluate``."""

    def __init__(self) -> None:
        self.found: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self.open = True

    def note(self, kind: str, what: str) -> None:
        if self.open:
            self.found[kind, _place(), what] += 1

    def of(self, kind: str) -> dict[str, int]:
        """Return how often each function of the product did one kind of crossing."""
        places: collections.Counter[str] = collections.Counter()
        for (each, place, _), count in self.found.items():
            if each == kind:
                places[place] += count
        return dict(sorted(places.items()))


_account = Account()


@contextlib.contextmanager
def accounting() -> Iterator[Account]:
    """Keep account of a block of work."""
    global _account
    before, _account = _account, Account()
    try:
        with mock.patch.object(torch, "tensor", _tensor), _Everything():
            yield _account
    finally:
        _account = before


def _place() -> str:
    """Return the innermost function of the product that is being executed."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PRODUCT):
            return f"{name[len(str(ROOT)) + 1 :]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class OnDevice(torch.Tensor):
    """A tensor of the accelerator; ``raw`` is where its numbers are."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            layout=raw.layout, device=DEVICE, requires_grad=False,
        )  # fmt: skip
        made.raw = raw
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.raw!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"a tensor of {NAME} has no memory that numpy could see; call .cpu() first")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"a tensor of {NAME} has no memory that numpy could see; call .cpu() first")

    def tolist(self) -> Any:
        _account.note("sync", "tolist")
        return self.raw.detach().tolist()


def to_device(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor on the accelerator; not accounted for."""
    return OnDevice(value.detach().clone())


def move(module: nn.Module) -> nn.Module:
    """Move a network to the accelerator, in place."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                each._parameters[name] = nn.Parameter(to_device(parameter), parameter.requires_grad)
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = to_device(buffer)
    return module


_plain_tensor = torch.tensor


def _tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
    made = _plain_tensor(data, *args, **kwargs)
    if not _is_ours(device):
        return made.to(device) if device is not None else made
    _account.note("upload", "torch.tensor")
    return to_device(made)


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


class _Everything(TorchDispatchMode):
    """Also what makes tensors on the device out of none: ``torch.zeros(..., device=)``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _raw(tree: Any) -> Any:
    return tree_map_only(OnDevice, lambda each: each.raw, tree)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do one operation where its tensors are, and note what a device would wait for."""
    name = str(func).removeprefix("aten.").partition(".")[0]
    if func in (aten._to_copy.default, aten.copy_.default):
        return _copy(func, args, kwargs)

    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    ours = [each for each in tensors if isinstance(each, OnDevice)]
    others = [each for each in tensors if not isinstance(each, OnDevice)]
    if ours and (func in WAITING or name.startswith(SOLVERS)):
        _account.note("sync", name)
    if name in INDEXED:
        others = _note_indices(args, others)

    # a number of the host goes along with an operation; an array does not
    if ours and any(each.ndim for each in others):
        _account.note("mismatch", f"{name} of {[tuple(each.shape) for each in tensors]}")

    here = bool(ours)
    if kwargs.get("device") is not None:
        here = _is_ours(kwargs["device"])
        kwargs = kwargs | ({"device": torch.device("cpu")} if here else {})
    result = func(*_raw(args), **_raw(kwargs))
    if not here:
        return result
    return tree_map_only(torch.Tensor, _wrapping(ours if func._schema.is_mutable else []), result)


def _wrapping(ours: list[OnDevice]) -> Callable[[torch.Tensor], OnDevice]:
    """Return what wraps a result; one that is an argument, changed in place, keeps its wrapper."""
    known = {id(each.raw): each for each in ours}

    def wrapped(each: torch.Tensor) -> OnDevice:
        if isinstance(each, OnDevice):
            return each
        return known[id(each)] if id(each) in known else OnDevice(each)

    return wrapped


def _copy(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Copy between devices or kinds of numbers."""
    if func is aten.copy_.default:
        target, source = args[:2]
        if not isinstance(target, OnDevice) and not isinstance(source, OnDevice):
            return func(*args, **kwargs)
        if isinstance(target, OnDevice) != isinstance(source, OnDevice):
            _account.note("upload" if isinstance(target, OnDevice) else "sync", "copy_")
        func(_raw(target), _raw(source), *args[2:], **kwargs)
        return target

    source, wanted = args[0], kwargs.get("device")
    ours = isinstance(source, OnDevice)
    there = ours if wanted is None else _is_ours(wanted)
    if not ours and not there:
        return func(*args, **kwargs)
    if ours != there:
        _account.note("upload" if there else "sync", "copy")
    copied = func(_raw(source), **{**kwargs, "device": torch.device("cpu")})
    return OnDevice(copied) if there else copied


def _note_indices(args: Any, others: list[torch.Tensor]) -> list[torch.Tensor]:
    """Note what an index costs, and return the tensors that must lie where the operation is."""
    target, indices = args[0], [each for each in args[1] if each is not None]
    if isinstance(target, OnDevice):
        if any(each.dtype == torch.bool for each in indices):
            _account.note("sync", "a mask as an index")
        if any(not isinstance(each, OnDevice) for each in indices):
            _account.note("upload", "an index of the host")
    elif any(isinstance(each, OnDevice) for each in indices):
        _account.note("mismatch", "the host's array indexed from the device")
    return [each for each in others if not any(each is index for index in indices)]
