"""What a photograph has beside its latent: tunings of the generator, residuals of its features.

Half of the photographs get a disc that no portrait has. The published way of tuning is written as its paper
says: one image after the other, a copy of the generator, Adam over all its weights. Edits are global
directions from gradients; their effect is read by the world's factor regressor. Then edits are held against
the true picture, which the renderer draws (see ``benchmarks.quality.counterfactual``), with the disc on it.

Tunings as by default and residuals are found in turns, a chunk of photographs at a time; seconds are those of
the process. Before and after are drawn to build/pivotal.png.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.quality.counterfactual import Counterfactuals, difference
from benchmarks.report import Options, Section
from styleclip import data
from styleclip.data.world.photographs import COUNT, PHOTOGRAPH_SEED, held_out_factors
from styleclip.data.world.quality import Prompt
from styleclip.data.world.regressor import FactorRegressor, load_regressor
from styleclip.data.world.renderer import INDEX, NUM_FACTORS, strengths
from styleclip_core import load_clip, load_encoder, load_generator, load_identity
from styleclip_core.editing import ChannelSelection, select_channels
from styleclip_core.feature_inversion import feature_side, find_residuals
from styleclip_core.features import FeatureGenerator, FeatureResidual, feature_shape
from styleclip_core.images import decode_image, encode_png, fit, psnr
from styleclip_core.instant import instant_relevance
from styleclip_core.inversion import RefinementSettings, reconstruction_loss, refine
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from styleclip_core.per_image import AnyGenerator
from styleclip_core.pivotal import PivotalSettings, tune
from styleclip_core.prompts import text_direction
from styleclip_core.sampling import sample_styles, sample_z
from styleclip_core.settings.features import FeatureSettings
from styleclip_core.tuned import TunedGenerator, Tuning, TuningForm

PHOTOGRAPHS, PUBLISHED = 16, 4
STEPS, RATE = 350, 3e-4  # of the published code
_SMALLEST = 12  # pixels of a region, below which it says nothing
EDITS = (
    ("face with grey hair", "hair_grey"), ("face with glasses", "glasses"), ("smiling face", "smile"),
    ("face with a beard", "beard"),
)  # fmt: skip
ALPHA, BETA, CODES = 3.0, 0.12, 8
JUDGED = (
    *EDITS,
    ("face with a hat", "hat"),
    ("face with no hat", "hat"),
    ("face with long hair", "hair_long"),
)
FEW = 20  # steps of a refinement that a residual follows
HEADER = (
    "beside the latent", "PSNR dB, portraits", "PSNR dB, with a disc", "KB per image", "KB at 1024 px",
    "s per image, beside the latent's", "edits move their factor",
    "median PSNR dB to the plain one, halfway to random codes",
)  # fmt: skip
AGAINST = (
    "beside the latent", "refinement steps", "target moved, of its room", "value of the nearest true picture",
    "PSNR to it, dB", "CIEDE2000 to it, inside", "CIEDE2000 to the photograph, outside",
    "identity to the photograph",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A way to draw the photographs: the latents, and what draws them."""

    w_plus: Tensor
    generator: AnyGenerator


@dataclass(eq=False)
class _Own:
    """What photographs have beside their latents, and what finding it takes."""

    items: list[Tuning | FeatureResidual | None] = field(default_factory=list)
    spent: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[list[Tuning | FeatureResidual | None]]:
        """Let items be added, and take note of the time."""
        started = time.process_time()
        yield self.items
        self.spent += time.process_time() - started

    @property
    def size(self) -> str:
        """Return the KB of the largest file."""
        return f"{max(len(each.to_bytes()) for each in self.items if each) / 1024:.1f}"

    @property
    def seconds(self) -> str:
        """Return the seconds of one photograph."""
        return f"{self.spent / len(self.items):.2f}"


