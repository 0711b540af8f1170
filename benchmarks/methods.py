"""What the three methods do in the embedded world, each beside the reference's definition of it.

    python -m benchmarks.methods --help

Twelve prompts, 96 photographs; a row per method and a row for the reference's loop on the same models.
The loops are written as the published scripts work: one image at a time, mutated in place, no batches,
no stops. They are slow, so they edit a few of the photographs. Alpha and beta of either table are chosen on
other portraits, the mappers' strength is the published 0.1. Moves are read by the factor regressor, in
standard deviations of the factor; *identity* is the similarity of the edited portrait to the inverted
one. Time is that of the process, one thread. Whatever is done lies under ``--out``, a file per method and
prompt, and a later call goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.reference import reference_mapper, reference_optimization, reference_table
from styleclip import data
from styleclip.data.world import photographs
from styleclip.data.world.quality import PROMPTS, Bench, Portraits, Prompt, choose
from styleclip.data.world.regressor import load_regressor
from styleclip.data.world.renderer import FACTORS, INDEX, render
from styleclip_core import load_clip, load_encoder, load_generator, load_identity
from styleclip_core.derivatives import embedding_basis, unit_derivatives
from styleclip_core.editing import EditedLatents
from styleclip_core.files.checkpoint import read_state, write_state
from styleclip_core.images import psnr
from styleclip_core.inversion import RefinementSettings, refine
from styleclip_core.mapper_training import PRESETS as MAPPER_PRESETS
from styleclip_core.mapper_training import MapperTraining, MapperTrainingSettings, apply_mapper
from styleclip_core.models.mapper import PUBLISHED_STRENGTH, Mapper
from styleclip_core.optimization import (
    PRESETS,
    OptimizationSettings,
    optimize,
    published_embedding,
)
from styleclip_core.prompts import embed_prompt, text_direction
from styleclip_core.relevance import RelevanceSettings, RelevanceTable, measure_channels
from styleclip_core.relevant import RelevantChannels, relevant_channels
from styleclip_core.sampling import measure_statistics, sample_styles
from styleclip_core.style_space import StyleCode

_FAST = RelevanceSettings(batch_size=32, tolerance=0.15, minimum=4)
_DERIVATIVES, _SEED, _TRAINING_SEED = 64, 5, 7003
_LOOKED_AT_SEED = 6  # no other codes are sampled from it
_TRAINING_CODES, _VALIDATION_CODES = 500, 32  # of portraits that are no photographs, for mappers


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done; the defaults are the whole table.

    Attributes:
        photographs: Photographs that every method edits.
        slow: Of them, those that loops over single images edit.
        validation: Other portraits, by which alpha and beta are chosen.
        codes: Style codes of the relevance tables.
        statistics: Style codes behind mean and deviation.
        looked_at: Style codes by which presets that keep the person find their channels.
        steps: Steps of an optimization; 0 for those of its preset.
        mapper_steps: Steps of a mapper's training; 0 for those of its preset.
    """

    photographs: int = photographs.COUNT
    slow: int = 4
    validation: int = 32
    codes: int = 32
    statistics: int = 20_000
    looked_at: int = 2000
    steps: int = 0
    mapper_steps: int = 0


@dataclass(frozen=True)
class Edited:
    """What a method made of a few portraits.

    Attributes:
        codes: Their style codes.
        seconds: Time that took.
        prepared: Time spent for the prompt before the first portrait, or once for all prompts.
    """

    codes: StyleCode
    seconds: float
    prepared: float


Method = Callable[[Prompt], Edited]
Settings = TypeVar("Settings", OptimizationSettings, MapperTrainingSettings)


