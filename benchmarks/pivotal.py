"""Pivotal tuning: what a few KB per image buy, beside a tuning of all weights, and what edits make of it.

Half of the photographs get a disc that no portrait has. The published way is written as its paper
says: one image after the other, a copy of the generator, Adam over all its weights. Edits are global
directions from gradients; their effect is read by the world's factor regressor.

Before and after are drawn to build/pivotal.png.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import Options, Section
from styleclip import data
from styleclip.data.world.regressor import FactorRegressor, load_regressor
from styleclip.data.world.renderer import INDEX
from styleclip_core import load_clip, load_encoder, load_generator
from styleclip_core.editing import ChannelSelection, select_channels
from styleclip_core.images import decode_image, encode_png, fit, psnr
from styleclip_core.instant import instant_relevance
from styleclip_core.inversion import RefinementSettings, reconstruction_loss, refine
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from styleclip_core.pivotal import PivotalSettings, tune
from styleclip_core.prompts import text_direction
from styleclip_core.sampling import sample_styles, sample_z
from styleclip_core.tuned import AnyGenerator, TunedGenerator, TuningForm

PHOTOGRAPHS, PUBLISHED = 16, 4
STEPS, RATE = 350, 3e-4  # of the published code
EDITS = (
    ("face with grey hair", "hair_grey"), ("face with glasses", "glasses"), ("smiling face", "smile"),
    ("face with a beard", "beard"),
)  # fmt: skip
ALPHA, BETA, CODES = 3.0, 0.12, 8
HEADER = (
    "tuning", "PSNR dB, portraits", "PSNR dB, with a disc", "KB per image", "KB at 1024 px", "s per image",
    "edits move their factor", "median PSNR dB to untuned, halfway to random codes",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Bench:
    generator: Generator
    regressor: FactorRegressor
    target: Tensor
    w_plus: Tensor
    deltas: Tensor  # [E, N]
    random: Tensor  # [B, L, W], halfway from each pivot to a random code

    @torch.no_grad()
    def row(self, name: str, tuned: AnyGenerator, size: str, large: str, seconds: str) -> tuple[str, ...]:
        codes = tuned.styles(self.w_plus)
        image = tuned.synthesize(codes)
        quality, half = psnr(image, self.target), PHOTOGRAPHS // 2
        before, moves = self.regressor.read(image), []
        for (_, factor), delta in zip(EDITS, self.deltas, strict=True):
            after = self.regressor.read(tuned.synthesize(codes.add(ALPHA * delta)))
            moves.append((after - before)[:, INDEX[factor]].mean().item())
        elsewhere = tuned.styles(self.random)
        kept = psnr(tuned.synthesize(elsewhere), self.generator.synthesize(elsewhere).clamp(-1, 1))
        return (
            name, f"{quality[:half].mean():.2f}", f"{quality[half:].mean():.2f}", size, large, seconds,
            ", ".join(f"{move:+.2f}" for move in moves),
            "" if isinstance(tuned, Generator) else f"{kept.median():.1f}",
        )  # fmt: skip


def measure(_options: Options) -> Iterator[Section]:
    """Yield the one table."""
    title = f"{PHOTOGRAPHS} photographs, half of them with a disc that no portrait has"
    yield Section(title, HEADER, list(_rows(Path("build/pivotal.png"))))


def _rows(picture: Path) -> Iterator[tuple[str, ...]]:
    bench = _prepare()
    generator = bench.generator
    yield bench.row("none", generator, "0", "0", "")
    chosen = PivotalSettings()
    ways = [(f"rank {rank}", replace(chosen, rank=rank)) for rank in (2, chosen.rank, 8)]
    ways.append((f"rank {chosen.rank}, no locality", replace(chosen, locality_weight=0.0)))
    for name, settings in ways:
        started = time.perf_counter()
        *_, end = tune(generator, bench.target, bench.w_plus, settings)
        seconds = (time.perf_counter() - started) / PHOTOGRAPHS
        tunings = [end.tuning(index) for index in range(PHOTOGRAPHS)]
        tuned = TunedGenerator(generator, tunings)
        size = max(len(tuning.to_bytes()) for tuning in tunings if tuning)
        yield bench.row(name, tuned, f"{size / 1024:.1f}", _large(settings.rank), f"{seconds:.2f}")
        if settings == chosen:
            yield from _published(bench, tuned)
            _draw(bench, tuned, picture)


def _prepare() -> _Bench:
    generator, clip = load_generator(data.GENERATOR), load_clip(data.CLIP)
    files = sorted(data.PHOTOGRAPHS.glob("*.png"))[:PHOTOGRAPHS]
    target = torch.stack([fit(decode_image(file.read_bytes()), *generator.image_size) for file in files])
    place = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(*(torch.arange(side) for side in generator.image_size), indexing="ij")
    for image in target[PHOTOGRAPHS // 2 :]:
        down, across = torch.randint(24, 44, (2,), generator=place).tolist()
        disc = (y - down) ** 2 + (x - across) ** 2 < 9
        image[:, disc] = (2 * torch.rand(3, generator=place) - 1)[:, None]
    encoder = load_encoder(data.ENCODER)
    *_, end = refine(generator, target, encoder.encode(target), RefinementSettings())
    settings = {"seed": 0, "truncation_psi": 1.0}
    *_, (_, _, many) = sample_styles(generator, sample_ids=range(500), **settings)  # type: ignore[arg-type]
    std = torch.cat([many[layer.name] for layer in generator.layout.editable], dim=1).std(dim=0)
    codes = many.select(slice(0, CODES))
    deltas = []
    for prompt, _ in EDITS:
        text = text_direction(clip, neutral="face", target=prompt).direction
        relevance = instant_relevance(generator, clip.embed_images, codes, text, std)
        deltas.append(select_channels(generator.layout, relevance, std, ChannelSelection(beta=BETA)).delta)
    z = sample_z(1, range(PHOTOGRAPHS), generator.config.z_dim)
    with torch.no_grad():
        random = end.w_plus.lerp(generator.map(z), 0.5)
    return _Bench(
        generator, load_regressor(data.WEIGHTS / "regressor.safetensors"), target, end.w_plus,
        torch.stack(deltas), random,
    )  # fmt: skip


def _published(bench: _Bench, ours: TunedGenerator) -> Iterator[tuple[str, ...]]:
    """Tune all weights to an image at a time, the last ones of each half; ours on those images beside it."""
    half = PHOTOGRAPHS // 2
    chosen = [half - 1 - number for number in range(PUBLISHED // 2)]
    chosen += [PHOTOGRAPHS - 1 - number for number in range(PUBLISHED // 2)]
    started, found = time.perf_counter(), []
    for index in chosen:
        target = bench.target[index : index + 1]
        styles = bench.generator.styles(bench.w_plus[index : index + 1])
        network = copy.deepcopy(bench.generator).requires_grad_(True)
        optimizer = torch.optim.Adam(network.synthesis.parameters(), lr=RATE)
        for _ in range(STEPS):
            loss = reconstruction_loss(network.synthesize(styles), target).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            found.append(psnr(network.synthesize(styles), target).item())
    seconds = (time.perf_counter() - started) / PUBLISHED
    size = sum(each.numel() for each in bench.generator.parameters()) * 4 / 1024
    middle = PUBLISHED // 2
    with torch.device("meta"):
        large = sum(each.numel() for each in Generator(GeneratorConfig(1024)).parameters()) * 4 / 1024
    yield (
        f"all weights, {PUBLISHED} images", f"{sum(found[:middle]) / middle:.2f}",
        f"{sum(found[middle:]) / middle:.2f}", f"{size:.0f}", f"{large:.0f}", f"{seconds:.2f}", "", "",
    )  # fmt: skip
    with torch.no_grad():
        quality = psnr(ours.synthesize(ours.styles(bench.w_plus)), bench.target)[chosen]
    both = (f"{quality[:middle].mean():.2f}", f"{quality[middle:].mean():.2f}")
    yield ("ours, the same images", *both, *[""] * 5)


def _large(rank: int) -> str:
    """Return the KB of a tuning of a 1024-px config-f generator."""
    with torch.device("meta"):
        form = TuningForm.of(Generator(GeneratorConfig(1024)), rank)
    return f"{2 * form.size / 1024:.1f}"


def _draw(bench: _Bench, tuned: TunedGenerator, picture: Path) -> None:
    """Write photographs, reconstructions without and with tuning, and an edit of both, one row each."""
    index = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    codes, some = bench.generator.styles(bench.w_plus[index]), tuned.take(index)
    edited = codes.add(ALPHA * bench.deltas[0])
    with torch.no_grad():
        rows = [
            bench.target[index], bench.generator.synthesize(codes), some.synthesize(codes),
            bench.generator.synthesize(edited), some.synthesize(edited),
        ]  # fmt: skip
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(encode_png(sheet.repeat_interleave(2, 1).repeat_interleave(2, 2)))
