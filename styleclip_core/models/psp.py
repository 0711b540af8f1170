"""Image -> w_plus with the published encoders: pSp (Richardson et al. 2021) and e4e (Tov et al. 2021).

A feature pyramid over IR-SE50, and one small convolutional head per row of w_plus. pSp's heads each
give their row; e4e's first head gives a code for all rows and the others an offset to it.

Shapes: B batch, L rows of w_plus, H W pixels. Images are in -1..1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import Checkpoint, is_array
from styleclip_core.files.values import Record
from styleclip_core.models import rosinality
from styleclip_core.models.checkpoints import generator_from_rosinality
from styleclip_core.models.ir_se import IRSE50
from styleclip_core.models.network import filled
from styleclip_core.models.stylegan2 import FullyConnected
from styleclip_core.models.weights import refusing, save_network

FORMAT = "styleclip-psp-1"
Kind = Literal["e4e", "psp"]
_KINDS: dict[object, Kind] = {"Encoder4Editing": "e4e", "GradualStyleEncoder": "psp"}
_MAX_ROWS = 32  # 18 at 1024 pixels
_MIDDLE_FROM, _FINE_FROM = 3, 7  # heads below read the coarsest features, and so on


@dataclass(frozen=True, slots=True)
class PspConfig:
    """What fixes the architecture of a published encoder.

    Attributes:
        kind: ``"e4e"`` or ``"psp"``; their weights have the same names and shapes.
        num_ws: Rows of w_plus it writes: 18, 16 or 14 for 1024, 512 and 256 pixels.
        height: Height of the images it reads; 192 for e4e's cars, else 256.
        width: Their width.
    """

    kind: Kind
    num_ws: int
    height: int = 256
    width: int = 256
    w_dim: int = 512

    def __post_init__(self) -> None:
        sizes = (self.height, self.width)
        if self.kind not in _KINDS.values() or not all(
            isinstance(side, int) and 32 <= side <= 4096 for side in sizes
        ):
            raise CheckpointError(
                f"an encoder of kind {self.kind!r:.40} for {sizes!r:.80} pixels is not known"
            )

        if not isinstance(self.num_ws, int) or not 0 < self.num_ws <= _MAX_ROWS or self.w_dim != 512:
            raise CheckpointError(
                f"an encoder of {self.num_ws!r:.40} rows of {self.w_dim!r:.40} cannot be built; expected "
                f"up to {_MAX_ROWS} of 512"
            )


class StyleHead(nn.Module):
    """Features of one level -> one row, by halving the side down to one pixel."""

    def __init__(self, halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(halvings):
            layers += [nn.Conv2d(512, 512, 3, 2, 1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = FullyConnected(512, 512)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[B, 512, S, S]`` to ``[B, 512]``."""
        row: Tensor = self.linear(self.convs(features).flatten(1))
        return row


class PspEncoder(IRSE50):
    """A pSp or e4e encoder."""

    latent_avg: Tensor

    def __init__(self, config: PspConfig) -> None:
        super().__init__()
        self.config = config

        # the first three heads read the coarsest features, the next four the middle ones: pSp, section 3
        self.styles = nn.ModuleList(
            StyleHead(int(math.log2(16 if row < _MIDDLE_FROM else 32 if row < _FINE_FROM else 64)))
            for row in range(config.num_ws)
        )

        self.latlayer1 = nn.Conv2d(256, 512, 1)
        self.latlayer2 = nn.Conv2d(128, 512, 1)
        self.register_buffer("latent_avg", torch.zeros(config.num_ws, config.w_dim))

    def encode(self, image: Tensor) -> Tensor:
        """Predict the latent of images.

        A latent has the same bits in every batch of one size; alone and in a batch, it differs by rounding,
        so what descends from it takes it from ``descent.in_chunks``.

        Args:
            image: ``[B, 3, H, W]`` in -1..1, FFHQ-aligned for the face models; another size than the
                encoder's is resized (bilinear, antialiased, as the published preprocessing).

        Returns:
            w_plus, ``[B, L, 512]``, the average latent included.
        """
        size = (self.config.height, self.config.width)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False)
        return self.latent_avg + self.offsets(image)

    forward = encode

    def offsets(self, image: Tensor) -> Tensor:
        """Predict w_plus less the average latent, of images of the encoder's size."""
        x, taps = self.input_layer(image), []

        # the last units at 64, 32 and 16 pixels: what the pyramid is made of
        for index, unit in enumerate(self.body):
            x = unit(x)
            if index in (6, 20, 23):
                taps.append(x)

        fine, middle, coarse = taps
        middle = _upsampled(coarse, middle) + self.latlayer1(middle)
        fine = _upsampled(middle, fine) + self.latlayer2(fine)

        rows = [
            head(coarse if row < _MIDDLE_FROM else middle if row < _FINE_FROM else fine)
            for row, head in enumerate(self.styles)
        ]

        # the first head gives a code for all rows, the others an offset from it
        if self.config.kind == "e4e":
            rows = [rows[0], *(rows[0] + row for row in rows[1:])]

        return torch.stack(rows, dim=1)


