"""A dictionary learnt from moves of many channels at once: the idea of Multi2One (ICLR 2023).

A row of the relevance table says what one channel does alone; a dictionary of the same shape is fitted to
what unsupervised directions of 10, 30 and 50 channels do together. It starts at the table and is held near
it: there are far fewer directions than numbers.

Shapes: R moves, N editable style channels, D width of the CLIP embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.quality.world import QualityWorld
from styleclip_core.style_space import StyleCode

_CHANNELS = (10, 30, 50)
_COMPONENTS, _LAYER_COMPONENTS = 40, 4  # principal components of all channels, and of every layer's
_SIZE = 10.0  # length of a move, in deviations
_CODES, _STEPS, _RATE = 16, 3000, 1e-3
_INVERSE, _NEAR = 0.1, 1.0  # of the loss's terms: the published one's, and of the distance to the table


def learnt_rows(world: QualityWorld) -> Tensor:
    """Return the fitted dictionary, ``[N, D]``."""

    def make() -> dict[str, Tensor]:
        moves, changes = _measured(world)
        return {"rows": _fit(world.exact_table.direction, moves, changes)}

    return world.kept("dictionary", make)["rows"]


def directions(codes: StyleCode, deviations: Tensor) -> Tensor:
    """Return unit moves of few channels, ``[R, N]`` in deviations: components of style codes, cut short."""
    layout = codes.layout
    values = codes.flat()[:, layout.editable_index] / deviations
    values = values - values.mean(dim=0)
    found = list(_components(values, _COMPONENTS))
    for part in layout.editable_slices.values():
        for component in _components(values[:, part], _LAYER_COMPONENTS):
            whole = torch.zeros(layout.num_editable)
            whole[part] = component
            found.append(whole)
    few = []
    for each in found:
        for count in _CHANNELS:
            least = each.abs().topk(count).values[-1]
            few.append(F.normalize(torch.where(each.abs() >= least, each, torch.zeros_like(each)), dim=0))
    return torch.stack(few)


def _components(values: Tensor, count: int) -> Tensor:
    *_, components = torch.linalg.svd(values, full_matrices=False)
    found: Tensor = components[:count]
    return found


@torch.no_grad()
def _measured(world: QualityWorld) -> tuple[Tensor, Tensor]:
    """Return moves and what each changes in the embedding, a mean of unit changes as in the table."""
    codes = world.sampled.select(slice(_CODES))
    moves = directions(world.generator.styles(world.training), world.deviations)
    changes = []
    for move in moves:
        step = _SIZE * move * world.deviations
        up, down = (world.clip.embed_images(world.draw(codes.add(sign * step))) for sign in (1, -1))
        changes.append(F.normalize(up - down, dim=1).mean(dim=0))
    return moves, torch.stack(changes)


@torch.enable_grad()
def _fit(table: Tensor, moves: Tensor, changes: Tensor) -> Tensor:
    rows = table.clone().requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=_RATE)
    wanted = F.normalize(changes, dim=1)
    for _ in range(_STEPS):
        forth = (F.normalize(moves @ rows, dim=1) - wanted).square().sum(dim=1).mean()
        back = (F.normalize(changes @ rows.T, dim=1) - moves).square().sum(dim=1).mean()
        near = (rows - table).square().sum(dim=1).mean()
        optimizer.zero_grad()
        (forth + _INVERSE * back + _NEAR * near).backward()
        optimizer.step()
    return rows.detach()
