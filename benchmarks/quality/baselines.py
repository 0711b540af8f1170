"""Two classical baselines on the same generator: linear directions of labels, and principal components.

Both move every row of w_plus, or some of them, along a direction of w. They see labels where style directions
see only CLIP: which attributes the sampled portraits have, known here from the factors of z.

Sources of the ideas: InterFaceGAN (Shen et al. 2020, section 3), a linear classifier's normal per attribute;
GANSpace (Haerkoenen et al. 2020, section 3), principal components of w applied to ranges of layers.

Shapes: n samples, W w_dim, L rows of w_plus, Q components.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.quality.prompts import PROMPTS
from benchmarks.quality.scores import unrelated
from benchmarks.quality.sweep import Portraits
from benchmarks.quality.ways import Candidate
from benchmarks.quality.world import QualityWorld
from styleclip.data.world.captions import ATTRIBUTES, truths
from styleclip.data.world.quality import Prompt
from styleclip.data.world.renderer import INDEX, factors_of
from styleclip_core.style_space import StyleCode

SAMPLES, COMPONENTS = 8000, 32
_LABELLED = 16  # portraits that every component is tried on
_SEED, _STEP = 8101, 3.0  # how far a component is tried, in its deviations


def samples(world: QualityWorld) -> tuple[Tensor, Tensor]:
    """Return sampled w ``[n, W]`` and which attributes they show, ``[n, number of attributes]`` bool."""
    random = torch.Generator().manual_seed(_SEED)
    z = torch.randn(SAMPLES, world.generator.config.z_dim, generator=random)
    with torch.no_grad():
        w = torch.cat([world.generator.map(part)[:, 0] for part in z.split(500)])
    return w, truths(factors_of(z))


def normals(world: QualityWorld) -> dict[str, Tensor]:
    """Return a unit direction of w for every prompt, ``[W]``: its attribute's logistic regression."""
    w, true = samples(world)
    order = [each.name for each in ATTRIBUTES]
    found = {}
    for prompt in PROMPTS:
        model = LogisticRegression(C=1.0, max_iter=300).fit(
            w.numpy(), true[:, order.index(prompt.name)].numpy()
        )
        normal = torch.from_numpy(model.coef_[0].astype(np.float32))
        found[prompt.name] = normal / normal.norm()
    return found


@torch.no_grad()
def components(world: QualityWorld) -> dict[str, Tensor]:
    """Return principal components times their deviation ``[Q, W]``, and what each does to labelled portraits.

    ``change [Q, R, n, K]`` is that of the factors, by a range of layers, R of them.
    """
    w, _ = samples(world)
    centred = w - w.mean(dim=0)
    _, size, basis = torch.linalg.svd(centred, full_matrices=False)
    directions = basis[:COMPONENTS] * size[:COMPONENTS, None] / len(w) ** 0.5
    start = w[:_LABELLED, None].expand(-1, world.generator.num_ws, -1)
    before = world.regressor.read(world.draw(world.generator.styles(start)))
    change = torch.stack([
        torch.stack([
            world.regressor.read(world.draw(_moved(world, start, direction, rows, _STEP))) - before
            for rows in ranges(world.generator.num_ws)
        ])
        for direction in directions
    ])  # fmt: skip
    return {"directions": directions, "change": change}


def ranges(num_ws: int) -> list[slice]:
    """Return the ranges of rows that a component may move: all, and thirds."""
    third = -(-num_ws // 3)
    return [
        slice(0, num_ws),
        *(slice(first, min(first + third, num_ws)) for first in range(0, num_ws, third)),
    ]


def _moved(world: QualityWorld, w_plus: Tensor, direction: Tensor, rows: slice, strength: float) -> StyleCode:
    moved = w_plus.clone()
    moved[:, rows] += strength * direction
    return world.generator.styles(moved)


def linear(world: QualityWorld, prompt: Prompt, start: Portraits) -> Iterator[Candidate]:
    """Yield the edit along the normal of the prompt's attribute."""
    direction = world.kept("linear", partial(normals, world))[prompt.name]
    everywhere = slice(0, world.generator.num_ws)
    yield Candidate(
        "", lambda strength: _moved(world, start.w_plus, direction, everywhere, strength), 1.0
    )  # fmt: skip


def component(world: QualityWorld, prompt: Prompt, start: Portraits) -> Iterator[Candidate]:
    """Yield the component, range and sign that move the target most against the others, by the labels."""
    known = world.kept("components", partial(components, world))
    change, directions = known["change"].mean(dim=2), known["directions"]
    target = change[:, :, INDEX[prompt.factor]] * prompt.sign  # [Q, R]
    others = known["change"].abs().mean(dim=2)[:, :, unrelated(prompt)].mean(dim=2)
    value = target.abs() / (others + 0.05)
    best = int(value.argmax())
    number, part = divmod(best, value.shape[1])
    direction = directions[number] * target[number, part].sign()
    rows = ranges(world.generator.num_ws)[part]
    yield Candidate(
        f"c{number}", lambda strength: _moved(world, start.w_plus, direction, rows, strength), 2.0
    )  # fmt: skip
