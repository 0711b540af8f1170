"""Measure the embedded world: its models, and whether edits do what their text says.

``make world-quality`` prints every table of the model card. Edits go through the pipeline's own
artifacts: the relevance table of the flow, the latents of the flow. Alpha and beta are chosen on
validation portraits and scored on the photographs, which are others.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from styleclip import data
from styleclip.data.world import photographs
from styleclip.data.world.captions import ATTRIBUTES, HELD_OUT_TEMPLATES, truths
from styleclip.data.world.identity_quality import generated_by, sensitivity, verify
from styleclip.data.world.regressor import FactorRegressor, explained_variance, load_regressor
from styleclip.data.world.renderer import FACTORS, INDEX, factors_of, hair_mask, render, strengths, visible
from styleclip.data.world.train_identity import IDENTITY
from styleclip.data.world.training import draw
from styleclip_core import load_clip, load_encoder, load_generator, load_identity
from styleclip_core.editing import ChannelSelection, StyleDirection, style_direction
from styleclip_core.errors import NoRelevantChannelError
from styleclip_core.images import psnr
from styleclip_core.models.clip import ClipModel
from styleclip_core.models.identity import CompactIdentity, IdentityNetwork
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.prompts import text_direction
from styleclip_core.relevance import RelevanceTable
from styleclip_core.style_space import StyleCode

SEED = 9001
ALPHAS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)
BETAS = (0.08, 0.12, 0.16, 0.20, 0.25, 0.30, 0.35, 0.40, 0.50)
_HAIR = ("hair_light", "hair_red", "hair_grey", "hair_dye", "dye_hue")


@dataclass(frozen=True, slots=True)
class Prompt:
    """An edit whose truth is known.

    Attributes:
        name: Short name.
        neutral: Neutral prompt.
        target: Target prompt.
        factor: The factor it should move.
        sign: Which way.
        related: Factors that may move with it.
    """

    name: str
    neutral: str
    target: str
    factor: str
    sign: int = 1
    related: tuple[str, ...] = ()


PROMPTS = (
    Prompt("grey hair", "face", "face with grey hair", "hair_grey", 1, _HAIR),
    Prompt("blond hair", "face", "face with blond hair", "hair_light", 1, _HAIR),
    Prompt("black hair", "face", "face with black hair", "hair_light", -1, _HAIR),
    Prompt("red hair", "face", "face with red hair", "hair_red", 1, _HAIR),
    Prompt("smiling", "face", "smiling face", "smile"),
    Prompt("sad", "face", "sad face", "smile", -1),
    Prompt("glasses", "face", "face with glasses", "glasses"),
    Prompt("beard", "face", "face with a beard", "beard"),
    Prompt("red lipstick", "face", "face with red lipstick", "lip_red"),
    Prompt("hat", "face", "face with a hat", "hat", 1, ("hair_volume",)),
    Prompt("dark skin", "face", "face with dark skin", "skin_dark"),
    Prompt("blue background", "face", "face with a blue background", "bg_hue"),
)

# alpha and beta that `report_edits` has chosen on the validation portraits, by target
CHOSEN: dict[str, tuple[float, float]] = {
    "face with grey hair": (3, 0.12), "face with blond hair": (1.5, 0.16), "face with black hair": (4, 0.3),
    "face with red hair": (2, 0.2), "smiling face": (2, 0.35), "sad face": (2, 0.3),
    "face with glasses": (3, 0.08), "face with a beard": (2, 0.08), "face with red lipstick": (4, 0.35),
    "face with a hat": (3, 0.5), "face with dark skin": (3, 0.08), "face with a blue background": (5, 0.25),
}  # fmt: skip


def area_under_curve(score: Tensor, truth: Tensor) -> float:
    """Return the probability that a true portrait scores above a false one."""
    rank = score.argsort().argsort().double() + 1
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return math.nan
    return ((rank[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives)).item()


@torch.no_grad()
def clip_scores(clip: ClipModel, *, count: int = 2000) -> dict[str, float]:
    """Return the zero-shot AUC of every attribute on fresh renders, in templates CLIP has not seen."""
    factors = factors_of(draw(SEED, 0).normal(count, 64))
    images = torch.cat([clip.embed_images(part) for part in render(factors).split(250)])
    true = truths(factors)

    def embed(phrase: str) -> Tensor:
        return F.normalize(clip.embed_text([t.format(phrase) for t in HELD_OUT_TEMPLATES]).mean(0), dim=0)

    neutral = embed("face")
    return {
        attribute.name: area_under_curve(images @ (embed(attribute.phrase) - neutral), true[:, index])
        for index, attribute in enumerate(ATTRIBUTES)
    }


@dataclass(frozen=True)
class GeneratorScores:
    """How well the generator draws what z asks for."""

    psnr_mean: float
    psnr_min: float
    correlation: dict[str, float]


@torch.no_grad()
def generator_scores(
    generator: Generator, regressor: FactorRegressor, *, count: int = 500
) -> GeneratorScores:
    """Compare G(z) with the renderer's portrait of z, in pixels and in factors read off."""
    z = draw(SEED, 1).normal(count, generator.config.z_dim)
    images = torch.cat([generator.synthesize(generator.styles(generator.map(part))) for part in z.split(50)])
    factors = factors_of(z)
    quality = psnr(images, render(factors))
    readings, shown = regressor.read(images), visible(factors)
    correlation = {
        name: torch.corrcoef(torch.stack([readings[:, index], shown[:, index]]))[0, 1].item()
        for name, index in INDEX.items()
    }
    return GeneratorScores(quality.mean().item(), quality.min().item(), correlation)


