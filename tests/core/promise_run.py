"""What the core computes of small networks, alone and in batches, for one setting of a processor's kernels.

``python promise_run.py NETWORKS RESULT THREADS``: a process of its own, as kernels are chosen once, from the
environment. Networks come as a file, because random weights depend on kernels too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.descent import in_chunks
from styleclip_core.feature_inversion import FeatureSettings, find_residuals
from styleclip_core.images import psnr
from styleclip_core.inversion import RefinementSettings, refine
from styleclip_core.metrics import clip_similarity, directional_similarity
from styleclip_core.models.encoder import Encoder, EncoderConfig
from styleclip_core.models.identity import CompactIdentity, IdentityConfig
from styleclip_core.models.lpips import PerceptualDistance
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from styleclip_core.optimization import OptimizationSettings, optimize
from styleclip_core.pivotal import PivotalSettings, tune
from styleclip_core.relevance import RelevanceSettings, measure_channels
from styleclip_core.relevant import RelevantChannels

ITEMS, SIZES = 33, (1, 2, 5, 12, 33)
DESCENDING = (3, (1, 3))  # items, and sizes of their batches
LAYER, CHANNELS = "b8.conv1", 12


def networks() -> dict[str, torch.nn.Module]:
    """Build the networks, with whatever weights."""
    from clip.model import CLIP

    return {
        "generator": Generator(GeneratorConfig(16, 8, 8, mapping_layers=2, channel_base=128, channel_max=12)),
        "clip": CLIP(16, 32, (1, 1, 1, 1), 8, None, 77, 100, 64, 1, 1),
        "encoder": Encoder(EncoderConfig(16, 6, 8, widths=(4, 4, 4, 4), hidden=8)),
        "identity": CompactIdentity(IdentityConfig(resolution=16, widths=(4, 6), hidden=10, embedding_dim=5)),
        "lpips": PerceptualDistance("alex"),
    }


def write_networks(path: Path) -> None:
    """Write weights and first codes for all settings to share."""
    torch.manual_seed(0)
    built = {name: network.state_dict() for name, network in networks().items()}
    built["z"] = torch.randn(ITEMS, 8)
    torch.save(built, path)


class World:
    """The networks, 33 latents and their images."""

    def __init__(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        with torch.device("meta"):  # weights are read, not drawn
            self.networks = networks()
        for name, network in self.networks.items():
            network.load_state_dict(state[name], assign=True)
            network.eval().requires_grad_(False)
        self.generator = self.networks["generator"]
        self.w_plus = torch.cat([self.generator.map(z[None]) for z in state["z"]])
        self.images = torch.cat([self.draw(each[None]) for each in self.w_plus])
        self.text = F.normalize(torch.sub(*self.clip(self.images[:2])), dim=0)

    def draw(self, w_plus: Tensor) -> Tensor:
        return self.generator.synthesize(self.generator.styles(w_plus))

    def clip(self, images: Tensor) -> Tensor:
        return F.normalize(self.networks["clip"].encode_image(F.interpolate(images, size=32)), dim=1)

    def edited(self, w_plus: Tensor) -> Tensor:
        codes = self.generator.styles(w_plus)
        return self.generator.synthesize(codes.add(torch.full((codes.layout.num_editable,), 2.0)))

    def forwards(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return plain forward passes, by name, of the numbers of some items."""
        net, w_plus, images = self.networks, self.w_plus, self.images
        return {
            "style codes": lambda index: self.generator.styles(w_plus[index]).flat(),
            "images": lambda index: self.draw(w_plus[index]),
            "edited images": lambda index: self.edited(w_plus[index]),
            "latents of the encoder": lambda index: net["encoder"].encode(images[index]),
            "CLIP embeddings": lambda index: self.clip(images[index]),
            "identity embeddings": lambda index: net["identity"].embed(images[index]),
            "perceptual distances": lambda index: net["lpips"].distance(
                *(F.interpolate(images[each], size=32) for each in (index, (index + 1) % ITEMS))
            ),
            "exact relevance": lambda index: self.relevance(index % CHANNELS, RelevanceSettings())[:, 1:],
            "scores": self.scores,
            "directional similarity": self.directional,
        }

    def descents(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return what must not depend on a batch, by name, of the numbers of some items."""
        return {
            "chunks of the encoder": lambda index: in_chunks(
                self.images[index], self.networks["encoder"].encode, size=4
            ),
            "refined latents": self.refined,
            "optimized latents": lambda index: self.optimized(index, "w_plus"),
            "optimized style codes": lambda index: self.optimized(index, "s"),
            "optimized relevant channels": self.faithful,
            "tunings": self.tuned,
            "residuals": self.residuals,
            "relevance with a tolerance": lambda index: self.relevance(
                index, RelevanceSettings(tolerance=0.3, minimum=3)
            ),
        }

    def refined(self, index: Tensor) -> Tensor:
        settings = RefinementSettings(steps=4, patience=3, chunk=2)
        *_, end = refine(self.generator, self.images[index], self.w_plus[index] + 0.2, settings)
        return end.w_plus.flatten(1)

    def optimized(self, index: Tensor, space: str) -> Tensor:
        settings = OptimizationSettings(space=space, steps=4, chunk=2, patience=3, epsilon=1e-3)
        text = self.text.expand(len(index), -1)
        *_, end = optimize(self.generator, self.clip, self.w_plus[index], text, settings)
        return end.latents.flatten(1)

    def faithful(self, index: Tensor) -> Tensor:
        settings = OptimizationSettings(
            space="relevant",
            effect=0.9,
            identity_weight=3.0,
            l2_weight=0.2,
            learning_rate=0.05,
            steps=4,
            chunk=2,
        )
        count = self.generator.layout.num_editable
        moving = (torch.arange(count) % 3 > 0).float()
        channels = RelevantChannels(0.4 * moving, 0.3 * moving, 0 * moving, 0 * moving, 0.5 * moving)
        text = self.text.expand(len(index), -1)
        *_, end = optimize(
            self.generator, self.clip, self.w_plus[index], text, settings, neutral=-text, scale=20.0,
            embed_identity=self.networks["identity"].embed, channels=channels,
        )  # fmt: skip
        return end.latents

    def tuned(self, index: Tensor) -> Tensor:
        settings = PivotalSettings(steps=2, rank=1, chunk=2, patience=3)
        *_, end = tune(self.generator, self.images[index].flip(3), self.w_plus[index], settings)
        return end.values

    def residuals(self, index: Tensor) -> Tensor:
        settings = FeatureSettings(steps=2, rank=2, chunk=2)
        found = find_residuals(self.generator, self.images[index].flip(3), self.w_plus[index], settings)
        return torch.stack([(each.channels.float() @ each.places.float()).flatten() for each in found])

    def scores(self, index: Tensor) -> Tensor:
        image = self.edited(self.w_plus[index])
        similar = clip_similarity(self.clip(image), self.text)
        return torch.stack([psnr(image, self.images[index]) / 10, similar], dim=1)

    def directional(self, index: Tensor) -> Tensor:
        before, after = self.clip(self.images[index]), self.clip(self.edited(self.w_plus[index]))
        return directional_similarity(before, after, self.text)

    def relevance(self, index: Tensor, settings: RelevanceSettings) -> Tensor:
        codes = self.generator.styles(self.w_plus[: 6 if settings.tolerance else 3])
        std = codes[LAYER].std(dim=0)
        found = measure_channels(
            self.generator, self.clip, codes, layer=LAYER, channels=index.tolist(),
            mean=torch.zeros_like(std), std=std, settings=settings,
        )  # fmt: skip
        return torch.cat([found.n[:, None], found.direction], dim=1)


def run(networks_path: Path) -> dict[str, dict[str, dict[int, Tensor]]]:
    """Return every computation by size of batch: forward passes of so many items, descents of all of them."""
    world = World(networks_path)

    with torch.no_grad():
        forwards = {
            name: {size: work(torch.arange(size)) for size in SIZES}
            for name, work in world.forwards().items()
        }

    count, sizes = DESCENDING
    descents = {
        name: {size: torch.cat([work(part) for part in torch.arange(count).split(size)]) for size in sizes}
        for name, work in world.descents().items()
    }
    return {"forwards": forwards, "descents": descents}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    torch.save(run(Path(sys.argv[1])), sys.argv[2])