def fill_psp(config: PspConfig, state: Mapping[str, Tensor]) -> PspEncoder:
    """Build an encoder around its weights, ``latent_avg`` among them.

    Raises:
        CheckpointError: If a tensor is missing, left over, of another shape or not finite.
    """
    return filled(lambda: PspEncoder(config), state, what=f"{config.kind} encoder")


def save_psp(encoder: PspEncoder, path: str | Path) -> None:
    """Write a published encoder as safetensors."""
    save_network(encoder, path, FORMAT, asdict(encoder.config))


def read_psp(file: Checkpoint, kind: Kind | None = None) -> PspEncoder:
    """Read an encoder from a checkpoint of pSp or e4e: ``state_dict``, ``latent_avg``, ``opts``.

    Args:
        file: The checkpoint.
        kind: Which of the two it is, where its ``opts`` do not say.

    Raises:
        CheckpointError: If it holds no such encoder, or not enough to tell its average latent.
    """
    content, names = file.content, file.weights
    if not isinstance(content, dict) or not isinstance(names, dict):
        raise CheckpointError(f"{file.path} holds no encoder; give a checkpoint of e4e or pSp")

    # published files hold encoder and generator side by side, stripped ones the encoder alone
    prefix = "encoder." if any(str(name).startswith("encoder.") for name in names) else ""
    state = file.state(names, prefix)
    if not prefix:
        state = {
            name: value for name, value in state.items() if not name.startswith(("decoder.", "latent_avg"))
        }

    opts = content.get("opts")
    options = opts.state if isinstance(opts, Record) else opts if isinstance(opts, dict) else {}

    heads = {int(match[1]) for name in state if (match := re.match(r"styles\.(\d{1,4})\.", name))}
    if not heads or "input_layer.0.weight" not in state:
        raise CheckpointError(
            f"{file.path} holds no e4e or pSp encoder ('styles.*' are missing); give one of these"
        )

    # ReStyle reads six channels, the image so far beside the target; here there is no image so far
    if state["input_layer.0.weight"].shape[1:2] != (3,):
        raise CheckpointError(
            f"{file.path} reads {state['input_layer.0.weight'].shape[1:2].numel()} input channels (sketches "
            "or segmentations, or ReStyle's iterations); give an encoder of photographs"
        )

    # the cars of e4e are the one published encoder whose images are not square
    cars = _word(options.get("dataset_type")).startswith("cars")
    config = PspConfig(kind=kind or _kind(file, options), num_ws=max(heads) + 1, height=192 if cars else 256)
    state["latent_avg"] = _average(file, content, names, options, config)

    with refusing(str(file.path)):
        return fill_psp(config, state)


def _kind(file: Checkpoint, options: Mapping[str, object]) -> Kind:
    named = _word(options.get("encoder_type"))
    if named in _KINDS:
        return _KINDS[named]

    if named:
        raise CheckpointError(
            f"{file.path} is an encoder of type {named!r}; give one of {' or '.join(map(str, _KINDS))}"
        )

    # checkpoints from before the type was stored are told by options that only one training had
    if "progressive_steps" in options or "stylegan_size" in options:
        return "e4e"
    if "learn_in_w" in options or "output_size" in options:
        return "psp"
    raise CheckpointError(
        f"{file.path} does not say whether it is e4e or pSp, whose weights look alike; "
        "say so (load_encoder's kind, or --kind of styleclip convert)"
    )


def _word(value: object) -> str:
    """Return an option that is a word; of anything else that a file might hold, only what kind it is."""
    return value[:60] if isinstance(value, str) else "" if value is None else type(value).__name__


def _average(
    file: Checkpoint,
    content: Mapping[str, object],
    names: Mapping[str, object],
    options: Mapping[str, object],
    config: PspConfig,
) -> Tensor:
    if options.get("start_from_latent_avg") is False:
        return torch.zeros(config.num_ws, config.w_dim)

    # the heads predict a step from the average: with another one every face is wrong, and nothing says so
    stored = content.get("latent_avg")
    if is_array(stored):
        rows = file.tensor(stored).reshape(-1, config.w_dim)
        if len(rows) not in (1, config.num_ws):
            raise CheckpointError(
                f"{file.path}: its 'latent_avg' has {len(rows)} rows for {config.num_ws}; fetch it again"
            )
        return rows.expand(config.num_ws, -1).clone()

    # older files have none, but carry the generator, whose mapping gives it
    decoder = file.state(names, "decoder.")
    if not rosinality.looks_like_rosinality(decoder):
        raise CheckpointError(
            f"{file.path} holds neither 'latent_avg' nor the generator to estimate it from; add 'latent_avg'"
        )

    average = generator_from_rosinality(file.path, decoder).mapping.w_avg
    return average.expand(config.num_ws, -1).clone()


def _upsampled(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)