@dataclass(frozen=True)
class Portraits:
    """Inverted photographs with their truth.

    Attributes:
        codes: Style codes of the inversions.
        images: What the generator draws of them, ``[B, 3, H, H]``.
        readings: Factors read off those, ``[B, K]``.
        factors: True factors of the photographs, ``[B, K]``.
        psnr: Quality of the inversions in dB, ``[B]``.
    """

    codes: StyleCode
    images: Tensor
    readings: Tensor
    factors: Tensor
    psnr: Tensor


@torch.no_grad()
def load_portraits(latents: str, folder: Path, generator: Generator, regressor: FactorRegressor) -> Portraits:
    """Read the latents that the inversion flow wrote."""
    rows = {
        row["image_key"]: row
        for part in sorted(Path(latents).glob("*.attempt-*.parquet"))
        for row in pq.read_table(part).to_pylist()
    }
    truth = photographs.read_factors(folder)
    keys = sorted(truth)
    w_plus = torch.tensor([rows[key]["w_plus"] for key in keys]).view(len(keys), generator.num_ws, -1)
    codes = generator.styles(w_plus)
    images = generator.synthesize(codes)
    quality = torch.tensor([rows[key]["psnr"] for key in keys])
    return Portraits(
        codes, images, regressor.read(images), torch.stack([truth[key] for key in keys]), quality
    )


@dataclass(frozen=True)
class Bench:
    """Everything an edit is measured with."""

    generator: Generator
    clip: ClipModel
    regressor: FactorRegressor
    table: RelevanceTable
    std: Tensor
    texts: dict[Prompt, Tensor] = field(default_factory=dict)

    def text(self, prompt: Prompt) -> Tensor:
        """Return the unit text direction of a prompt, ``[D]``; embedded once."""
        if prompt not in self.texts:
            found = text_direction(self.clip, neutral=prompt.neutral, target=prompt.target)
            self.texts[prompt] = found.direction
        return self.texts[prompt]

    @torch.no_grad()
    def move(self, portraits: Portraits, direction: StyleDirection, alpha: float) -> tuple[Tensor, Tensor]:
        """Return the change of the readings ``[B, K]`` and the edited images."""
        codes = portraits.codes.add(alpha * direction.delta)
        index = torch.arange(codes.batch_size)
        images = torch.cat([self.generator.synthesize(codes.select(part)) for part in index.split(32)])
        return self.regressor.read(images) - portraits.readings, images

    def direction(
        self, prompt: Prompt, beta: float, table: RelevanceTable | None = None
    ) -> StyleDirection | None:
        """Return the style direction at ``beta``, None if no channel reaches it."""
        try:
            return style_direction(
                table or self.table, self.text(prompt), self.std, ChannelSelection(beta=beta)
            )
        except NoRelevantChannelError:
            return None