@dataclass(frozen=True, eq=False)
class _Bench:
    generator: Generator
    regressor: FactorRegressor
    target: Tensor
    discs: Tensor  # [B, H, H] bool
    latents: dict[int, Tensor]  # by refinement steps, [B, L, W]
    deltas: Tensor  # [E, N]
    random: Tensor  # [B, L, W], halfway from each pivot to a random code

    @property
    def w_plus(self) -> Tensor:
        return self.latents[RefinementSettings().steps]

    @torch.no_grad()
    def row(self, name: str, drawn: _Drawn, size: str, large: str, seconds: str) -> tuple[str, ...]:
        own = drawn.generator
        codes = own.styles(drawn.w_plus)
        image = own.synthesize(codes)
        quality, half = psnr(image, self.target), PHOTOGRAPHS // 2
        before, moves = self.regressor.read(image), []
        for (_, factor), delta in zip(EDITS, self.deltas, strict=False):
            after = self.regressor.read(own.synthesize(codes.add(ALPHA * delta)))
            moves.append((after - before)[:, INDEX[factor]].mean().item())
        elsewhere = own.styles(self.random)
        kept = psnr(own.synthesize(elsewhere), self.generator.synthesize(elsewhere).clamp(-1, 1))
        return (
            name, f"{quality[:half].mean():.2f}", f"{quality[half:].mean():.2f}", size, large, seconds,
            ", ".join(f"{move:+.2f}" for move in moves),
            "" if isinstance(own, Generator) else f"{kept.median():.1f}",
        )  # fmt: skip

    @cached_property
    def in_turns(self) -> dict[tuple[str, int], _Own]:
        """Return tunings and residuals, by their kind and the refinement steps of the latents."""
        found = defaultdict[tuple[str, int], _Own](_Own)
        pivotal, features, refined = PivotalSettings(), FeatureSettings(), RefinementSettings().steps
        for part in torch.arange(PHOTOGRAPHS).split(pivotal.chunk):
            with found["tuning", refined].timed() as items:
                *_, end = tune(self.generator, self.target[part], self.w_plus[part], pivotal)
                items += [end.tuning(index) for index in range(len(part))]
            for steps, w_plus in self.latents.items():
                with found["residual", steps].timed() as items:
                    items += find_residuals(self.generator, self.target[part], w_plus[part], features)
        return found

    def drawn(self, kind: str, steps: int) -> _Drawn:
        """Return what draws the photographs from latents of some steps, and with what beside them."""
        w_plus = self.latents[steps]
        items = self.in_turns[kind, steps].items if kind != "nothing" else []
        tunings = [each for each in items if isinstance(each, Tuning)]
        residuals = [each for each in items if isinstance(each, FeatureResidual)]
        if tunings:
            return _Drawn(w_plus, TunedGenerator(self.generator, tunings))
        if residuals:
            return _Drawn(w_plus, FeatureGenerator(self.generator, residuals, w_plus))
        return _Drawn(w_plus, self.generator)


def measure(_options: Options) -> Iterator[Section]:
    """Yield what is drawn, and the edits against the true picture."""
    bench = _prepare()
    title = f"{PHOTOGRAPHS} photographs, half of them with a disc that no portrait has"
    yield Section(title, HEADER, list(_rows(bench, Path("build/pivotal.png"))))
    title = f"{len(JUDGED)} edits of them at alpha {ALPHA:g} against the true picture"
    yield Section(title, AGAINST, list(_against_truth(bench)))


def _rows(bench: _Bench, picture: Path) -> Iterator[tuple[str, ...]]:
    generator, refined = bench.generator, RefinementSettings().steps
    yield bench.row("nothing", bench.drawn("nothing", refined), "0", "0", "")
    chosen = PivotalSettings()
    ways = [(f"tuning, rank {rank}", replace(chosen, rank=rank)) for rank in (2, chosen.rank, 8)]
    ways.append((f"tuning, rank {chosen.rank}, no locality", replace(chosen, locality_weight=0.0)))
    for name, settings in ways:
        own = bench.in_turns["tuning", refined] if settings == chosen else _Own()
        if settings != chosen:
            with own.timed() as items:
                *_, end = tune(generator, bench.target, bench.w_plus, settings)
                items += [end.tuning(index) for index in range(PHOTOGRAPHS)]
        tuned = TunedGenerator(generator, [each for each in own.items if isinstance(each, Tuning)])
        drawn = _Drawn(bench.w_plus, tuned)
        yield bench.row(name, drawn, own.size, _large(settings.rank), own.seconds)
        if settings == chosen:
            yield from _published(bench, tuned)
            _draw(bench, tuned, picture)

    for steps in bench.latents:
        own, drawn = bench.in_turns["residual", steps], bench.drawn("residual", steps)
        name = f"residual, {steps} refinement steps"
        yield bench.row(name, drawn, own.size, _large_residual(), own.seconds)


@torch.no_grad()
def _against_truth(bench: _Bench) -> Iterator[tuple[str, ...]]:
    """Yield how far edits are from what they should have become, by what the photographs have beside it."""
    refined = RefinementSettings().steps
    kinds = [("nothing", steps) for steps in bench.latents] + [("tuning", refined)]
    kinds += [("residual", steps) for steps in bench.latents]
    ways = {each: bench.drawn(*each) for each in kinds}

    embed = load_identity(data.IDENTITY).embed
    shown = strengths(held_out_factors(PHOTOGRAPH_SEED, COUNT))[:PHOTOGRAPHS]
    figures: dict[tuple[str, int], list[Tensor]] = {name: [] for name in ways}
    for (phrase, factor), delta in zip(JUDGED, bench.deltas, strict=True):
        prompt = Prompt(phrase, "face", phrase, factor, -1 if " no " in phrase else 1)
        truth = _WithDiscs(prompt, shown, bench.target, bench.discs)
        for name, way in ways.items():
            codes = way.generator.styles(way.w_plus)
            image = way.generator.synthesize(codes.add(ALPHA * delta)).clamp(-1, 1)
            figures[name].append(_judged(bench, prompt, truth, image, embed(image), embed(bench.target)))

    for (way_name, steps), found in figures.items():
        mean = torch.stack(found).mean(dim=0).tolist()
        yield (
            way_name,
            str(steps),
            *(f"{each:.{places}f}" for each, places in zip(mean, (2, 2, 2, 2, 2, 3), strict=True)),
        )


