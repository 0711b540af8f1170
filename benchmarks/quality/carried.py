"""Which figure of a relevance table tells words that edits reach from words that no channel serves.

    python -m benchmarks.quality.carried --table FOLDER

The folder holds a ``relevance.parquet`` of the embedded world, as ``styleclip build-relevance`` leaves it.
Of the forty prompts of the quality tables, those count as reached whose factor moves half of its room at beta
0.15 and one of three strengths, on sampled portraits that no table was measured on. Beside them stand words
that its CLIP was never taught, which are to be warned of; and words that it knows, of things the generator
does not draw, such as grey beards, which are counted apart. Figures are compared on half of the prompts, by
factor, and the threshold of the pipeline is judged on the other half.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.quality.prompts import PROMPTS, tunes
from styleclip import data
from styleclip.data.world.quality import Prompt, area_under_curve
from styleclip.data.world.regressor import FactorRegressor, load_regressor
from styleclip.data.world.renderer import INDEX
from styleclip_core import load_clip, load_generator
from styleclip_core.diagnostics import CARRIED, carried_share
from styleclip_core.editing import ChannelSelection, style_direction
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.prompts import TextDirection, text_direction
from styleclip_core.relevance import RelevanceTable
from styleclip_core.sampling import measure_statistics, sample_styles

STRENGTHS, REACHED, PORTRAITS, STATISTICS = (2.0, 4.0, 7.0), 0.5, 12, 4000
SELECTION = ChannelSelection(beta=0.15)
UNTAUGHT = (
    "astronaut", "old person", "dog", "zombie", "robot", "clown", "pirate", "vampire", "cat", "a car",
    "a mountain", "a tree", "face with freckles", "face with earrings", "face with a scarf",
    "face with a tattoo", "face with wrinkles", "face with a mask", "face with headphones",
    "face with a crown", "face with a necklace", "face with dreadlocks", "face with a mohawk", "elf",
    "soldier", "doctor", "baby", "Albert Einstein", "anime", "oil painting", "statue",
    "face with a monocle", "face with a third eye", "tired face", "famous face", "New York",
    "face with a bow tie", "face with a scar", "face with gold teeth", "superhero",
)  # fmt: skip
UNDRAWN = (
    "face with green skin", "face with blue skin", "face with pink skin", "face with blue lips",
    "face with green lips", "face with red eyes", "face with green eyes", "face with grey eyes",
    "face with a pink beard", "face with a grey beard", "face with red eyebrows",
    "face with green glasses", "face with red glasses", "face with a green hat", "face with a pink hat",
    "face with long eyes", "face with a long beard", "face with big lips", "face with a small mouth",
    "face with tanned skin",
)  # fmt: skip
Figure = Callable[[RelevanceTable, TextDirection], float]
FIGURES: dict[str, Figure] = {
    "distance of the prompts": lambda table, text: text.norm,
    "largest relevance": lambda table, text: table.relevance(text.direction).abs().max().item(),
    "mean of the ten largest": lambda table, text: (
        table.relevance(text.direction).abs().topk(10).values.mean().item()
    ),
    "channels at beta 0.15": lambda table, text: float(
        (table.relevance(text.direction).abs() >= 0.15).sum().item()
    ),
    "share carried": lambda table, text: carried_share(table, text.direction, SELECTION),
    "length carried": lambda table, text: text.norm * carried_share(table, text.direction, SELECTION),
}


def read(path: Path, generator: Generator) -> RelevanceTable:
    """Return a stored relevance table."""
    stored = pq.read_table(path, columns=["n", "direction"])
    rows = np.stack(stored["direction"].to_numpy(zero_copy_only=False)).astype(np.float32)
    return RelevanceTable(generator.layout, torch.tensor(stored["n"].to_pylist()), torch.from_numpy(rows))


class Bench:
    """Sampled portraits, what is read off them, and the deviations of the channels."""

    def __init__(self, generator: Generator, table: RelevanceTable, regressor: FactorRegressor) -> None:
        self.generator, self.table, self.regressor = generator, table, regressor
        drawn = sample_styles(generator, seed=5, sample_ids=range(STATISTICS), truncation_psi=1.0)
        found = measure_statistics(styles for _, _, styles in drawn)
        self.std = found.std.float()[generator.layout.editable_index]
        ids = range(PORTRAITS)
        ((_, _, self.codes),) = sample_styles(generator, seed=77, sample_ids=ids, truncation_psi=1.0)
        self.before = regressor.read(generator.synthesize(self.codes))

    def moved(self, prompt: Prompt, text: TextDirection) -> float:
        """Return the furthest that edits move the prompt's factor, as a share of its room."""
        index, end = INDEX[prompt.factor], 1.0 if prompt.sign > 0 else 0.0
        way = self.regressor.standardize(torch.full_like(self.before, end)) - self.before
        room = (prompt.sign * way[:, index]).clamp(min=0).mean()

        direction = style_direction(self.table, text.direction, self.std, SELECTION)
        shares = []
        for alpha in STRENGTHS:
            images = self.generator.synthesize(self.codes.add(alpha * direction.delta))
            change = (self.regressor.read(images) - self.before)[:, index].mean()
            shares.append((prompt.sign * change / room).item())
        return max(shares)


