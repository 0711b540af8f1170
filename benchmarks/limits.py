"""What the machine could do at most, and what fraction of that the engine reaches.

The limits are measured in the same run, on the same device and threads: the rate of a large matrix product
and of a large copy. Products and bytes are counted (``counting``), and either gives a least time for the work
as it is written; the engine's time over the larger one is its distance.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch

from benchmarks.counting import count_quiet
from benchmarks.networks import Case, cases, clock
from benchmarks.report import Options, Section
from styleclip_core.relevance import RelevanceSettings

_BATCH = 32


def product_rate(
    device: str, rounds: int, dtype: torch.dtype = torch.float32, side: int | None = None
) -> float:
    """Return the best rate of a square matrix product in operations per second."""
    side = side or (1024 if device == "cpu" else 8192)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    repeat = 5
    return max(
        repeat * 2 * side**3 / clock(device, lambda: [a @ b for _ in range(repeat)])[0]
        for _ in range(rounds + 1)
    )


def copy_rate(device: str, rounds: int, size: int | None = None) -> float:
    """Return the best rate of a copy that no cache holds, in bytes read and written per second."""
    size = size or (2**26 if device == "cpu" else 2**30)
    source = torch.randn(size, device=device)
    target = torch.empty_like(source)
    seconds = min(clock(device, lambda: target.copy_(source))[0] for _ in range(rounds + 1))
    return 2 * source.nbytes / seconds


def measure(options: Options) -> Iterator[Section]:
    """Yield the machine's rates, then the engine's fractions of them."""
    products, copies = (rate(options.device, options.rounds) for rate in (product_rate, copy_rate))
    yield Section(
        f"the machine's limits, float32, {options.device}, {torch.get_num_threads()} thread(s)",
        ("matrix product", "copy"),
        [(f"{products / 1e9:.1f} GFLOP/s", f"{copies / 1e9:.1f} GB/s read and written")],
        {"FLOP/s": products, "bytes/s": copies},
    )
    for case in cases(options):
        rows, figures = list[tuple[str, ...]](), dict[str, float]()
        for name, images, work in _work(case):
            cost = count_quiet(work) * (1 / images)
            timed = [clock(options.device, _quiet(work))[0] / images for _ in range(options.rounds + 1)]
            seconds = statistics.median(timed[1:])
            least = cost.flops / products, cost.moved / copies
            rows.append((
                name, f"{cost.flops / 1e6:.1f}", f"{cost.moved / 1e6:.1f}", f"{seconds * 1e3:.2f}",
                f"{1 / seconds:.0f}", *(f"{each * 1e3:.2f} ({each / seconds:.0%})" for each in least),
            ))  # fmt: skip
            figures[f"{name}: fraction of the matrix product's rate"] = least[0] / seconds
            figures[f"{name}: images/s"] = 1 / seconds
        yield Section(
            f"{case.name}: per image",
            ("work", "MFLOP", "MB moved", "ms", "images/s", "ms of products alone (fraction)",
             "ms of copies alone (fraction)"),
            rows, figures,
        )  # fmt: skip


def _quiet(work: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return work()

    return run


def _work(case: Case) -> Iterator[tuple[str, int, Callable[[], object]]]:
    generator, clip = case.generator, case.clip
    size = min(_BATCH, case.sampled.batch_size)
    some = case.sampled.select(slice(0, size))
    with torch.no_grad():
        images = generator.synthesize(some)
    yield "synthesis", size, lambda: generator.synthesize(some)
    yield "CLIP with its preprocessing", size, lambda: clip.embed_images(images)
    yield "synthesis + CLIP", size, lambda: clip.embed_images(generator.synthesize(some))
    one, settings = case.sampled.select(slice(0, 1)), RelevanceSettings(batch_size=_BATCH)
    layers = generator.layout.editable
    for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
        channels = case.middle(layer.name, _BATCH // 2)
        yield (
            f"exact mode, a move of {layer.name}",
            2 * len(channels),
            lambda layer=layer, channels=channels: case.measure(layer.name, channels, settings, one),  # type: ignore[misc]
        )