@dataclass(frozen=True)
class EditScore:
    """What an edit did, in standard deviations of the factors."""

    prompt: Prompt
    alpha: float
    beta: float
    channels: int
    target: float
    others: float
    rank: int
    side_effect: str
    control: float = math.nan


def score(prompt: Prompt, change: Tensor, *, alpha: float, beta: float, channels: int) -> EditScore:
    """Summarize the change of the readings ``[B, K]``."""
    target = INDEX[prompt.factor]
    unrelated = [i for i, name in enumerate(FACTORS) if i != target and name not in prompt.related]
    size = change.abs().mean(dim=0)
    worst = max(unrelated, key=lambda index: size[index].item())
    return EditScore(
        prompt, alpha, beta, channels,
        target=(prompt.sign * change[:, target]).mean().item(),
        others=size[unrelated].mean().item(),
        rank=1 + int((size > size[target]).sum()),
        side_effect=f"{FACTORS[worst]} {change[:, worst].mean().item():+.2f}",
    )  # fmt: skip


def choose(bench: Bench, prompt: Prompt, portraits: Portraits) -> EditScore:
    """Search the grid of alpha and beta: the cleanest edit that moves its target by 1.4.

    Clean is what moves the unrelated factors least. Where no point of the grid moves the target that
    far as the most changed factor, the best trade of target and others is taken.
    """
    found = []
    for beta in BETAS:
        direction = bench.direction(prompt, beta)
        if direction is None:
            continue
        for alpha in ALPHAS:
            change, _ = bench.move(portraits, direction, alpha)
            found.append(score(prompt, change, alpha=alpha, beta=beta, channels=direction.channels))
    clear = [each for each in found if each.target >= 1.4 and each.others <= 0.22 and each.rank == 1]
    if clear:
        return min(clear, key=lambda each: each.others)
    return max(found, key=lambda each: min(each.target, 1.4) - 2 * max(each.others, 0.2))


def measure_edits(bench: Bench, validation: Portraits, test: Portraits) -> list[EditScore]:
    """Choose alpha and beta on ``validation``, score on ``test``, with the permuted control."""
    scores = []
    shuffle = torch.randperm(len(bench.table.n), generator=torch.Generator().manual_seed(SEED))
    permuted = RelevanceTable(bench.table.layout, bench.table.n[shuffle], bench.table.direction[shuffle])
    for prompt in PROMPTS:
        chosen = choose(bench, prompt, validation)
        direction, control = (
            bench.direction(prompt, chosen.beta),
            bench.direction(prompt, chosen.beta, permuted),
        )
        if direction is None or control is None:
            raise NoRelevantChannelError(
                f"{prompt.name}: no channel at beta {chosen.beta}, though it was chosen"
            )
        change, _ = bench.move(test, direction, chosen.alpha)
        moved, _ = bench.move(test, control, chosen.alpha)
        scored = score(prompt, change, alpha=chosen.alpha, beta=chosen.beta, channels=direction.channels)
        wrong = score(prompt, moved, alpha=chosen.alpha, beta=chosen.beta, channels=direction.channels)
        scores.append(replace(scored, control=wrong.target))
    return scores


def hair_contrast(bench: Bench, grey: EditScore, test: Portraits) -> tuple[float, float, int]:
    """Return the mean pixel change inside the true hair, outside it, and the portraits counted.

    Counted are portraits whose hair is not grey already and shows (no full hat). Outside begins two
    pixels from the mask, as the inversion does not place the edge to the pixel.
    """
    direction = bench.direction(grey.prompt, grey.beta)
    if direction is None:
        raise NoRelevantChannelError(f"no channel at beta {grey.beta}")
    _, images = bench.move(test, direction, grey.alpha)
    shown = strengths(test.factors)
    counted = (shown[:, INDEX["hair_grey"]] < 0.5) & (shown[:, INDEX["hat"]] < 0.6)
    change = (images - test.images).abs().mean(dim=1, keepdim=True)[counted] / 2
    inside = hair_mask(test.factors)[counted]
    outside = 1 - F.max_pool2d(inside, 5, 1, 2)
    return (
        ((change * inside).sum() / inside.sum()).item(),
        ((change * outside).sum() / outside.sum()).item(),
        int(counted.sum()),
    )


