"""Images a second, and what share of the machine's limits that is; edits as they become files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from benchmarks.counting import Cost, count_quiet
from benchmarks.gpu.networks import PRECISIONS, Bench, Precision, computing
from benchmarks.gpu.parts import Goal, Row
from benchmarks.gpu.timing import Timing, timed
from benchmarks.limits import copy_rate, product_rate
from styleclip_core.images import encode_image
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.settings.saving import Format, SavingSettings
from styleclip_core.style_space import StyleCode

_COUNTED = 2  # images whose operations are counted
_DRAWN = 16  # edits that are drawn at once
_PER_EDIT = Goal(5.0)


def limits(bench: Bench) -> Iterator[Row]:
    """Yield the rates of a large copy and of large matrix products, by precision."""
    copies = bench.rates["copy"] = copy_rate(bench.device.type, bench.sizes.rounds, bench.sizes.copy_numbers)
    yield Row("copy", copies / 1e9, "GB/s", note="read and written")
    for precision in PRECISIONS:
        dtype = getattr(torch, precision) if precision in ("bfloat16", "float16") else torch.float32
        with computing(bench.device, precision):
            rate = product_rate(bench.device.type, bench.sizes.rounds, dtype, bench.sizes.product_side)
        bench.rates[precision] = rate
        yield Row(f"matrix product, {precision}", rate / 1e12, "TFLOP/s", note="the best of several")


def synthesis(bench: Bench) -> Iterator[Row]:
    """Yield images/s of synthesis by resolution, precision and batch, and the share of the limits."""
    for resolution in bench.sizes.resolutions:
        case = bench.case(resolution)
        for precision in PRECISIONS:
            cost = _counted(
                bench, precision, partial(case.generator.synthesize, _first(case.sampled, _COUNTED))
            )
            for batch in bench.sizes.batches:
                some = _first(case.sampled, batch)
                found = _timed(bench, precision, partial(case.generator.synthesize, some))
                yield from _rows(
                    bench, f"{resolution} px, {precision}, batch {batch}", precision, found, batch, cost
                )


def clip(bench: Bench) -> Iterator[Row]:
    """Yield images/s of CLIP with its preprocessing, as a GPU loads it, with TF32 products, in float32."""
    side, most = bench.sizes.resolutions[-1], max(_COUNTED, *bench.sizes.clip_batches)
    images = bench.images(most, side)
    ways: tuple[tuple[Precision, bool], ...] = (("float16", True), ("tf32", False), ("float32", False))
    for precision, halved in ways:
        model = bench.clip(halved=halved)
        # weights of 16 bits say what is computed in: there is nothing to cast
        inside = "float32" if halved else precision
        cost = _counted(bench, inside, partial(model.embed_images, images[:_COUNTED]))
        for batch in bench.sizes.clip_batches:
            found = _timed(bench, inside, partial(model.embed_images, images[:batch]))
            what = f"images of {side} px, {precision}{' as loaded' if halved else ''}, batch {batch}"
            yield from _rows(bench, what, precision, found, batch, cost)


def _first(codes: StyleCode, count: int) -> StyleCode:
    return codes.select(slice(0, count))


def _counted(bench: Bench, precision: Precision, work: Callable[[], object]) -> Cost:
    """Return what one of the counted images asks for, in this precision."""
    with computing(bench.device, precision):
        return count_quiet(work) * (1 / _COUNTED)


def _timed(bench: Bench, precision: Precision, work: Callable[[], object]) -> Timing:
    with torch.no_grad(), computing(bench.device, precision):
        return timed(bench.device, work, rounds=bench.sizes.rounds, settle=bench.sizes.settle)


def _rows(
    bench: Bench, what: str, precision: Precision, found: Timing, batch: int, cost: Cost
) -> Iterator[Row]:
    rate, error = found.rate(batch)
    yield Row(what, rate, "images/s", error)
    if not {"copy", precision} <= bench.rates.keys():
        return  # the machine's limits were not measured; their own part says why

    # either limit gives a least time for the work as it is written
    products, copies = cost.flops / bench.rates[precision], cost.moved / bench.rates["copy"]
    share = max(products, copies) / found.per(batch).seconds
    how = (
        f"{cost.flops / 1e9:.3g} GFLOP and {cost.moved / 1e9:.3g} GB an image: {products * 1e3:.3g} ms of "
        f"products or {copies * 1e3:.3g} ms of copies alone"
    )
    yield Row(f"{what}: share of the limit", 100 * share, "%", note=how)


def edits(bench: Bench) -> Iterator[Row]:
    """Yield the time of an edit, drawn alone and with the encoding of its file, which threads do."""
    for resolution, count in zip(bench.sizes.resolutions, bench.sizes.edits, strict=True):
        case = bench.case(resolution)
        # a move of a tenth of a deviation of every channel: what it costs does not depend on where it goes
        moved = _repeated(case.sampled.add(0.1 * case.deviations.to(bench.device)), count)
        goal = _PER_EDIT if resolution == bench.sizes.resolutions[-1] and not bench.small else None

        forms: tuple[Format | None, ...] = (None, "jpeg", "png")
        for form in forms:
            with torch.no_grad():
                work = partial(_edit, case.generator, moved, form)
                found = timed(bench.device, work, rounds=bench.sizes.rounds)
            name = f"{resolution} px, {'drawn and brought to the host' if form is None else form}"
            rate, error = found.rate(count)
            how = f"{count} edits, {min(_DRAWN, count)} drawn at once, {os.cpu_count()} thread(s) encode"
            each = found.per(count)
            yield Row(f"{name}: an edit", each.seconds * 1e3, "ms", each.error * 1e3, goal, how)
            yield Row(f"{name}: edits", rate, "edits/s", error)


def _repeated(codes: StyleCode, count: int) -> StyleCode:
    index = torch.arange(count, device=codes.device) % codes.batch_size
    return codes.select(index)


def _edit(generator: Generator, codes: StyleCode, form: Format | None) -> int:
    """Draw codes and encode their images while the next ones are drawn; returns the bytes of all files."""
    files: list[Future[bytes]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, codes.batch_size, _DRAWN):
            images: Tensor = generator.synthesize(codes.select(slice(first, first + _DRAWN))).cpu()
            if form is not None:
                settings = SavingSettings(format=form)
                files += [pool.submit(encode_image, image, settings) for image in images]
    return sum(len(each.result()) for each in files)
