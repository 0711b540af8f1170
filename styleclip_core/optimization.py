"""Latent optimization: one code per (image, prompt), by gradient descent (StyleCLIP, section 4).

For a source code w_s and a prompt t, the edited code is

    argmin over w of  1 - cos(E_I(G(w)), E_T(t)) + l2 ||w - w_s||^2 + id (1 - <R(G(w)), R(G(w_s))>)

with E_I, E_T the two towers of CLIP and R an identity network; w runs over W+, over the convolution
channels of S, or over those of them that the prompt concerns (``styleclip_core.relevant``). Where an
effect is wanted, the first term is how many logits of CLIP's probability of t, against a neutral prompt, are
missing: it ends where there is enough, and is of the direction between both prompts and of no other. The
published code generates freely with the CLIP term alone. Many pairs are optimized at once: their losses are
summed, and neither that sum nor Adam, which works element by element, lets one pair see another. A pair
that ends leaves the batch, and the others go on without it.

Shapes: P pairs, A of them still active, L rows of w_plus, W w_dim, M style channels (toRGB too), N editable
ones, D width of the CLIP embedding, H side in pixels. Images are in -1..1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from styleclip_core.descent import Chunks, Progress, cosine_fall, evaluate, only
from styleclip_core.editing import EditedLatents
from styleclip_core.images import pad_square
from styleclip_core.models.clip import ClipModel
from styleclip_core.relevant import RelevantChannels, logit, shares_of_the_way
from styleclip_core.settings.optimization import PRESETS as PRESETS
from styleclip_core.settings.optimization import OptimizationSettings as OptimizationSettings
from styleclip_core.settings.optimization import fitting_chunk as fitting_chunk
from styleclip_core.style_space import StyleCode
from styleclip_core.tuned import AnyGenerator

Embedding = Callable[[Tensor], Tensor]  # images [B, 3, H, H] in -1..1 -> unit rows


@dataclass(frozen=True, slots=True, eq=False)
class OptimizationState:
    """State after an evaluation.

    Attributes:
        step: Number of the evaluation, from 0; the first is of the source itself.
        pairs: Numbers of the pairs it was of, ``[A]`` int64.
        clip: Their CLIP terms, ``[A]``.
        l2: Their squared distances from the source, unweighted, ``[A]``.
        identity: Their identity terms, unweighted, ``[A]``; 0 without an identity network.
        loss: What is minimized, ``[A]``.
        latents: Best codes so far of all pairs (the last ones without patience): w_plus ``[P, L, W]``, or in
            style space flat style codes ``[P, M]``. A pair that diverged keeps its last finite ones.
        moved: The same as a move from the source: in style space what was added to the source's codes, which
            is exactly 0 at toRGB channels, so that those are handed through bit for bit.
        status: How each pair stands, ``[P]``, values of ``Status``.
    """

    step: int
    pairs: Tensor
    clip: Tensor
    l2: Tensor
    identity: Tensor
    loss: Tensor
    latents: Tensor
    moved: EditedLatents
    status: Tensor


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the published schedule: from 0 up over 5 % of the steps, down along a cosine over 25 %."""
    t = step / steps
    return cosine_fall(t, 0.25) * min(1.0, t / 0.05)


