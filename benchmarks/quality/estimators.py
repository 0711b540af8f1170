"""Other estimators of a style direction from the same table, to be judged beside the threshold rule.

Each takes as many channels as reach the default beta, and the rule's form: relevance divided by the largest,
times the channel's deviation. None has a setting that was tuned on a prompt that judges.

Shapes: N editable style channels, D width of the CLIP embedding, k channels that take part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.quality.sweep import Portraits
from benchmarks.quality.ways import DEFAULT, Candidate, along
from benchmarks.quality.world import QualityWorld
from styleclip.data.world.quality import Prompt
from styleclip_core.editing import ChannelSelection, select_channels

_ENERGY, _RIDGE = 0.9, 0.1  # of the rows' energy that is kept; of the mean eigenvalue that is added

Estimator = Callable[[Tensor, Tensor], Tensor]  # rows [N, D], text direction [D] -> weights [N]


def projected(rows: Tensor, text: Tensor) -> Tensor:
    """Return relevance for what of a text the generator can express: its part in the rows' main subspace."""
    _, size, basis = torch.linalg.svd(rows, full_matrices=False)
    energy = size.square().cumsum(dim=0) / size.square().sum()
    main = basis[: int((energy < _ENERGY).sum()) + 1]
    return rows @ F.normalize(main.T @ (main @ text), dim=0)


def whitened(rows: Tensor, text: Tensor) -> Tensor:
    """Return relevance where directions that many channels share count less: rows whitened by all rows."""
    covariance = rows.T @ rows / len(rows)
    values, vectors = torch.linalg.eigh(covariance)
    scale = (values.clamp(min=0) + _RIDGE * values.mean()).rsqrt()
    unit = F.normalize(rows @ vectors * scale, dim=1)
    return unit @ F.normalize(vectors.T @ text * scale, dim=0)


def plain(rows: Tensor, text: Tensor) -> Tensor:
    """Return relevance by the rows as they are, which need not have one length."""
    return rows @ text


def by(
    estimator: Estimator, rows: Callable[[QualityWorld], Tensor] | None = None
) -> Callable[[QualityWorld, Prompt, Portraits], Iterator[Candidate]]:
    """Return the way that weighs channels by an estimator, from the exact table's unit rows or others."""
    return partial(_edits, estimator, rows or (lambda world: F.normalize(world.exact_table.direction, dim=1)))


def _edits(
    estimator: Estimator,
    rows: Callable[[QualityWorld], Tensor],
    world: QualityWorld,
    prompt: Prompt,
    start: Portraits,
) -> Iterator[Candidate]:
    text = world.texts[prompt.name]
    count = int((world.exact_table.relevance(text).abs() >= DEFAULT[1]).sum())
    weights = estimator(rows(world), text)
    found = select_channels(world.generator.layout, weights, world.deviations, ChannelSelection(top_k=count))
    yield along(f"k{count}", found.delta, start, first=2.0)