class World:
    """The embedded models, the photographs in their latent space, and what is made once."""

    def __init__(self, sizes: Sizes, folder: Path) -> None:
        self.sizes, self.folder = sizes, folder
        self.generator, self.clip = load_generator(data.GENERATOR), load_clip(data.CLIP)
        self.regressor, self.identity = load_regressor(data.REGRESSOR), load_identity(data.IDENTITY)
        self.encoder = load_encoder(data.ENCODER)
        factors = photographs.held_out_factors(photographs.PHOTOGRAPH_SEED, photographs.COUNT)
        self.w_plus = self._invert("photographs", factors[: sizes.photographs])

    def _invert(self, name: str, factors: Tensor) -> Tensor:
        @torch.enable_grad()
        def invert() -> dict[str, Tensor]:
            found = []
            for target in render(factors).split(16):
                *_, end = refine(self.generator, target, self.encoder.encode(target), RefinementSettings())
                found.append(end.w_plus)
            return {"w_plus": torch.cat(found)}

        return self._kept(name, invert)["w_plus"]

    def _kept(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return tensors of an earlier call, or make them, note the time that takes, and keep them."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            started = time.process_time()
            made = make()
            made["seconds"] = torch.tensor(time.process_time() - started)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_state(path, made, {})
        return read_state(path)[0]

    def kept(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return tensors that an earlier call kept under a name, or make and keep them."""
        found = self._kept(name, make)
        found.pop("seconds")
        return found

    def _table(self, name: str, make: Callable[[], RelevanceTable]) -> tuple[RelevanceTable, float]:
        def measure() -> dict[str, Tensor]:
            table = make()
            return {"n": table.n, "direction": table.direction}

        kept = self._kept(name, measure)
        table = RelevanceTable(self.generator.layout, kept["n"], kept["direction"])
        return table, kept["seconds"].item()

    @torch.no_grad()
    def draw(self, codes: StyleCode) -> Tensor:
        """Return the images of style codes, ``[B, 3, H, H]``."""
        parts = torch.arange(codes.batch_size).split(32)
        return torch.cat([self.generator.synthesize(codes.select(part)) for part in parts])

    @cached_property
    def validation(self) -> Portraits:
        """Portraits by which alpha and beta are chosen, inverted as the photographs are."""
        count = self.sizes.validation
        factors = photographs.held_out_factors(photographs.VALIDATION_SEED, count)
        codes = self.generator.styles(self._invert("validation", factors))
        images = self.draw(codes)
        return Portraits(codes, images, self.regressor.read(images), factors, psnr(images, render(factors)))

    @cached_property
    def training(self) -> Tensor:
        """Codes to train mappers on, the last of them for validation, ``[n, L, W]``."""
        count = _TRAINING_CODES + _VALIDATION_CODES
        portraits = render(photographs.held_out_factors(_TRAINING_SEED, count))
        with torch.no_grad():
            return torch.cat([self.encoder.encode(part) for part in portraits.split(100)])

    @cached_property
    def statistics(self) -> tuple[StyleCode, StyleCode]:
        """Mean and deviation of every style channel, as codes of one."""
        ids = range(self.sizes.statistics)
        batches = sample_styles(self.generator, seed=_SEED, sample_ids=ids, truncation_psi=1.0)
        found = measure_statistics(styles for _, _, styles in batches)
        return tuple(  # type: ignore[return-value]
            StyleCode.from_flat(self.generator.layout, each[None].float()) for each in (found.mean, found.std)
        )

    @cached_property
    def sampled(self) -> StyleCode:
        """The codes that relevance is measured on."""
        ids = range(self.sizes.codes)
        ((_, _, codes),) = sample_styles(self.generator, seed=_SEED, sample_ids=ids, truncation_psi=1.0)
        return codes

    @cached_property
    def looked_at(self) -> tuple[StyleCode, Tensor]:
        """Return other sampled codes and CLIP's embeddings of what they draw, ``[n, D]``."""

        def embed() -> dict[str, Tensor]:
            ids = range(self.sizes.looked_at)
            batches = sample_styles(self.generator, seed=_LOOKED_AT_SEED, sample_ids=ids, truncation_psi=1.0)
            found = [(codes.flat(), self.clip.embed_images(self.draw(codes))) for _, _, codes in batches]
            return {"codes": torch.cat([c for c, _ in found]), "embedding": torch.cat([e for _, e in found])}

        kept = self.kept("looked-at", embed)
        return StyleCode.from_flat(self.generator.layout, kept["codes"]), kept["embedding"]

    def relevant(self, prompt: Prompt) -> RelevantChannels:
        """Return the channels that the prompt concerns."""
        codes, embedding = self.looked_at
        text = text_direction(self.clip, neutral=prompt.neutral, target=prompt.target)
        embed, scale = self.clip.embed_images, self.clip.logit_scale
        return relevant_channels(self.generator, embed, codes, embedding, text, scale)

    def guides(
        self, prompt: Prompt, settings: OptimizationSettings | MapperTrainingSettings
    ) -> dict[str, Any]:
        """Return what optimization and training are given where two prompts are compared."""
        if not settings.needs_neutral:
            return {}
        neutral = embed_prompt(self.clip, prompt.neutral)
        return {
            "embed_identity": self.identity.embed, "neutral": neutral, "scale": self.clip.logit_scale,
            "channels": self.relevant(prompt),
        }  # fmt: skip

    def mapper_training(
        self, prompt: Prompt, settings: MapperTrainingSettings, guides: dict[str, Any]
    ) -> MapperTraining:
        """Return the training of a mapper for a prompt, before its first step."""
        text, codes = embed_prompt(self.clip, prompt.target), self.training
        return MapperTraining(
            self.generator, self.clip.embed_images, text, codes[:_TRAINING_CODES], codes[_TRAINING_CODES:],
            settings, **guides,
        )  # fmt: skip

    def optimize(
        self, w_plus: Tensor, prompt: Prompt, settings: OptimizationSettings, guides: dict[str, Any]
    ) -> Tensor:
        """Return codes optimized for a prompt, ``[B, L, W]`` in W+ and ``[B, M]`` in style space."""
        count = len(w_plus)
        text = embed_prompt(self.clip, prompt.target).expand(count, -1)
        if guides:
            guides = guides | {"neutral": guides["neutral"].expand(count, -1)}
        states = optimize(self.generator, self.clip.embed_images, w_plus, text, settings, **guides)
        return deque(states, maxlen=1)[0].latents

    @cached_property
    def fast_table(self) -> tuple[RelevanceTable, float]:
        """The relevance table of the fast mode, and the time it takes."""
        return self._table("relevance-fast", self._fast_table)

    def _fast_table(self) -> RelevanceTable:
        _, std = self.statistics
        embed = self.clip.embed_images
        basis = embedding_basis(self.generator, embed, self.sampled, _DERIVATIVES)
        known = torch.cat(list(unit_derivatives(self.generator, embed, self.sampled, basis))) @ basis
        parts = []
        for layer in self.generator.layout.editable:
            expected = known[:, self.generator.layout.editable_slices[layer.name]]
            deviation = std[layer.name][0]
            parts.append(measure_channels(
                self.generator, embed, self.sampled, layer=layer.name, channels=range(layer.channels),
                mean=torch.zeros_like(deviation), std=deviation, settings=_FAST, expected=expected,
            ))  # fmt: skip
        return RelevanceTable.from_parts(self.generator.layout, parts)

    @cached_property
    def reference_table(self) -> tuple[RelevanceTable, float]:
        """The relevance table of the published script, and the time it takes."""
        mean, std = self.statistics
        return self._table(
            "relevance-reference",
            lambda: reference_table(self.generator, self.clip, self.sampled, mean, std),
        )


# ---- methods --------------------------------------------------------------------------------------


def methods(world: World) -> dict[str, tuple[int, Method]]:
    """Return every row of the table: how many photographs it edits, and how."""
    sizes = world.sizes
    gentle, published, kept = (
        _steps(PRESETS[name], sizes.steps) for name in ("gentle", "published", "faithful")
    )
    small, keeping = (_steps(MAPPER_PRESETS[name], sizes.mapper_steps) for name in ("small", "faithful"))
    every, few = sizes.photographs, min(sizes.slow, sizes.photographs)
    raw = published_embedding(world.clip)
    return {
        "global directions": (every, lambda prompt: _global(world, prompt, *world.fast_table)),
        "global directions, reference": (
            every, lambda prompt: _global(world, prompt, *world.reference_table),
        ),
        "mapper": (every, lambda prompt: _mapper(world, prompt, small)),
        "mapper, faithful": (every, lambda prompt: _mapper(world, prompt, keeping)),
        "mapper, reference": (every, lambda prompt: _mapper_of_reference(world, prompt)),
        "optimization": (every, lambda prompt: _optimize(world, prompt, gentle)),
        "optimization, faithful": (every, lambda prompt: _optimize(world, prompt, kept)),
        "optimization, reference's loop, our settings": (
            few, lambda prompt: _one_by_one(world, prompt, few, gentle, world.clip.embed_images),
        ),
        "optimization, reference": (
            few, lambda prompt: _one_by_one(world, prompt, few, published, raw),
        ),
    }  # fmt: skip


def _steps(settings: Settings, steps: int) -> Settings:
    return replace(settings, steps=steps) if steps else settings


def _timed(work: Callable[[], StyleCode], prepared: float) -> Edited:
    started = time.process_time()
    codes = work()
    return Edited(codes, time.process_time() - started, prepared)


@torch.no_grad()
def _global(world: World, prompt: Prompt, table: RelevanceTable, prepared: float) -> Edited:
    std = torch.cat([world.statistics[1][layer.name][0] for layer in world.generator.layout.editable])
    bench = Bench(world.generator, world.clip, world.regressor, table, std)
    chosen = choose(bench, prompt, world.validation)
    direction = bench.direction(prompt, chosen.beta)
    if direction is None:
        raise SystemExit(f"{prompt.name}: no channel at beta {chosen.beta}, though it was chosen")

    def move() -> StyleCode:
        codes = world.generator.styles(world.w_plus).add(chosen.alpha * direction.delta)
        world.draw(codes)
        return codes

    return _timed(move, prepared)


def _optimize(world: World, prompt: Prompt, settings: OptimizationSettings) -> Edited:
    guides, prepared = _guided(world, prompt, settings)

    def run() -> StyleCode:
        latents = world.optimize(world.w_plus, prompt, settings, guides)
        if settings.space == "w_plus":
            return world.generator.styles(latents)
        return StyleCode.from_flat(world.generator.layout, latents)

    return _timed(run, prepared)


def _guided(
    world: World, prompt: Prompt, settings: OptimizationSettings | MapperTrainingSettings
) -> tuple[dict[str, Any], float]:
    """Return what settings are given beside their prompt, and the time it took to find that."""
    if settings.needs_neutral:
        _ = world.looked_at  # once for all prompts, so it is no prompt's time
    started = time.process_time()
    return world.guides(prompt, settings), time.process_time() - started


def _one_by_one(
    world: World,
    prompt: Prompt,
    count: int,
    settings: OptimizationSettings,
    embed: Callable[[Tensor], Tensor],
) -> Edited:
    text = embed_prompt(world.clip, prompt.target)

    def run() -> StyleCode:
        each = [
            reference_optimization(world.generator, embed, w, text, settings).flat()
            for w in world.w_plus[:count].split(1)
        ]
        return StyleCode.from_flat(world.generator.layout, torch.cat(each))

    return _timed(run, 0.0)


def _mapper(world: World, prompt: Prompt, settings: MapperTrainingSettings) -> Edited:
    guides, found = _guided(world, prompt, settings)
    training = world.mapper_training(prompt, settings, guides)
    started = time.process_time()
    deque(training.run(), maxlen=0)
    return _apply(world, training.best, found + time.process_time() - started)


def _mapper_of_reference(world: World, prompt: Prompt) -> Edited:
    text, codes = embed_prompt(world.clip, prompt.target, "none"), world.training[:_TRAINING_CODES]
    steps = world.sizes.mapper_steps or MAPPER_PRESETS["small"].steps
    started = time.process_time()
    mapper = reference_mapper(world.generator, published_embedding(world.clip), codes, text, steps)
    return _apply(world, mapper, time.process_time() - started)


@torch.no_grad()
def _apply(world: World, mapper: Mapper, prepared: float) -> Edited:
    def move() -> StyleCode:
        moved = apply_mapper(mapper, world.generator, EditedLatents(world.w_plus), PUBLISHED_STRENGTH)
        codes = moved.codes(world.generator)
        world.draw(codes)
        return codes

    return _timed(move, prepared)


# ---- measuring ------------------------------------------------------------------------------------


def rows_of(world: World, prompt: Prompt, edited: Edited) -> pa.Table:
    """Return a row per portrait: moves of the target and of the others, identity, seconds."""
    count = edited.codes.batch_size
    before, after = world.draw(world.generator.styles(world.w_plus[:count])), world.draw(edited.codes)
    change = world.regressor.read(after) - world.regressor.read(before)
    target = INDEX[prompt.factor]
    unrelated = [i for i, name in enumerate(FACTORS) if i != target and name not in prompt.related]
    known, found = world.identity.embed(before), world.identity.embed(after)
    return pa.table({
        "portrait": list(range(count)),
        "target": (prompt.sign * change[:, target]).tolist(),
        "others": change[:, unrelated].abs().mean(dim=1).tolist(),
        "identity": (known * found).sum(dim=1).tolist(),
        "seconds": [edited.seconds / count] * count,
        "prepared": [edited.prepared] * count,
    })  # fmt: skip


def place(out: Path, sizes: Sizes) -> Path:
    """Return the folder of these sizes, models and settings, so that none of them are mixed."""
    decided = {
        "sizes": asdict(sizes),
        "models": [hashlib.sha256(path.read_bytes()).hexdigest()
                   for path in (data.GENERATOR, data.CLIP, data.ENCODER, data.REGRESSOR, data.IDENTITY)],
        "settings": [asdict(PRESETS[name]) for name in PRESETS]
        + [asdict(MAPPER_PRESETS[name]) for name in MAPPER_PRESETS],
    }  # fmt: skip
    return out / hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:12]


def measure(world: World, folder: Path, chosen: Iterable[str], prompts: Iterable[Prompt]) -> Iterator[Path]:
    """Do what is missing, method by method and prompt by prompt, and yield the file of each."""
    ways, prompts = methods(world), list(prompts)
    for name in chosen:
        for prompt in prompts:
            path = folder / f"{name}.{prompt.name}.parquet".replace(" ", "-").replace("'", "")
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                aside = path.with_suffix(".tmp")
                pq.write_table(rows_of(world, prompt, ways[name][1](prompt)), aside)
                aside.replace(path)
            yield path


def summary(tables: list[pa.Table]) -> list[str]:
    """Return the cells of a method: means over prompts of means over portraits, with standard errors.

    The error is of the choice of portraits; prompts are those of the table and no sample.
    """
    cells = [str(len(tables[0]))]
    for column in ("target", "others", "identity"):
        each = [torch.tensor(table[column].to_pylist()) for table in tables]
        mean = sum(values.mean().item() for values in each) / len(each)
        errors = [values.var().item() / len(values) if len(values) > 1 else math.nan for values in each]
        variance = sum(errors) / len(each) ** 2
        cells.append(f"{mean:.3f} ± {math.sqrt(variance):.3f}")
    for column in ("seconds", "prepared"):
        cells.append(f"{sum(table[column][0].as_py() for table in tables) / len(tables):.3g}")
    return cells


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/methods"), help="folder for results")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="of the 12, how many")
    parser.add_argument("--methods", nargs="*", help="rows to measure, by the start of their names")
    for name, value in asdict(Sizes()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    given = vars(parser.parse_args())
    torch.set_num_threads(1)
    sizes = Sizes(**{name: given[name] for name in asdict(Sizes())})
    folder, console = place(given["out"], sizes), Console(width=150)
    world, prompts = World(sizes, folder), PROMPTS[: given["prompts"]]
    table = Table("method", "photographs", "target", "others", "identity", "s per image", "s to prepare")
    for name in methods(world):
        if given["methods"] and not name.startswith(tuple(given["methods"])):
            continue
        found = []
        for prompt, path in zip(prompts, measure(world, folder, [name], prompts), strict=True):
            found.append(pq.read_table(path))
            console.print(f"{name}, {prompt.name}: {' | '.join(summary(found[-1:]))}", highlight=False)
        table.add_row(name, *summary(found))
    console.print(table)
    console.print(f"{len(prompts)} prompts; results of each photograph in {folder}")


if __name__ == "__main__":
    main()