def optimize(
    generator: AnyGenerator,
    embed_images: Embedding,
    w_source: Tensor,
    text: Tensor,
    settings: OptimizationSettings,
    *,
    embed_identity: Embedding | None = None,
    offset: Tensor | None = None,
    neutral: Tensor | None = None,
    scale: float = 100.0,
    channels: RelevantChannels | None = None,
) -> Iterator[OptimizationState]:
    """Optimize many (image, prompt) pairs at once and yield after every evaluation.

    Args:
        generator: Draws the images, with its stored noise; its weights stay as they are. Pair k is drawn with
            tuning k, if it is a ``TunedGenerator``.
        embed_images: CLIP's image tower; ``published_embedding`` for the published preprocessing.
        w_source: Code of each pair's image, ``[P, L, W]``; left unchanged.
        text: Unit embedding of each pair's prompt, ``[P, D]``.
        settings: Terms, steps, rate, and pairs at once; without a number of these, P decides it.
        embed_identity: Identity network; needed if ``identity_weight`` is positive, unused otherwise.
        offset: What earlier edits added to each pair's flat style code, ``[P, M]``; None for nothing.
        neutral: Unit embedding of each pair's neutral prompt, ``[P, D]``; needed for an effect.
        scale: What CLIP multiplies cosines by before a softmax, 100 for OpenAI's; for an effect.
        channels: The channels of all pairs, for the space ``relevant``.

    Yields:
        A state per step, until no pair is running; the last holds the result.

    Raises:
        ValueError: If the shapes do not fit, or a term lacks its network, its prompt or its channels.
    """
    _check(generator, w_source, text, settings, embed_identity)
    _check_prompts(text, neutral, settings, channels)
    chunks = Chunks(settings.chunk or fitting_chunk(len(w_source)))
    known = channels.to(w_source) if channels is not None and settings.space == "relevant" else None
    problem = _Problem(generator, embed_images, embed_identity, settings, chunks, scale, known)

    # where the distance is measured from stays, a copy of it moves
    difference = None if neutral is None or not settings.needs_neutral else text - neutral
    first = source = problem.start(w_source.detach(), offset, difference)
    latents = source.moving.clone()
    optimizer = torch.optim.Adam([latents], lr=settings.learning_rate, eps=settings.epsilon)
    progress = Progress(source.moving, settings.patience)
    for step in range(settings.steps):
        pairs = progress.running
        terms, gradient = problem.evaluate(latents, source, text[pairs])
        clip, l2, identity, loss = terms
        fine = loss.isfinite() & (l2 <= settings.max_move**2 * latents[0].numel())
        kept = progress.judge(latents, loss, fine, last=step + 1 == settings.steps)
        yield OptimizationState(
            step, pairs, clip, l2, identity, loss,
            problem.whole(progress.result, first), problem.moved(progress.result, first, w_source),
            progress.status.clone(),
        )  # fmt: skip
        if not len(progress.running):
            return

        optimizer.param_groups[0]["lr"] = settings.learning_rate * learning_rate_factor(step, settings.steps)
        latents.grad = gradient
        optimizer.step()
        if kept is not None:
            latents, optimizer = only(kept, latents, optimizer)
            source = source.select(kept)


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """Where pairs start.

    Attributes:
        pairs: Numbers of the pairs, ``[A]`` int64.
        moving: What is optimized: w_plus ``[A, L, W]``, convolution channels ``[A, N]``, or moves of the
            relevant ones in widths ``[A, N]``.
        styles: Flat style codes of the source, ``[A, M]``.
        offset: What is added to the flat style codes of w_plus, ``[A, M]``, or None.
        identity: Unit identity embeddings of the source, ``[A, D]``, or None.
        embedding: Unit CLIP embeddings of the source, ``[A, D]``, or None.
        difference: Of the embeddings of the two prompts, ``[A, D]``, or None.
    """

    pairs: Tensor
    moving: Tensor
    styles: Tensor
    offset: Tensor | None
    identity: Tensor | None
    embedding: Tensor | None
    difference: Tensor | None

    def select(self, kept: Tensor) -> _Source:
        """Return the sources of some pairs."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: value[kept] for name, value in given.items() if value is not None})


@dataclass(frozen=True, eq=False)
class _Problem:
    """The objective: what moves, how it becomes an image, and the three terms."""

    generator: AnyGenerator
    embed_images: Embedding
    embed_identity: Embedding | None
    settings: OptimizationSettings
    chunks: Chunks
    scale: float = 100.0
    channels: RelevantChannels | None = None

    @torch.no_grad()
    def start(self, w_source: Tensor, offset: Tensor | None, difference: Tensor | None) -> _Source:
        """Return where the pairs start."""
        count = len(w_source)
        pairs = torch.arange(count, device=w_source.device)
        bare = _Source(pairs, w_source, w_source, offset, None, None, difference)
        parts = self.chunks.over(count, w_source.device, lambda index: self._start(bare.select(index)))
        joined = {
            each.name: torch.cat([getattr(part, each.name) for part in parts])[:count]
            for each in fields(bare)
            if getattr(parts[0], each.name) is not None
        }
        return replace(bare, **joined)

    def _start(self, bare: _Source) -> _Source:
        """Return where the pairs of a chunk start."""
        styles = self.generator.styles(bare.moving).flat()
        styles = styles if bare.offset is None else styles + bare.offset
        edits = self.settings.mode == "edit"
        weighs = self.embed_identity is not None and edits and self.settings.identity_weight > 0

        # drawn before any move only where something is compared with it
        image = self._draw(bare.pairs, styles) if weighs or bare.difference is not None else None
        identity = embedding = None
        if image is not None and self.embed_identity is not None and weighs:
            identity = self.embed_identity(image)
        if image is not None and bare.difference is not None:
            embedding = self.embed_images(image)

        moving = bare.moving if self.settings.space == "w_plus" else styles[:, self.editable]
        found = replace(bare, moving=moving, styles=styles, identity=identity, embedding=embedding)
        return found if self.channels is None else replace(found, moving=self._begin(found))

    def _begin(self, source: _Source) -> Tensor:
        """Return where the relevant channels of a chunk begin, in widths: at the effect, ``[A, N]``."""
        channels, embedding, difference = self.channels, source.embedding, source.difference
        if channels is None or embedding is None or difference is None:
            raise ValueError("relevant channels begin at an effect, and there is no prompt to see it by")
        styles, wanted = source.moving, logit(self.settings.effect or 0.5)

        def seen(share: float) -> Tensor:
            image = self._draw(source.pairs, self.whole(channels.begin(styles, share), source))
            return self._logits(self.embed_images(image), difference)

        before = self._logits(embedding, difference)
        share = shares_of_the_way(before, seen, wanted, channels.shares)
        return channels.begin(styles, share[:, None])

    def _logits(self, embedding: Tensor, difference: Tensor) -> Tensor:
        return self.scale * (embedding * difference).sum(dim=1)

    def whole(self, moving: Tensor, source: _Source) -> Tensor:
        """Return w_plus as it is, or convolution channels among the toRGB channels of the source."""
        if self.settings.space == "w_plus":
            return moving.clone()
        if self.channels is not None:
            # what has no width is added a 0, and stays bit for bit
            return source.styles.index_add(1, self.editable, self.channels.width * moving)
        return source.styles.index_copy(1, self.editable, moving)

    def moved(self, moving: Tensor, source: _Source, w_source: Tensor) -> EditedLatents:
        """Return w_plus as it is, or the source with what was added to its style codes."""
        if self.settings.space == "w_plus":
            return EditedLatents(moving.clone(), source.offset)
        # a difference of whole codes would move toRGB by rounding errors
        change = moving - source.moving if self.channels is None else self.channels.width * moving
        added = torch.zeros_like(source.styles).index_copy(1, self.editable, change)
        return EditedLatents(w_source, source.offset).add(added)

    def evaluate(self, moving: Tensor, source: _Source, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the three terms and the loss, ``[4, A]``, and the loss's gradient, ``[A, ...]``."""
        settings = self.settings

        def terms(latents: Tensor, places: Tensor) -> Tensor:
            clip, l2, identity = self.terms(latents, source.select(places), text[places])
            loss = clip
            if settings.mode == "edit":
                loss = clip + settings.l2_weight * l2 + settings.identity_weight * identity
            return torch.stack([clip, l2, identity, loss])

        places = torch.arange(len(moving), device=moving.device)
        return evaluate(moving, places, terms, chunks=self.chunks)

    def terms(self, moving: Tensor, source: _Source, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the CLIP, L2 and identity terms, unweighted, ``[A]`` each."""
        if self.settings.space == "w_plus":
            styles = self.generator.styles(moving).flat()
            styles = styles if source.offset is None else styles + source.offset
        else:
            styles = self.whole(moving, source)
        image = self._draw(source.pairs, styles)
        clip = self._clip(self.embed_images(image), source, text)
        l2 = (moving - source.moving).square().flatten(1).sum(dim=1)
        identity = torch.zeros_like(clip)
        if self.embed_identity is not None and source.identity is not None:
            identity = 1 - (self.embed_identity(image) * source.identity).sum(dim=1)
        return clip, l2, identity

    def _clip(self, embedding: Tensor, source: _Source, text: Tensor) -> Tensor:
        """Return the CLIP term, ``[A]``."""
        if self.settings.effect is None or source.difference is None:
            return 1 - (embedding * text).sum(dim=1)
        return (logit(self.settings.effect) - self._logits(embedding, source.difference)).clamp(min=0)

    def _draw(self, pairs: Tensor, flat: Tensor) -> Tensor:
        return self.generator.take(pairs).synthesize(StyleCode.from_flat(self.generator.layout, flat))

    @cached_property
    def editable(self) -> Tensor:
        """Places of the convolution channels in a flat style code, ``[N]``; brought to the device once."""
        return self.generator.layout.editable_index.to(self.generator.device)


def _check(
    generator: AnyGenerator,
    w_source: Tensor,
    text: Tensor,
    settings: OptimizationSettings,
    embed_identity: Embedding | None,
) -> None:
    expected = (generator.num_ws, generator.config.w_dim)
    if w_source.ndim != 3 or not len(w_source) or w_source.shape[1:] != expected:
        raise ValueError(f"w_source must be [P, {expected[0]}, {expected[1]}], got {list(w_source.shape)}")
    if text.ndim != 2 or len(text) != len(w_source):
        raise ValueError(
            f"text must be [{len(w_source)}, D], an embedding for each pair, got {list(text.shape)}"
        )
    if settings.mode == "edit" and settings.identity_weight > 0 and embed_identity is None:
        raise ValueError(
            f"identity_weight is {settings.identity_weight:g}, but there is no identity network; "
            "give one (load_identity) or set the weight to 0"
        )


def _check_prompts(
    text: Tensor, neutral: Tensor | None, settings: OptimizationSettings, channels: RelevantChannels | None
) -> None:
    if settings.needs_neutral and neutral is None:
        raise ValueError("an effect is seen from a neutral prompt; give its embeddings (neutral)")
    if neutral is not None and neutral.shape != text.shape:
        raise ValueError(f"neutral must be {list(text.shape)}, as text is, got {list(neutral.shape)}")
    if settings.space == "relevant" and channels is None:
        raise ValueError("space is relevant, but no channels are given (relevant_channels)")


def published_embedding(clip: ClipModel) -> Embedding:
    """Return the image embedding of the published losses: a box filter, and no normalization.

    Those repeat every pixel 7 times, average squares of a 32nd of the image's side, and give CLIP the
    -1..1 that remain. Both steps together are one box filter along each axis, which is what this
    computes: the same numbers without the 7168 x 7168 image in between.
    """

    def embed(image: Tensor) -> Tensor:
        square = pad_square(image)
        weights = _box_filter(square.shape[-1], clip.input_resolution).to(square)  # [R, H]
        return clip.embed_pixels(weights @ square @ weights.T)

    return embed


def _box_filter(size: int, side: int) -> Tensor:
    """Return the share of each of ``size`` pixels in each of ``side`` equal stretches of them."""
    edges = torch.arange(side + 1, dtype=torch.float64) * size / side
    pixels = torch.arange(size + 1, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], pixels[None, :-1])
    high = torch.minimum(edges[1:, None], pixels[None, 1:])
    return (high - low).clamp(min=0) * side / size
