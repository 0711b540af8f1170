"""Latent optimization: many pairs at once against one after the other.

The loop of the reference is written as the published script works: one pair, one image per step. The same
pairs, one at a time through ours, must give the same bits as together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.reference import reference_optimization
from benchmarks.report import Options, Section
from styleclip import data
from styleclip_core import load_clip, load_generator
from styleclip_core.optimization import PRESETS, optimize
from styleclip_core.sampling import sample_z

PAIRS, STEPS, SINGLES = 32, 10, 4


def measure(options: Options) -> Iterator[Section]:
    """Yield one row: steps per second of the reference's loop and of ours, their ratio, the difference."""
    del options  # embedded models, one size
    generator, clip = load_generator(data.GENERATOR), load_clip(data.CLIP)
    with torch.no_grad():
        w_source = generator.map(sample_z(0, range(PAIRS), generator.config.z_dim))
    prompts = ("face with grey hair", "face with glasses", "smiling face", "face with a hat")
    text = clip.embed_text(prompts).repeat(PAIRS // len(prompts), 1)
    settings = replace(PRESETS["published"], steps=STEPS)
    started = time.perf_counter()
    longer = replace(settings, steps=STEPS + 1)  # it draws its last image without a step
    for index in range(PAIRS):
        reference_optimization(generator, clip.embed_images, w_source[index : index + 1], text[index], longer)
    slow = time.perf_counter() - started
    started = time.perf_counter()
    *_, together = optimize(generator, clip.embed_images, w_source, text, settings)
    fast = time.perf_counter() - started
    difference = 0.0
    for index in range(0, PAIRS, PAIRS // SINGLES):
        part = slice(index, index + 1)
        *_, alone = optimize(generator, clip.embed_images, w_source[part], text[part], settings)
        difference = max(difference, (alone.latents - together.latents[part]).abs().max().item())
    yield Section(
        f"latent optimization, {PAIRS} pairs, {STEPS} steps",
        ("reference's loop", "ours", "ratio", "difference, alone against together"),
        [(
            f"{PAIRS * STEPS / slow:.1f} steps/s", f"{PAIRS * STEPS / fast:.1f} steps/s",
            f"{slow / fast:.1f}", f"{difference:.1e}",
        )],
        {"ratio": slow / fast},
    )  # fmt: skip
