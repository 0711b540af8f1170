"""One edit at rising strengths: what it moves, measured until the target has moved far enough.

A sweep holds raw measurements, per strength and portrait; every figure of the table is computed from them.
Strengths are sought by the truth, so that two methods can be compared at the same move of the target.
*Room* is how far portraits can go: the mean distance of their readings from the factor's end.

Shapes: S strengths, B portraits, K factors, D width of the CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.methods import World
from styleclip.data.world.quality import Prompt
from styleclip.data.world.renderer import INDEX
from styleclip_core.style_space import StyleCode

LEVELS = (0.5, 0.75)  # of the room, where methods are compared
_CLOSE = 0.3  # two strengths this close in effect can be interpolated


@dataclass(frozen=True, eq=False)
class Portraits:
    """Inverted portraits that are edited, and what is known of them before.

    Attributes:
        name: Name of the set.
        w_plus: ``[B, L, W]``.
        codes: Their style codes.
        images: What the generator draws, ``[B, 3, H, H]``.
        readings: Factors read off those, ``[B, K]``.
        embedding: Their CLIP embeddings, ``[B, D]``.
        identity: Their identity embeddings, ``[B, E]``.
    """

    name: str
    w_plus: Tensor
    codes: StyleCode
    images: Tensor
    readings: Tensor
    embedding: Tensor
    identity: Tensor


@torch.no_grad()
def portraits(world: World, name: str, w_plus: Tensor) -> Portraits:
    """Draw and read portraits once."""
    codes = world.generator.styles(w_plus)
    images = world.draw(codes)
    return Portraits(
        name, w_plus, codes, images, world.regressor.read(images), world.clip.embed_images(images),
        world.identity.embed(images),
    )  # fmt: skip


def room(world: World, prompt: Prompt, readings: Tensor) -> Tensor:
    """Return how far each portrait can go towards the prompt, ``[B]``, in deviations of its factor."""
    end = torch.full_like(readings, 1.0 if prompt.sign > 0 else 0.0)
    index = INDEX[prompt.factor]
    distance: Tensor = prompt.sign * (world.regressor.standardize(end) - readings)[:, index]
    return distance.clamp(min=0)


@torch.no_grad()
def sweep(
    world: World,
    start: Portraits,
    prompt: Prompt,
    move: Callable[[float], StyleCode],
    first: float,
    *,
    most: int = 8,
) -> dict[str, Tensor]:
    """Edit at rising strengths until the levels lie between measured ones.

    Args:
        world: The models.
        start: Portraits to edit.
        prompt: Whose factor is the target.
        move: Strength -> edited style codes of the portraits.
        first: Strength to begin with.
        most: Strengths to measure, at most.

    Returns:
        ``strengths [S]``, rising; ``change [S, B, K]`` of the readings; ``embedding [S, B, D]``;
        ``identity [S, B]``, cosine to before; ``pixels [S, B]``, mean absolute change, 0..1.
    """
    rooms, index = room(world, prompt, start.readings).mean(), INDEX[prompt.factor]
    found: dict[float, dict[str, Tensor]] = {}
    moved = {0.0: 0.0}
    strength: float | None = first
    while strength is not None and len(found) < most:
        found[strength] = _measure(world, start, move(strength))
        change = found[strength]["change"][:, index].mean()
        moved[strength] = (prompt.sign * change / rooms).item()
        strength = propose(moved)
    order = sorted(found)
    parts = {name: torch.stack([found[each][name] for each in order]) for name in found[order[0]]}
    return {"strengths": torch.tensor(order), **parts}


def propose(moved: dict[float, float]) -> float | None:
    """Return the strength to try next, from strength -> fraction of the room; None if all is known."""
    order = sorted(moved)
    for level in LEVELS:
        above = next((place for place, each in enumerate(order) if moved[each] >= level), None)
        if above is None:
            last, before = order[-1], order[-2]
            if moved[last] <= moved[before] + 0.01 and len(order) > 3:
                return None  # more does not help any more
            gain = 1.15 * level / max(moved[last], 0.05)
            return last * min(max(gain, 1.3), 2.5)
        low, high = order[above - 1], order[above]
        if moved[high] - moved[low] > _CLOSE:
            share = (level - moved[low]) / (moved[high] - moved[low])
            return low + min(max(share, 0.2), 0.8) * (high - low)
    return None


def _measure(world: World, start: Portraits, codes: StyleCode) -> dict[str, Tensor]:
    images = world.draw(codes)
    return {
        "change": world.regressor.read(images) - start.readings,
        "embedding": world.clip.embed_images(images),
        "identity": (world.identity.embed(images) * start.identity).sum(dim=1),
        "pixels": (images.clamp(-1, 1) - start.images.clamp(-1, 1)).abs().mean(dim=(1, 2, 3)) / 2,
    }
