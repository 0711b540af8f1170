"""Feature-space inversion: what an image's features have that its latent does not say.

In the middle of the synthesis, before the colours of one resolution, image b has features F(w). A residual
R_b, found once for the photograph (see ``feature_inversion``), is added to them:

    F'(w) = F(w) + exp(-|F(w) - F(w_b)|^2 / f_b^2) R_b

w_b is the latent of the photograph, and f_b^2 the mean square of its features. The idea of a residual in
feature space, and that an edit's features are those of the edited latent plus what the photograph has
beside its own, is that of BDInvert (Kang et al. 2021), Barbershop (Zhu et al. 2021) and StyleFeatureEditor
(Bobkov et al. 2024). The factor is ours: where an edit puts other things, say a hat over hair, features are
no longer the photograph's, and its residual would draw a ghost. Its width, f_b, was chosen on portraits and
prompts that judge nothing. |.|^2 is the mean over the channels at a place. Layers after that resolution
decide most of a colour and do not enter: there an edit recolours what the residual draws.

A residual is kept as R outer products of channels and places, in float16: R (C + H V) numbers.

Shapes: B images, C channels of the features, H and V their height and width, R rank, L rows of w_plus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from styleclip_core.models.network import is_finite
from styleclip_core.models.stylegan2 import Generator, Noise, SynthesisState
from styleclip_core.per_image import PerImageGenerator, damaged, of_another, read_own, write_own
from styleclip_core.settings.pivotal import MAX_RANK
from styleclip_core.style_space import StyleCode

_WHAT, _FORMAT = "residual of features", "styleclip-features-1"


@dataclass(frozen=True, slots=True, eq=False)
class FeatureResidual:
    """What is added to the features of one image.

    Attributes:
        generator: Content hash of the generator's weights file.
        resolution: H, of the block whose features it is added to.
        channels: ``[C, R]`` float16, finite.
        places: ``[R, H V]`` float16, finite.
    """

    generator: str
    resolution: int
    channels: Tensor
    places: Tensor

    def to_bytes(self) -> bytes:
        """Return the content of a safetensors file."""
        header = {"format": _FORMAT, "generator": self.generator, "resolution": self.resolution}
        return write_own(header, {"channels": self.channels, "places": self.places})

    @classmethod
    def from_bytes(cls, content: bytes, generator: Generator) -> FeatureResidual:
        """Read what ``to_bytes`` wrote, for the generator whose features it is of.

        Raises:
            CheckpointError: If the content is damaged, no residual, or holds numbers that are not finite.
            LayoutMismatchError: If it is a residual of another generator.
        """
        header, tensors = read_own(content, generator, what=_WHAT, expected=_FORMAT)
        resolution = header.get("resolution")
        if type(resolution) is not int or resolution not in generator.config.resolutions:
            raise damaged(_WHAT, f"its resolution is {resolution!r:.40}")
        if set(tensors) != {"channels", "places"}:
            raise damaged(_WHAT, f"it holds {', '.join(sorted(tensors))!r:.80}")

        found = cls(generator.fingerprint, resolution, tensors["channels"], tensors["places"])
        if not found._fits(generator):
            raise damaged(_WHAT, "its sizes are not those of its generator's features")
        for each in (found.channels, found.places):
            if each.dtype != torch.float16 or not is_finite(each.float()):
                raise damaged(_WHAT, f"its numbers are {each.dtype} or not finite")
        return found

    def _fits(self, generator: Generator) -> bool:
        rank = len(self.places)
        channels, height, width = feature_shape(generator, self.resolution)
        sizes = tuple(self.channels.shape), tuple(self.places.shape)
        return 1 <= rank <= MAX_RANK and sizes == ((channels, rank), (rank, height * width))


class FeatureGenerator(PerImageGenerator):
    """A generator that adds residual b to the features of image b; in everything else it is the plain one.

    An image without a residual is drawn as by the generator itself, bit for bit.

    Attributes:
        before: Features of the latents that the residuals were found for, ``[B, C, H, V]``.
        residual: What is added to these, ``[B, C, H, V]``; zeros for an image that has none.
    """

    @torch.no_grad()
    def __init__(
        self, generator: Generator, residuals: Sequence[FeatureResidual | None], w_plus: Tensor
    ) -> None:
        """Prepare one batch.

        Args:
            generator: The one whose features are added to; left as it is.
            residuals: One for each image, or None for an image that has none.
            w_plus: The latents that they were found for, ``[B, L, W]``.

        Raises:
            LayoutMismatchError: If a residual is of another generator.
            ValueError: If there are not as many latents, or residuals are of several resolutions.
        """
        super().__init__(generator, len(residuals))
        if len(w_plus) != len(residuals):
            raise ValueError(f"there are {len(w_plus)} latents for the residuals of {len(residuals)} images")
        for each in residuals:
            if each and (each.generator != generator.fingerprint or not each._fits(generator)):
                raise of_another(_WHAT, each.generator, generator)

        sides = {each.resolution for each in residuals if each} or {4}
        if len(sides) > 1:
            raise ValueError(f"residuals of one batch have one resolution, got {sorted(sides)}")
        (self._side,) = sides

        # where the photograph's own latent leads, to see how far from there an edit has brought the features
        before = features_at(generator, generator.styles(w_plus), self._side).features
        square = before.square().mean(dim=(1, 2, 3), keepdim=True)
        self.before, self._square = before, square.clamp(min=1e-20)
        self.residual = torch.zeros_like(before)
        for row, each in zip(self.residual, residuals, strict=True):
            if each:
                product = each.channels.to(before) @ each.places.to(before)
                row.copy_(product.view_as(row))

    def synthesize(self, styles: StyleCode, *, noise: Noise = "const") -> Tensor:
        """Draw image b of the batch with residual b; see ``Generator.synthesize``.

        Random noise, or none, counts as a change of the features.

        Raises:
            LayoutMismatchError: If the codes belong to another generator.
            ValueError: If there are not as many codes as residuals.
        """
        self._expect(styles, "residuals")
        self.plain.expect(styles)

        state = features_at(self.plain, styles, self._side, noise=noise)
        features = state.features + self.faded(state.features).to(state.features.dtype)
        return self.plain.resume(
            SynthesisState(state.next_layer, features, state.image), styles, noise=noise
        )  # fmt: skip

    def faded(self, features: Tensor) -> Tensor:
        """Return what is left of the residuals where an edit has brought the features, ``[B, C, H, V]``."""
        away = (features - self.before).square().mean(dim=1, keepdim=True) / self._square
        return torch.exp(-away) * self.residual

    def take(self, index: Tensor) -> Self:
        """Return the generator of some images of the batch, ``[n]`` int64; one may come several times."""
        # past the constructor: features before are known already
        taken = object.__new__(type(self))
        taken.plain, taken._size, taken._side = self.plain, len(index), self._side
        taken.before, taken.residual = self.before[index], self.residual[index]
        taken._square = self._square[index]
        return taken


def feature_shape(generator: Generator, resolution: int) -> tuple[int, int, int]:
    """Return C, H and V of the features of a block."""
    config = generator.config
    return config.channels(resolution), resolution, resolution * config.const_width // 4


def features_at(
    generator: Generator, styles: StyleCode, resolution: int, *, noise: Noise = "const"
) -> SynthesisState:
    """Return the synthesis of B codes, stopped before the colours of one resolution are made."""
    names = [layer.name for layer in generator.layout.layers]
    stop = names.index(f"b{resolution}.torgb")
    return generator.advance(generator.begin(styles.batch_size), styles, stop, noise=noise)
