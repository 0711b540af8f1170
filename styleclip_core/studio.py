"""A few lines for a notebook: load, invert, edit, show, save.

    studio = Studio.load("ffhq.pkl", clip="ViT-B/32", encoder="e4e.pt")
    portrait = studio.invert("me.jpg")
    edited = studio.edit(portrait, "grey hair", neutral="hair", alpha=3)
    edited.image().save("grey.png")

Each call is one of the core's own, named in its docstring, with what they share kept between them: relevance
is taken from gradients at sampled style codes, once for every prompt (``styleclip_core.instant``), or from a
table that is given. What is more than that, batches, mappers, other settings, is there under those names.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from styleclip_core.editing import ChannelSelection, EditedLatents, StyleDirection, select_channels
from styleclip_core.editing import style_direction as table_direction
from styleclip_core.images import decode_image, fit, to_uint8
from styleclip_core.instant import instant_relevance
from styleclip_core.inversion import refine
from styleclip_core.models.checkpoints import load_generator
from styleclip_core.models.clip import ClipModel, load_clip
from styleclip_core.models.encoder import Encoder, load_encoder
from styleclip_core.models.psp import PspEncoder
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.prompts import text_direction
from styleclip_core.relevance import RelevanceTable
from styleclip_core.sampling import measure_statistics, sample_styles
from styleclip_core.settings.inversion import RefinementSettings
from styleclip_core.style_space import StyleCode

Source = str | Path | Image.Image | Tensor
_CODES, _STATISTICS, _PROBES, _SEED, _PSI = 16, 2000, 16, 5, 0.7


@dataclass(frozen=True, slots=True, eq=False)
class Portrait:
    """Images of a generator, by their latents. A value, never changed.

    Attributes:
        latents: Where they are, B of them.
        generator: Draws them.
    """

    latents: EditedLatents
    generator: Generator

    @torch.no_grad()
    def tensor(self) -> Tensor:
        """Return the images, ``[B, 3, H, W]`` float32, nominally in -1..1."""
        return self.generator.synthesize(self.latents.codes(self.generator))

    def images(self) -> list[Image.Image]:
        """Return the images as 8-bit RGB."""
        return [Image.fromarray(pixels) for pixels in to_uint8(self.tensor())]

    def image(self) -> Image.Image:
        """Return the first image as 8-bit RGB."""
        return self.images()[0]

    def _repr_png_(self) -> bytes:
        """Return the images side by side: what a notebook shows of them."""
        images = self.images()
        sheet = Image.new("RGB", (sum(each.width for each in images), images[0].height))
        for number, each in enumerate(images):
            sheet.paste(each, (number * each.width, 0))

        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(eq=False)
class Studio:
    """A generator, a CLIP and perhaps an encoder, and what is known of them so far.

    Attributes:
        generator: Draws images.
        clip: Reads prompts and images.
        encoder: Guesses latents of photographs; without it inversion starts at the average w.
        table: Relevance of every style channel; without it, relevance comes from gradients.
        std: Standard deviation of every editable channel, ``[N]``; sampled when
            it is first needed.
    """

    generator: Generator
    clip: ClipModel
    encoder: Encoder | PspEncoder | None = None
    table: RelevanceTable | None = None
    std: Tensor | None = None
    _relevance: dict[tuple[str, str, str], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        generator: str | Path,
        *,
        clip: str | Path = "ViT-B/32",
        encoder: str | Path | None = None,
        device: str | torch.device = "auto",
    ) -> Studio:
        """Load networks: ``load_generator``, ``load_clip``, ``load_encoder``.

        Args:
            generator: Weights of StyleGAN2.
            clip: Name, or weights.
            encoder: Weights of e4e, pSp or ours.
            device: ``"auto"`` takes a GPU if there is one.

        Raises:
            CheckpointError: If a file is damaged, or of another kind.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(
            load_generator(generator, device=device),
            load_clip(clip, device=device),
            load_encoder(encoder, device=device) if encoder else None,
        )

    def sample(self, count: int = 1, *, seed: int = 0, truncation_psi: float = _PSI) -> Portrait:
        """Draw images of random latents (``Generator.map``).

        Args:
            count: How many.
            seed: The same ones for the same seed.
            truncation_psi: Pull towards the average w; 1 for none.
        """
        source = torch.Generator().manual_seed(seed)
        z = torch.randn(count, self.generator.config.z_dim, generator=source).to(self.generator.device)
        with torch.no_grad():
            w_plus = self.generator.map(z, truncation_psi=truncation_psi)
        return Portrait(EditedLatents(w_plus), self.generator)

    def invert(
        self, photograph: Source | Sequence[Source], settings: RefinementSettings | None = None
    ) -> Portrait:
        """Find the latents of photographs: the encoder's guess, refined (``inversion.refine``).

        Args:
            photograph: One or several: a path, a PIL image, or a tensor ``[3, H, W]`` in -1..1 of the
                generator's size. Faces are to be upright and cropped as the generator's are.
            settings: Steps, rates and weights.

        Raises:
            ImageDecodeError: If a file is no image.
            ValueError: If a tensor has another size than the generator's images.
        """
        several = [photograph] if isinstance(photograph, str | Path | Image.Image | Tensor) else photograph
        target = torch.stack([self._read(each) for each in several]).to(self.generator.device)

        with torch.no_grad():
            if self.encoder:
                start = self.encoder.encode(target)
            else:
                start = self.generator.mapping.w_avg.expand(len(target), self.generator.num_ws, -1).clone()
        *_, end = refine(self.generator, target, start, settings or RefinementSettings())
        return Portrait(EditedLatents(end.w_plus), self.generator)

    def edit(
        self,
        portrait: Portrait,
        target: str,
        *,
        neutral: str = "face",
        alpha: float = 3.0,
        beta: float | None = 0.15,
        top_k: int | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        templates: str = "styleclip-79",
    ) -> Portrait:
        """Move images along a style direction (StyleCLIP, section 6).

        Args:
            portrait: Where to start; a former edit's result too.
            target: What they should become.
            neutral: What that is compared with.
            alpha: Strength, in standard deviations of the most relevant channel.
            beta: Threshold on |relevance|, 0 to 1.
            top_k: Number of channels, instead of beta.
            include: Layers that may change, e.g. ``b4.*``; all if empty.
            exclude: Layers that stay.
            templates: Prompt templates.

        Raises:
            NoRelevantChannelError: If no channel reaches beta; the message has one that works.
            PromptError: If CLIP cannot tell the prompts apart.
        """
        selection = ChannelSelection(None if top_k else beta, top_k, tuple(include), tuple(exclude))
        found = self.direction(target, neutral=neutral, selection=selection, templates=templates)

        # toRGB styles stay: the direction is of the editable channels alone
        step = torch.zeros(self.generator.layout.num_channels)
        step[self.generator.layout.editable_index] = alpha * found.delta
        return replace(portrait, latents=portrait.latents.add(step.to(portrait.latents.w_plus)))

    def direction(
        self,
        target: str,
        *,
        neutral: str = "face",
        selection: ChannelSelection | None = None,
        templates: str = "styleclip-79",
    ) -> StyleDirection:
        """Return the style direction of a prompt (``style_direction``, ``select_channels``).

        Raises:
            NoRelevantChannelError: If no channel reaches beta.
            PromptError: If CLIP cannot tell the prompts apart.
        """
        chosen = selection or ChannelSelection(0.15)
        text = text_direction(self.clip, neutral=neutral, target=target, templates=templates).direction
        std = self._std()
        if self.table:
            return table_direction(self.table, text.cpu(), std, chosen)

        key = (neutral, target, templates)
        if key not in self._relevance:
            probes = min(_PROBES, self.clip.embedding_dim)
            self._relevance[key] = instant_relevance(
                self.generator, self.clip.embed_whole, self._codes(_CODES), text, std, probes=probes
            )
        return select_channels(self.generator.layout, self._relevance[key], std, chosen)

    @torch.no_grad()
    def _codes(self, count: int) -> StyleCode:
        parts = list(sample_styles(self.generator, seed=_SEED, sample_ids=range(count), truncation_psi=_PSI))
        flat = torch.cat([codes.flat() for _, _, codes in parts])
        return StyleCode.from_flat(self.generator.layout, flat)

    @torch.no_grad()
    def _std(self) -> Tensor:
        if self.std is None:
            ids = range(_STATISTICS)
            codes = sample_styles(self.generator, seed=_SEED, sample_ids=ids, truncation_psi=_PSI)
            found = measure_statistics(each for _, _, each in codes)
            self.std = found.std.float()[self.generator.layout.editable_index]
        return self.std

    def _read(self, source: Source) -> Tensor:
        if isinstance(source, Tensor):
            return source
        if isinstance(source, Image.Image):
            return fit(source.convert("RGB"), *self.generator.image_size)
        return fit(decode_image(Path(source).read_bytes()), *self.generator.image_size)
