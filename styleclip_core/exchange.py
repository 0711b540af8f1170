"""Artifacts of the published StyleCLIP code <-> ours: relevance tables, statistics, codes, latents.

``fs3.npy`` holds unit rows, ``[rows, D]``, for the first layers that are not toRGB: 5376 of them from the
published script, 6048 in the published FFHQ table. ``S_mean_std`` is a pickle of two lists of arrays, one
array per style layer. ``W.npy`` is ``[N, 512]``; ``w_plus.npy`` and the ``.pt`` files are ``[N, L, 512]``.

Shapes: N codes, R rows of a table, D width of the CLIP embedding, L rows of w_plus, W w_dim.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.errors import CheckpointError, LayoutMismatchError
from styleclip_core.files.checkpoint import DAMAGE, is_array, open_checkpoint, unreadable, written_aside
from styleclip_core.relevance import RelevanceTable
from styleclip_core.sampling import ChannelStatistics
from styleclip_core.style_space import StyleLayout

_PUBLISHED_RESOLUTION = 128  # the published script measures layers up to this side
_SAMPLES_OF_STATISTICS = 100_000


def read_array(path: str | Path, *, axes: int) -> np.ndarray:
    """Read a ``.npy`` file of floating-point numbers without loading it into memory.

    Raises:
        CheckpointError: If it is missing, damaged, holds objects, or has another number of axes.
    """
    # mapped, not read: w_plus of 100,000 codes at 1024 pixels are 3.7 GB
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGE as error:
        raise unreadable(path, error) from error

    if not isinstance(array, np.ndarray) or array.ndim != axes or array.dtype.kind != "f":
        raise CheckpointError(
            f"{path} holds {getattr(array, 'dtype', 'several arrays')} of shape "
            f"{list(getattr(array, 'shape', ()))}; an array of floats with {axes} axes is expected"
        )
    return array


def relevance_from_fs3(path: str | Path, layout: StyleLayout) -> RelevanceTable:
    """Read a published relevance table.

    The file stores neither how many images a row is a mean of nor how well they agreed: its rows are
    renormalized. Each row counts as one observation (n = 1, its standard error unknown), and a row that is
    NaN or zero as a channel that CLIP cannot see. So do all channels of layers beyond the last row.

    Raises:
        CheckpointError: If the file is no such table.
        LayoutMismatchError: If its rows do not end where a layer of this generator ends.
    """
    stored = np.array(read_array(path, axes=2), np.float32)

    # a row too many or too few would shift every channel behind it, and the edits would still look like edits
    ends = list(itertools.accumulate(layer.channels for layer in layout.editable))
    if len(stored) not in ends:
        raise LayoutMismatchError(
            f"{path} has {len(stored)} rows; for this generator a table has one of "
            f"{', '.join(map(str, ends))}: give the generator that the table was made with"
        )

    rows = torch.from_numpy(stored)
    seen = rows.isfinite().all(dim=1) & (rows.norm(dim=1) > 0)

    direction = torch.zeros(layout.num_editable, rows.shape[1])
    direction[: len(rows)] = torch.where(seen[:, None], F.normalize(rows.nan_to_num(), dim=1), 0.0)

    n = torch.zeros(layout.num_editable, dtype=torch.int64)
    n[: len(rows)] = seen.long()
    return RelevanceTable(layout, n, direction)


def write_fs3(
    table: RelevanceTable, path: str | Path, *, published_layers: bool = False, half: bool = False
) -> int:
    """Write a table as the published code reads it: unit rows, zero where CLIP sees nothing.

    Args:
        table: What to write.
        path: The ``.npy`` file.
        published_layers: Only the layers up to 128 pixels, as the published script measures.
        half: float16 instead of float32.

    Returns:
        The number of rows.
    """
    layers = [
        layer
        for layer in table.layout.editable
        if not published_layers or layer.resolution <= _PUBLISHED_RESOLUTION
    ]

    # a channel that CLIP cannot see is a row of zeros, never one of NaN
    rows = sum(layer.channels for layer in layers)
    unit = torch.where(table.n[:, None] > 0, F.normalize(table.direction, dim=1), 0.0)[:rows].nan_to_num()
    _write_npy(path, unit.numpy().astype(np.float16 if half else np.float32))
    return rows


def statistics_from_pickle(
    path: str | Path, layout: StyleLayout, *, n: int = _SAMPLES_OF_STATISTICS
) -> ChannelStatistics:
    """Read ``S_mean_std``: mean and deviation of every style channel, toRGB too.

    Args:
        path: The pickle; read as data.
        layout: Names the channels.
        n: How many codes it was measured on, which the file does not store; 100,000 as published.

    Returns:
        The statistics; the extremes, which the file does not store either, are NaN.

    Raises:
        CheckpointError: If the file is missing, damaged, hostile or no such pickle.
        LayoutMismatchError: If it describes another generator.
    """
    with open_checkpoint(path) as file:
        content = file.content
        if not isinstance(content, list | tuple) or len(content) != 2:
            raise CheckpointError(
                f"{path} is no S_mean_std: a list of means and one of deviations is expected"
            )
        mean, std = (_joined(path, file.tensor, part, layout) for part in content)

    if not bool((std >= 0).all()):
        raise CheckpointError(f"{path} is no S_mean_std: it holds a negative deviation; fetch it again")

    # m2 such that std comes out as stored, whatever n was
    unknown = torch.full_like(mean, torch.nan)
    return ChannelStatistics(n, mean, std.square() * n, unknown, unknown.clone())


def write_statistics(statistics: ChannelStatistics, layout: StyleLayout, path: str | Path) -> None:
    """Write ``S_mean_std`` as the published code reads it: a pickle of two lists of float32 arrays."""
    widths = [layer.channels for layer in layout.layers]
    content = [
        [part.float().numpy() for part in values.split(widths)]
        for values in (statistics.mean, statistics.std)
    ]
    with written_aside(path) as aside:
        aside.write_bytes(pickle.dumps(content, protocol=4))


def read_latents(path: str | Path) -> np.ndarray:
    """Read latents: ``w_plus.npy``, or a ``.pt`` of one tensor or a list of tensors.

    Returns:
        ``[N, L, W]`` float32; for ``.npy`` files mapped, not in memory.

    Raises:
        CheckpointError: If the file is missing, damaged, hostile or of another shape.
    """
    if Path(path).suffix == ".npy":
        return read_array(path, axes=3)

    with open_checkpoint(path) as file:
        content = file.content

        # names under which scripts of the field save latents; a dict of anything else is refused below
        if isinstance(content, dict):
            found = [
                content[name] for name in ("latents", "w_plus", "w", "latent") if is_array(content.get(name))
            ]
            content = found[0] if found else content

        parts = [content] if is_array(content) else content if isinstance(content, list | tuple) else []
        tensors = [file.tensor(part).float() for part in parts if is_array(part)]

    shapes = {tensor.shape[-2:] for tensor in tensors}
    if (
        not tensors
        or len(tensors) != len(parts)
        or len(shapes) != 1
        or any(t.ndim not in (2, 3) for t in tensors)
    ):
        raise CheckpointError(
            f"{path} holds no latents: a tensor [N, L, W] or a list of tensors [L, W] is expected"
        )

    rows: np.ndarray = torch.cat([t if t.ndim == 3 else t[None] for t in tensors]).numpy()
    return rows


def write_latents(w_plus: np.ndarray, path: str | Path) -> None:
    """Write latents ``[N, L, W]`` as ``.npy``, or as the ``.pt`` of one tensor that the mapper reads."""
    if Path(path).suffix == ".npy":
        _write_npy(path, np.asarray(w_plus, np.float32))
        return
    with written_aside(path) as aside:
        torch.save(torch.from_numpy(np.array(w_plus, np.float32)), aside)


def _joined(path: str | Path, read: object, part: object, layout: StyleLayout) -> Tensor:
    assert callable(read)
    if not isinstance(part, list | tuple) or not all(is_array(value) for value in part):
        raise CheckpointError(f"{path} is no S_mean_std: its lists do not hold arrays")
    tensors: Sequence[Tensor] = [read(value).double().reshape(-1) for value in part]

    # the widths are all that the file says of its generator
    widths = [len(tensor) for tensor in tensors]
    expected = [layer.channels for layer in layout.layers]
    if widths != expected:
        raise LayoutMismatchError(
            f"{path} describes style layers of the widths {widths}, the generator has {expected}: "
            "give the generator that it was made with"
        )

    joined = torch.cat(list(tensors))
    if not joined.isfinite().all():
        raise CheckpointError(f"{path} holds values that are not finite; fetch it again")
    return joined


def _write_npy(path: str | Path, array: np.ndarray) -> None:
    with written_aside(path) as aside, aside.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