def _judged(
    bench: _Bench, prompt: Prompt, truth: _WithDiscs, image: Tensor, seen: Tensor, wanted: Tensor
) -> Tensor:
    """Return the figures of one edit, over photographs that lack what it asks for."""
    lacking = truth.region.sum(dim=(1, 2)) >= _SMALLEST
    away = F.max_pool2d(truth.region[:, None].float(), 5, 1, 2)[:, 0] == 0
    end = bench.regressor.standardize(torch.full((NUM_FACTORS,), 1.0 if prompt.sign > 0 else 0.0))
    read = bench.regressor.read(torch.cat([bench.target, image]))[:, INDEX[prompt.factor]]
    before, after = read.chunk(2)
    rooms = prompt.sign * (end[INDEX[prompt.factor]] - before)[lacking].mean()

    nearest = truth.nearest(image)
    inside = _mean_where(difference(image, nearest.images), truth.region)
    outside = _mean_where(difference(image, bench.target), away)
    values = [nearest.value, psnr(image, nearest.images), inside, outside, (seen * wanted).sum(dim=1)]
    moved = prompt.sign * (after - before)[lacking].mean() / rooms
    return torch.stack([moved, *(each[lacking].mean() for each in values)])


class _WithDiscs(Counterfactuals):
    """True pictures of photographs with something on them that edits leave alone."""

    def __init__(self, prompt: Prompt, shown: Tensor, target: Tensor, discs: Tensor) -> None:
        super().__init__(prompt, shown)
        self._target, self._discs = target, discs[:, None]

    def at(self, value: Tensor) -> Tensor:
        """Draw every portrait at its value ``[B]``, as ``[B, 3, H, H]`` in -1..1."""
        return torch.where(self._discs, self._target, super().at(value))


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1)


def _prepare() -> _Bench:
    generator, clip = load_generator(data.GENERATOR), load_clip(data.CLIP)
    files = sorted(data.PHOTOGRAPHS.glob("*.png"))[:PHOTOGRAPHS]
    target = torch.stack([fit(decode_image(file.read_bytes()), *generator.image_size) for file in files])
    place = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(*(torch.arange(side) for side in generator.image_size), indexing="ij")
    discs = torch.zeros(PHOTOGRAPHS, *generator.image_size, dtype=torch.bool)
    for image, disc in zip(target[PHOTOGRAPHS // 2 :], discs[PHOTOGRAPHS // 2 :], strict=True):
        down, across = torch.randint(24, 44, (2,), generator=place).tolist()
        disc.copy_((y - down) ** 2 + (x - across) ** 2 < 9)
        image[:, disc] = (2 * torch.rand(3, generator=place) - 1)[:, None]

    encoded, latents = load_encoder(data.ENCODER).encode(target), {}
    for steps in (0, FEW, RefinementSettings().steps):
        *_, end = refine(generator, target, encoded, RefinementSettings(steps=steps))
        latents[steps] = end.w_plus

    settings = {"seed": 0, "truncation_psi": 1.0}
    *_, (_, _, many) = sample_styles(generator, sample_ids=range(500), **settings)  # type: ignore[arg-type]
    std = torch.cat([many[layer.name] for layer in generator.layout.editable], dim=1).std(dim=0)
    codes = many.select(slice(0, CODES))
    deltas = []
    for prompt, _ in JUDGED:
        text = text_direction(clip, neutral="face", target=prompt).direction
        relevance = instant_relevance(generator, clip.embed_images, codes, text, std)
        deltas.append(select_channels(generator.layout, relevance, std, ChannelSelection(beta=BETA)).delta)
    z = sample_z(1, range(PHOTOGRAPHS), generator.config.z_dim)
    with torch.no_grad():
        random = latents[RefinementSettings().steps].lerp(generator.map(z), 0.5)
    return _Bench(
        generator, load_regressor(data.REGRESSOR), target, discs, latents, torch.stack(deltas), random
    )  # fmt: skip


def _published(bench: _Bench, ours: TunedGenerator) -> Iterator[tuple[str, ...]]:
    """Tune all weights to an image at a time, the last ones of each half; ours on those images beside it."""
    half = PHOTOGRAPHS // 2
    chosen = [half - 1 - number for number in range(PUBLISHED // 2)]
    chosen += [PHOTOGRAPHS - 1 - number for number in range(PUBLISHED // 2)]
    started, found = time.process_time(), []
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
    seconds = (time.process_time() - started) / PUBLISHED
    size = sum(each.numel() for each in bench.generator.parameters()) * 4 / 1024
    middle = PUBLISHED // 2
    with torch.device("meta"):
        large = sum(each.numel() for each in Generator(GeneratorConfig(1024)).parameters()) * 4 / 1024
    yield (
        f"tuning, all weights, {PUBLISHED} images", f"{sum(found[:middle]) / middle:.2f}",
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


def _large_residual() -> str:
    """Return the KB of a residual of a 1024-px config-f generator."""
    settings = FeatureSettings()
    with torch.device("meta"):
        generator = Generator(GeneratorConfig(1024))
    channels, height, width = feature_shape(generator, feature_side(generator, settings.resolution))
    return f"{2 * settings.rank * (channels + height * width) / 1024:.1f}"


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