def _print(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def report_models(
    console: Console, generator: Generator, clip: ClipModel, regressor: FactorRegressor
) -> None:
    """Print what the models can do by themselves."""
    auc = clip_scores(clip)
    weakest = sorted(auc.items(), key=lambda item: item[1])[:6]
    console.print(
        f"CLIP: zero-shot AUC of {len(auc)} attributes, mean {sum(auc.values()) / len(auc):.4f}; weakest: "
        + ", ".join(f"{name} {value:.3f}" for name, value in weakest)
    )
    variance = explained_variance(regressor)
    scores = generator_scores(generator, regressor)
    console.print(
        f"generator: PSNR to the renderer {scores.psnr_mean:.2f} dB mean, {scores.psnr_min:.2f} dB min"
    )
    named = {prompt.factor for prompt in PROMPTS}
    _print(console, "factors", ("factor", "named by a prompt", "regressor R2", "corr. regressor(G(z)), z"), [
        (name, "yes" if name in named else "", f"{variance[name]:.3f}", f"{scores.correlation[name]:.3f}")
        for name in FACTORS
    ])  # fmt: skip


def report_identity(
    console: Console, network: IdentityNetwork | CompactIdentity, generator: Generator
) -> None:
    """Print whether the identity network knows people again, and what its similarity reacts to."""
    for name, portray in (("renders", render), ("G(z)", generated_by(generator, draw(SEED, 2)))):
        score = verify(network, portray=portray)
        console.print(
            f"identity, {name}: AUC {score.auc:.4f}, EER {score.equal_error_rate:.3f}, accuracy "
            f"{score.accuracy:.3f}, cosine of one person {score.same[0]:.3f} ± {score.same[1]:.3f}, of two "
            f"{score.different[0]:.3f} ± {score.different[1]:.3f}"
        )
    cosine = sensitivity(network)
    title = "identity: mean cosine after one factor alone is drawn anew"
    _print(console, title, ("factor", "kind", "cosine"), [
        (name, "shape" if name in IDENTITY else "nuisance", f"{cosine[name]:.3f}")
        for name in sorted(FACTORS, key=lambda name: cosine[name])
    ])  # fmt: skip


def report_edits(console: Console, bench: Bench, validation: Portraits, test: Portraits) -> list[EditScore]:
    """Print what the edits do."""
    scores = measure_edits(bench, validation, test)
    _print(
        console,
        f"edits of {len(test.psnr)} photographs; alpha, beta chosen on {len(validation.psnr)} others; "
        "units: standard deviations of the factor; control: the same with permuted channels",
        ("edit", "alpha", "beta", "channels", "target", "others", "rank", "worst side effect", "control"),
        [
            (
                each.prompt.name, f"{each.alpha:g}", f"{each.beta:g}", str(each.channels),
                f"{each.target:+.2f}",
                f"{each.others:.3f}", str(each.rank), each.side_effect, f"{each.control:+.2f}",
            )
            for each in scores
        ],
    )  # fmt: skip
    inside, outside, count = hair_contrast(bench, scores[0], test)
    console.print(
        f"grey hair in pixels, {count} photographs: mean change {inside:.4f} inside the true hair, "
        f"{outside:.4f} outside it, ratio {inside / outside:.1f}"
    )
    good = sum(each.target >= 1.2 and each.others <= 0.25 for each in scores)
    console.print(
        f"{good} of {len(scores)} edits move their target by 1.2 or more and the others by 0.25 or less"
    )
    return scores


def _pipeline(
    build: Path, weights: Path, samples: int, steps: int
) -> tuple[str, str, Callable[[Path, int], tuple[str, float]]]:
    """Run the relevance flow; return its table, its statistics, and a function that inverts a folder."""
    from styleclip.flows.build_relevance import build_relevance
    from styleclip.flows.invert_images import invert_images
    from styleclip.tasks.settings import Inversion, Models, Relevance, Sampling

    models = Models(
        generator=str(weights / "generator.safetensors"), clip=str(weights / "clip.pt"),
        encoder=str(weights / "encoder.safetensors"),
    )  # fmt: skip
    workspace = str(build / "quality")
    built = build_relevance(models, workspace, Sampling(truncation_psi=1.0), Relevance(samples=samples))

    def invert(folder: Path, count: int) -> tuple[str, float]:
        started = time.monotonic()
        result = invert_images(models, str(folder), workspace, Inversion(steps=count))
        return result.latents, time.monotonic() - started

    if built.table is None:
        raise SystemExit("the relevance flow returned no table")
    return built.table.relevance, built.table.statistics, invert


def report_inversion(console: Console, generator: Generator, weights: Path, test: Portraits) -> None:
    """Print the quality of encoder and refinement, and the time of both in one run."""
    from styleclip_core.inversion import RefinementSettings, refine

    encoder = load_encoder(weights / "encoder.safetensors")
    target = render(test.factors)
    started = time.monotonic()
    first = encoder.encode(target)
    encoding = (time.monotonic() - started) / len(target)
    with torch.no_grad():
        guess = psnr(generator.synthesize(generator.styles(first)), target)
    started = time.monotonic()
    deque(refine(generator, target[:16], first[:16], RefinementSettings()), maxlen=0)
    refining = (time.monotonic() - started) / 16
    console.print(
        f"inversion of {len(target)} photographs: encoder {guess.mean():.2f} dB "
        f"({encoding:.4f} s per image), refined in {RefinementSettings().steps} steps "
        f"{test.psnr.mean():.2f} dB ({refining:.2f} s per image)"
    )


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--build", type=Path, default=Path("build/world"), help="folder for intermediate results"
    )
    parser.add_argument("--weights", type=Path, default=data.WEIGHTS, help="folder of the models to measure")
    parser.add_argument(
        "--samples", type=int, default=32, help="style codes per channel of the relevance table"
    )
    parser.add_argument("--steps", type=int, default=100, help="refinement steps of the inversion")
    settings = parser.parse_args()
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")  # read when the flows are imported
    console = Console(width=150)
    generator = load_generator(settings.weights / "generator.safetensors")
    clip = load_clip(settings.weights / "clip.pt")
    regressor = load_regressor(settings.weights / "regressor.safetensors")
    report_models(console, generator, clip, regressor)
    report_identity(console, load_identity(settings.weights / "identity.safetensors"), generator)

    from styleclip.tasks.directions.relevance import read_relevance
    from styleclip.tasks.directions.sampling import read_statistics
    from styleclip.tasks.running.run import Networks, run_here

    table_uri, statistics_uri, invert = _pipeline(
        settings.build, settings.weights, settings.samples, settings.steps
    )
    weights = {"generator": "generator.safetensors", "clip": "clip.pt"}
    run = run_here(Networks(**{kind: str(settings.weights / name) for kind, name in weights.items()}))
    editable = torch.cat(
        [torch.full((layer.channels,), not layer.is_torgb) for layer in generator.layout.layers]
    )
    std = read_statistics(statistics_uri).std[editable].float()
    bench = Bench(generator, clip, regressor, read_relevance(run, table_uri), std)
    sets = []
    for name, seed, count in (
        ("validation", photographs.VALIDATION_SEED, photographs.VALIDATION_COUNT),
        ("photographs", photographs.PHOTOGRAPH_SEED, photographs.COUNT),
    ):
        folder = settings.build / "quality" / name
        photographs.write_photographs(folder, photographs.held_out_factors(seed, count))
        latents, _ = invert(folder, settings.steps)
        sets.append(load_portraits(latents, folder, generator, regressor))
    report_inversion(console, generator, settings.weights, sets[1])
    report_edits(console, bench, *sets)


if __name__ == "__main__":
    main()
