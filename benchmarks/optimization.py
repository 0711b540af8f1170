"""Latent optimization: pairs of image and prompt, beside the published script's steps for each of them.

Both work towards raw prompts with the published losses, one thread. The script has one pair at a time, so its
steps for eight are eight times those for one, and are not run. Rounds of both alternate, as other programs on
the machine slow both, and a figure is the median of its rounds. The same pairs, one at a time through ours,
must give the same bits as together: the size of a chunk is said then, as it is by a run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import torch

from benchmarks.published import PublishedScript
from benchmarks.report import Options, Section
from styleclip import data
from styleclip_core import load_clip, load_generator
from styleclip_core.optimization import PRESETS, fitting_chunk, optimize, published_embedding
from styleclip_core.sampling import sample_z

PAIRS, STEPS, ROUNDS = (1, 8, 32), 10, 7
_PROMPTS = ("face with grey hair", "face with glasses", "smiling face", "face with a hat")


def measure(options: Options) -> Iterator[Section]:
    """Yield a row for each number of pairs: milliseconds of the script and of ours, and their ratio."""
    del options  # embedded models, one size
    generator, clip = load_generator(data.GENERATOR), load_clip(data.CLIP)
    script, embed = PublishedScript(generator, clip), published_embedding(clip)
    with torch.no_grad():
        w_source = generator.map(sample_z(0, range(max(PAIRS)), generator.config.z_dim))
    text = clip.embed_text(_PROMPTS).repeat(max(PAIRS) // len(_PROMPTS), 1)
    settings = replace(PRESETS["published"], steps=STEPS)

    def ours(count: int) -> None:
        deque(optimize(generator, embed, w_source[:count], text[:count], settings), maxlen=0)

    # by process time, as a busy machine would be measured otherwise
    works: dict[int, Callable[[], object]] = {0: lambda: script.optimize(w_source[:1], _PROMPTS[0], settings)}
    works |= {count: lambda count=count: ours(count) for count in PAIRS}  # type: ignore[misc]
    seconds: dict[int, list[float]] = {count: [] for count in works}
    for _ in range(1 + ROUNDS):
        for count, work in works.items():
            started = time.process_time()
            work()
            seconds[count].append(time.process_time() - started)
    step = {
        count: median(found[1:]) / STEPS / max(1, count) for count, found in seconds.items()
    }  # the first round warms up

    rows = [
        (
            f"{count}", f"{fitting_chunk(count)}", f"{1e3 * step[0]:.1f} ms", f"{1e3 * step[count]:.1f} ms",
            f"{step[0] / step[count]:.2f}",
        )
        for count in PAIRS
    ]  # fmt: skip
    yield Section(
        f"latent optimization, a step of a pair, median of {ROUNDS} rounds of {STEPS} steps",
        ("pairs", "chunk", "published script", "ours", "ratio"), rows,
        {f"ratio of {count}": step[0] / step[count] for count in PAIRS},
    )  # fmt: skip

    difference, said = 0.0, replace(settings, chunk=fitting_chunk(max(PAIRS)))
    *_, together = optimize(generator, embed, w_source, text, said)
    for index in range(0, max(PAIRS), 8):
        part = slice(index, index + 1)
        *_, alone = optimize(generator, embed, w_source[part], text[part], said)
        difference = max(difference, (alone.latents - together.latents[part]).abs().max().item())
    yield Section(
        f"the same pairs alone and among {max(PAIRS)}, chunks of {said.chunk}",
        ("largest difference of a latent",), [(f"{difference:.1e}",)], {"difference": difference},
    )  # fmt: skip
