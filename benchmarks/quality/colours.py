"""Five colours on all photographs: is grey grey, and black black?

Factors read off an image cannot tell grey from lilac, as no portrait is lilac. The true picture can.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from benchmarks.quality.counterfactual import Counterfactuals, errors
from benchmarks.quality.prompts import PROMPTS
from benchmarks.quality.sweep import Portraits, portraits
from benchmarks.quality.world import QualityWorld
from benchmarks.report import Section
from styleclip.data.world.quality import CHOSEN, Prompt
from styleclip_core.editing import ChannelSelection, style_direction

COLOURS = ("grey_hair", "black_hair", "blond_hair", "red_hair", "bg_blue")
WAYS = ("alpha and beta by the truth", "automatic", "automatic, matched", "the true picture, by the encoder")


@torch.no_grad()
def measured(world: QualityWorld, prompt: Prompt) -> dict[str, Tensor]:
    """Return the errors of every way's edits of all photographs, by ``<way>/<figure>``, ``[96]`` each."""
    start = _everybody(world)
    truth = Counterfactuals(prompt, world.shown)
    found = dict[str, Tensor]()
    for way in WAYS:
        images = _edited(world, prompt, way, start, truth)
        nearest = truth.nearest(images)
        figures = errors(images, nearest.images, start.images, truth.region) | {"reached": nearest.value}
        found |= {f"{way}/{figure}": values for figure, values in figures.items()}
    return found


@cache
def _everybody(world: QualityWorld) -> Portraits:
    return portraits(world, "everybody", world.w_plus)


def _edited(
    world: QualityWorld, prompt: Prompt, way: str, start: Portraits, truth: Counterfactuals
) -> Tensor:
    if way == WAYS[3]:
        whole = truth.at(torch.ones(len(start.images)))
        latents = torch.cat([world.encoder.encode(part) for part in whole.split(32)])
        return world.draw(world.generator.styles(latents))

    if way == "automatic, matched":
        alpha, beta = world.choice(prompt, "matched")
        step = world.matched(prompt, ChannelSelection(beta=beta)).step(start.codes)
    else:
        alpha, selection = _chosen(world, prompt, truth=way == WAYS[0])
        step = style_direction(world.exact_table, world.texts[prompt.name], world.deviations, selection).delta
    return world.draw(start.codes.add(alpha * step))


def _chosen(world: QualityWorld, prompt: Prompt, *, truth: bool) -> tuple[float, ChannelSelection]:
    if not truth:
        alpha, beta = world.choice(prompt, "least-squares")
        return alpha, ChannelSelection(beta=beta, weights="least-squares")
    alpha, beta = CHOSEN[prompt.target]  # by `make world-quality`
    return alpha, ChannelSelection(beta=beta)


def colour_section(world: QualityWorld) -> Section:
    """Return the table of the five colours, measured once and kept."""
    rows, figures = list[tuple[str, ...]](), dict[str, float]()
    for prompt in (each for name in COLOURS for each in PROMPTS if each.name == name):
        found = world.kept(f"colours/{prompt.name}", lambda prompt=prompt: measured(world, prompt))  # type: ignore[misc]
        for way in WAYS:
            own = {
                name.rpartition("/")[2]: each for name, each in found.items() if name.startswith(f"{way}/")
            }
            counted = own["inside"].isfinite()
            fell = int((own["chroma"] < own["chroma_before"])[counted].sum())
            inside = own["inside"][counted]
            figures |= {
                f"{prompt.name}, {way}: fell": fell,
                f"{prompt.name}, {way}: median": inside.median().item(),
            }
            rows.append((
                prompt.name, way, str(int(counted.sum())), f"{own['reached'][counted].mean():.2f}",
                f"{inside.median():.1f}", f"{inside.mean():.1f}", f"{own['outside'].mean():.2f}",
                f"{own['psnr'].mean():.1f}",
                f"{own['chroma_before'][counted].mean():.3f} to {own['chroma'][counted].mean():.3f}",
                f"{fell} of {int(counted.sum())}",
            ))  # fmt: skip
    header = ("prompt", "way", "photographs that lack it", "value of the nearest true picture",
              "CIEDE2000 to it, inside: median", "mean", "CIEDE2000 to before, outside", "PSNR, dB",
              "chroma inside", "chroma falls in")  # fmt: skip
    return Section(
        "five colours on all photographs, each edit to its nearest true picture", header, rows, figures
    )
