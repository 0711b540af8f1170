"""Whether the device computes what a CPU does, in every precision, and what the published code did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.networks import PRECISIONS, Bench, computing
from benchmarks.gpu.parts import Goal, Row
from styleclip_core.models.identity import IdentityNetwork
from styleclip_core.models.mapper import Mapper
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig, fir_kernel
from styleclip_core.sampling import sample_styles
from tests.golden.fill import fill, fill_state

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
_PARITY = Goal(1e-4)  # of the range, as the tests hold the CPU to
_SMALL_IMAGES, _LARGE_IMAGES, _LARGE = 4, 1, 512  # images that a CPU draws beside the device
_CPU = torch.device("cpu")


def agreement(bench: Bench) -> Iterator[Row]:
    """Yield how far images and embeddings of the device are from those of the CPU in float32."""
    their_clip, our_clip = bench.clip(_CPU, halved=False), bench.clip(halved=False)
    for resolution in bench.sizes.resolutions:
        generator = bench.generator(resolution, _CPU)
        count = _LARGE_IMAGES if resolution > _LARGE else _SMALL_IMAGES
        (_, _, codes), *_ = sample_styles(generator, seed=3, sample_ids=range(count), truncation_psi=1.0)
        with torch.no_grad():
            expected = generator.synthesize(codes)
            embedded = their_clip.embed_images(expected)

        ours, extent = bench.generator(resolution), float(expected.max() - expected.min())
        for precision in PRECISIONS:
            with torch.no_grad(), computing(bench.device, precision):
                images = ours.synthesize(codes.to(bench.device))
                found = our_clip.embed_images(images).float().cpu()
                of_theirs = our_clip.embed_images(expected.to(bench.device)).float().cpu()
            gap = (images.float().cpu() - expected).abs() / extent

            what, goal = f"{resolution} px, {precision}", _PARITY if precision == "float32" else None
            how = f"{count} image(s), against float32 on the CPU; of its range, {extent:.1f}"
            yield Row(
                f"{what}: a pixel's largest difference", float(gap.max()), "of the range", None, goal, how
            )
            yield Row(f"{what}: a pixel's mean difference", float(gap.mean()), "of the range", note=how)
            yield Row(
                f"{what}: lowest cosine of embeddings", _cosine(found, embedded), "",
                note="each device of its own images",
            )  # fmt: skip
            yield Row(
                f"{what}: lowest cosine of embeddings, CLIP alone", _cosine(of_theirs, embedded), "",
                note="both of the CPU's images",
            )  # fmt: skip

        # the networks as a GPU has them by default
        with torch.no_grad():
            found = bench.clip(halved=True).embed_images(expected.to(bench.device)).cpu()
        what = (
            f"{resolution} px, float16 weights as a GPU loads them: lowest cosine of embeddings, CLIP alone"
        )
        yield Row(what, _cosine(found, embedded), "", note="both of the CPU's images")


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum(dim=1).min())


def golden(bench: Bench) -> Iterator[Row]:
    """Yield how far the device is from the outputs of the published code, in float32."""
    small = GeneratorConfig(64, 32, 32, channel_base=2048, channel_max=64)
    yield _generator(bench, "nvidia_generator_64", small)
    if bench.small:
        return
    yield _generator(bench, "nvidia_generator_1024", GeneratorConfig(1024))
    yield _identity(bench)
    yield _mapper(bench)


@torch.no_grad()
def _generator(bench: Bench, name: str, config: GeneratorConfig) -> Row:
    kernels = {key: fir_kernel() for key in _shapes(name) if "resample_filter" in key}
    state = _weights(name, equalized=True, keep=("resample_filter",)) | kernels
    generator = Generator.from_state(config, state).to(bench.device)
    with np.load(GOLDEN / f"{name}.npz") as arrays, computing(bench.device, "float32"):
        z, expected = torch.from_numpy(arrays["z"]).to(bench.device), arrays["image"]
        w_plus = generator.map(z, truncation_psi=0.7, truncation_cutoff=8)
        image = generator.synthesize(generator.styles(w_plus))

    # as it was stored
    found = F.avg_pool2d(image, image.shape[-1] // 64)
    return _row(f"NVIDIA's generator, {config.resolution} px: image", found, expected)


@torch.no_grad()
def _identity(bench: Bench) -> Row:
    network = IdentityNetwork()
    network.load_state_dict(_weights("arcface_ir_se50", equalized=False))
    network = network.eval().to(bench.device)
    image = torch.from_numpy(np.tanh(fill("input.image", (2, 3, 256, 256), equalized=True)))
    with np.load(GOLDEN / "arcface_ir_se50.npz") as arrays, computing(bench.device, "float32"):
        found = network.embed(image.to(bench.device))
        return _row("ArcFace: embedding", found, arrays["embedding"])


@torch.no_grad()
def _mapper(bench: Bench) -> Row:
    mapper = Mapper.from_state(_weights("mapper_LevelsMapper", equalized=True)).to(bench.device)
    with np.load(GOLDEN / "mapper_LevelsMapper.npz") as arrays, computing(bench.device, "float32"):
        found = mapper.step(torch.from_numpy(arrays["w_plus"]).to(bench.device))
        return _row("the latent mapper: step", found, arrays["delta"])


def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    found = json.loads((GOLDEN / f"{name}.keys.json").read_text())
    return {key: tuple(shape) for key, shape in found.items()}


def _weights(name: str, *, equalized: bool, keep: tuple[str, ...] = ()) -> dict[str, Tensor]:
    state = fill_state(_shapes(name), equalized=equalized, keep=keep)
    return {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}


def _row(what: str, found: Tensor, expected: np.ndarray) -> Row:
    difference = float(np.abs(found.cpu().numpy() - expected).max()) / float(np.ptp(expected))
    how = "largest difference to what the published code computed on a CPU"
    return Row(what, difference, "of the range", None, _PARITY, how)
