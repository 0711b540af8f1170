"""What images look like to the networks that judge edits; of inversions it is kept for the edits that follow.

Where a run edits what it inverts, an inversion that has just been drawn is looked at there and then, so that
the edits of its shard need not draw it once more. What is kept is named by the very latents that were drawn,
and is what drawing them again would give: a run that finds nothing here, on another machine or after a crash,
writes the same rows.

Shapes: B images, D width of the CLIP embedding, E of the identity embedding.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from styleclip.tasks.running.run import Run

_MOST = 8192  # images whose embeddings are kept, of 2 to 4 KB each


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A batch of images as the judges see it.

    Attributes:
        clip: Unit CLIP embeddings, ``[B, D]``.
        identity: Unit identity embeddings, ``[B, E]``, if there is a network.
        image: The images themselves, ``[B, 3, H, V]``, if there is a perceptual network to compare them.
    """

    clip: Tensor
    identity: Tensor | None
    image: Tensor | None


def see(run: Run, image: Tensor) -> Seen:
    """Embed images ``[B, 3, H, V]`` in -1..1."""
    identity = run.identity.embed(image) if run.identity else None
    return Seen(run.clip.embed_whole(image), identity, image if run.perceptual else None)


def likeness(run: Run, image: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return LPIPS and identity similarity of inversions, ``[B]`` each, where there are networks for them."""
    scores = {}
    if run.perceptual:
        scores["lpips"] = run.perceptual.distance(image, target)
    if run.identity:
        scores["identity"] = (run.identity.embed(image) * run.identity.embed(target)).sum(dim=1)
    return scores


class Memory:
    """Looks at batches of inversions, for any number of threads; the oldest are forgotten first."""

    def __init__(self, most: int = _MOST) -> None:
        self._most, self._lock = most, threading.Lock()
        self._kept: OrderedDict[str, Seen] = OrderedDict()
        self._images = 0

    def keep(self, run: Run, w_plus: Tensor, image: Tensor) -> None:
        """Look at images ``[B, 3, H, V]`` that the generator has drawn of latents, and remember that.

        Where the images would have to be kept too, nothing is: that may be more memory than it saves time.
        """
        if run.perceptual:
            return
        seen, name = see(run, image), _name(run, w_plus)
        with self._lock:
            if name not in self._kept:
                self._images += len(w_plus)
            self._kept[name] = seen
            while self._images > self._most:
                _, oldest = self._kept.popitem(last=False)
                self._images -= len(oldest.clip)

    def take(self, run: Run, w_plus: Tensor) -> Seen | None:
        """Return what was seen of a batch of latents, and forget it; None if nothing is known."""
        # an earlier run of this process, without such a network, may have left these latents without images
        if run.perceptual:
            return None
        name = _name(run, w_plus)
        with self._lock:
            seen = self._kept.pop(name, None)
            self._images -= len(w_plus) if seen else 0
        return seen


def _name(run: Run, w_plus: Tensor) -> str:
    """Return the name of a batch: its latents, bit for bit and in order, and whoever draws and looks."""
    hashes = run.hashes
    digest = hashlib.blake2b(w_plus.detach().cpu().contiguous().numpy().tobytes(), digest_size=16)
    return " ".join([hashes.generator, hashes.clip, hashes.identity, run.device, digest.hexdigest()])


MEMORY = Memory()