@torch.no_grad()
def main() -> None:
    """Measure and print all figures, and how the threshold does on the prompts held out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="folder with relevance.parquet")
    torch.set_num_threads(1)
    generator, clip = load_generator(data.GENERATOR), load_clip(data.CLIP)
    table = read(parser.parse_args().table / "relevance.parquet", generator)
    bench = Bench(generator, table, load_regressor(data.REGRESSOR))

    words = [*(each.target for each in PROMPTS), *UNTAUGHT, *UNDRAWN]
    texts = [text_direction(clip, neutral="face", target=each) for each in words]
    shares = [bench.moved(prompt, text) for prompt, text in zip(PROMPTS, texts, strict=False)]
    reached = torch.tensor([share >= REACHED for share in shares])
    values = {name: torch.tensor([figure(table, text) for text in texts]) for name, figure in FIGURES.items()}

    # a factor's prompts lie in one half, so that nothing tuned on "smiling" is judged on "sad"
    tuned = torch.tensor([tunes(each) for each in PROMPTS])
    half = torch.arange(len(UNTAUGHT)) % 2 == 0
    report(values, reached, tuned, half, min(shares))


def report(values: dict[str, Tensor], reached: Tensor, tuned: Tensor, half: Tensor, least: float) -> None:
    """Print the AUC of every figure on either half, and the errors of the threshold on the second."""
    console = Console(width=120)
    console.print(f"{int(reached.sum())} of {len(reached)} prompts are reached, the least to {least:.2f}")
    count, untaught = len(reached), len(half)
    printed = Table("figure", "AUC, tuning half", "AUC, held out", "AUC against undrawn", "least", "most")
    for name, value in values.items():
        known, strange, undrawn = value.split([count, untaught, len(value) - count - untaught])

        def auc(mine: Tensor, theirs: Tensor) -> str:
            truth = torch.cat([torch.ones(len(mine)), torch.zeros(len(theirs))]).bool()
            return f"{area_under_curve(torch.cat([mine, theirs]), truth):.3f}"

        cells = [
            auc(known[reached & tuned], strange[half]),
            auc(known[reached & ~tuned], strange[~half]),
            auc(known[reached & ~tuned], undrawn),
        ]
        printed.add_row(name, *cells, f"{known[reached].min():.3f}", f"{strange.max():.3f}")
    console.print(printed)

    carried = values["length carried"]
    known, strange, undrawn = carried.split([count, untaught, len(carried) - count - untaught])
    right, warned = known[reached & ~tuned] >= CARRIED, strange[~half] < CARRIED
    console.print(
        f"held out, at the threshold {CARRIED:g}: of {len(right)} that are reached {int(right.sum())} pass, "
        f"of {len(warned)} untaught {int(warned.sum())} are warned of; of {len(undrawn)} that CLIP knows and "
        f"nobody draws {int((undrawn < CARRIED).sum())} are"
    )
    console.print("least: of prompts that are reached; most: of words that were never taught")


if __name__ == "__main__":
    main()
