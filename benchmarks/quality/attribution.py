"""Why a colour goes wrong: the parts of an edit, each replaced by what the truth knows of it.

    python -m benchmarks.quality.attribution

The *text* is replaced by the mean difference of CLIP's embeddings of true pictures and their portraits, with
the same table; table, channels and weights together by the mean difference of the style codes that the
encoder gives those pairs, which is what one step for all images can do at best; the generator is asked for
the true picture itself. Pairs are of portraits that judge nothing. Each edit is judged by its nearest true
picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from benchmarks.quality.__main__ import place
from benchmarks.quality.colours import COLOURS
from benchmarks.quality.counterfactual import Counterfactuals, errors
from benchmarks.quality.prompts import PROMPTS
from benchmarks.quality.report import markdown
from benchmarks.quality.world import Counts, QualityWorld
from benchmarks.report import Section
from styleclip.data.world import photographs
from styleclip.data.world.quality import CHOSEN, Prompt
from styleclip.data.world.renderer import strengths
from styleclip_core.editing import ChannelSelection, style_direction
from styleclip_core.style_space import StyleCode

_FEWEST = 12  # pixels that must differ for a pair to count
_ORDER = (  # of the rows: what is replaced, before a colon
    "nothing", "the strength", "the text", "table, channels and weights", "the one step for all",
    "all but encoder and generator",
)  # fmt: skip


def _edits(world: QualityWorld, prompt: Prompt) -> Iterator[tuple[str, Tensor]]:
    """Yield what is replaced, and all photographs edited so."""
    codes, text = world.generator.styles(world.w_plus), world.texts[prompt.name]
    differences, seen = _pairs(world, prompt)

    def along(direction: Tensor, alpha: float, selection: ChannelSelection) -> Tensor:
        found = style_direction(world.exact_table, direction, world.deviations, selection)
        return world.draw(codes.add(alpha * found.delta))

    alpha, beta = CHOSEN[prompt.target]
    chosen, squares = ChannelSelection(beta=beta), ChannelSelection(beta=0.15, weights="least-squares")
    yield f"nothing: alpha {alpha:g}, beta {beta:g} by the truth", along(text, alpha, chosen)
    for strength in (1.0, 2.0, 3.0):
        yield f"the strength: least squares, beta 0.15, alpha {strength:g}", along(text, strength, squares)
    for strength in (1.0, 2.0):
        plain = ChannelSelection(beta=0.15)
        yield f"the text: beta 0.15, alpha {strength:g}", along(seen, strength, plain)

    flat, layout = codes.flat(), world.generator.layout
    for share in (0.5, 0.75, 1.0):
        moved = StyleCode.from_flat(layout, flat + share * differences)
        yield f"table, channels and weights: {share:g} of the best step for all", world.draw(moved)
    whole = world.matched(prompt, ChannelSelection(beta=0.15)).step(codes)
    yield "the one step for all: matched, beta 0.15, alpha 1", world.draw(codes.add(whole))
    truth = Counterfactuals(prompt, world.shown).at(torch.ones(len(world.w_plus)))
    latents = torch.cat([world.encoder.encode(part) for part in truth.split(32)])
    yield "all but encoder and generator", world.draw(world.generator.styles(latents))


def _pairs(world: QualityWorld, prompt: Prompt) -> tuple[Tensor, Tensor]:
    """Return the mean differences of style codes, ``[M]``, and of embeddings, a unit vector ``[D]``."""
    factors = photographs.held_out_factors(photographs.VALIDATION_SEED, world.sizes.validation)
    truth = Counterfactuals(prompt, strengths(factors))
    counted = truth.region.sum(dim=(1, 2)) >= _FEWEST
    before, after = (truth.at(torch.full((len(factors),), v))[counted] for v in (0.0, 1.0))

    first, second = (
        world.generator.styles(world.encoder.encode(images)).flat() for images in (before, after)
    )
    seen = (world.clip.embed_images(after) - world.clip.embed_images(before)).mean(dim=0)
    return (second - first).mean(dim=0), F.normalize(seen, dim=0)


@torch.no_grad()
def measured(world: QualityWorld, prompt: Prompt) -> dict[str, Tensor]:
    """Return the errors of every edit, by ``<what is replaced>/<figure>``.

    And ``agreement``, the cosine of text direction and image differences.
    """
    start, truth = world.draw(world.generator.styles(world.w_plus)), Counterfactuals(prompt, world.shown)
    found = {"agreement": F.cosine_similarity(_pairs(world, prompt)[1], world.texts[prompt.name], dim=0)}
    for name, images in _edits(world, prompt):
        nearest = truth.nearest(images)
        figures = errors(images, nearest.images, start, truth.region) | {"reached": nearest.value}
        beyond = ((images.abs() > 1) & truth.region[:, None]).sum() / (3 * truth.region.sum())
        figures["clipped"] = beyond.repeat(len(images))
        found |= {f"{name}/{figure}": values for figure, values in figures.items()}
    return found


def section(world: QualityWorld, prompt: Prompt) -> Section:
    """Return the table of one prompt, measured once and kept."""
    found = world.kept(f"attribution/{prompt.name}", lambda: measured(world, prompt))
    agreement = found.pop("agreement").item()
    rows = []
    names = {key.rpartition("/")[0] for key in found}
    for name in sorted(names, key=lambda name: (_ORDER.index(name.partition(":")[0]), name)):
        reached, inside, outside, clipped, before, after = (
            found[f"{name}/{each}"]
            for each in ("reached", "inside", "outside", "clipped", "chroma_before", "chroma")
        )
        counted = inside.isfinite()
        rows.append((
            name, f"{reached[counted].mean():.2f}", f"{inside[counted].median():.1f}",
            f"{outside.mean():.2f}", f"{(after < before)[counted].sum()} of {counted.sum()}",
            f"{clipped[0]:.1%}",
        ))  # fmt: skip
    header = ("replaced", "value of the nearest true picture", "CIEDE2000 to it, inside: median",
              "CIEDE2000 to before, outside", "chroma falls in", "colours clipped inside")  # fmt: skip
    return Section(f"{prompt.name}: cosine of text and images {agreement:.2f}", header, rows, {})


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/quality"), help="folder for results")
    parser.add_argument("--prompts", nargs="*", choices=COLOURS, default=COLOURS, help="colours to explain")
    given = parser.parse_args()
    torch.set_num_threads(1)
    world = QualityWorld(Counts(), place(given.out, Counts()))
    made = [section(world, each) for each in PROMPTS if each.name in given.prompts]
    Console(width=150).print(markdown(made), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
