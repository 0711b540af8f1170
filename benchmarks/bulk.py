"""Bulk editing from bucket to bucket: how much of the time is computing, and what hides the rest.

The same photographs and edits three times on one machine: the core's calls on images that lie in memory;
a loop that reads, computes and writes one batch after the other; and the flow. Photographs and results lie
in a real S3 server on this machine, which takes some of its cores; a store far away is imitated by a
delay of every read and write.

Seconds are those of the steps that handle images (inversion, editing); loading the networks, the table and
the report are the same in all three or not part of the work. The flow's processor time is that of those steps
and of the report, which the others have none of.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from benchmarks.report import Options, Section
from styleclip import data
from styleclip_core import load_clip, load_encoder, load_generator
from styleclip_core.editing import ChannelSelection, select_channels
from styleclip_core.images import decode_image, encode_png, fit
from styleclip_core.inversion import RefinementSettings, refine
from styleclip_core.metrics import clip_similarity
from styleclip_core.models.clip import ClipModel
from styleclip_core.models.encoder import Encoder
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.prompts import embed_prompt

if TYPE_CHECKING:
    from styleclip.tasks.settings import Saving

BATCH = 16  # of the loop and of the calls in memory
PHASES = ("read", "decode", "compute", "encode", "write")
CASES = ((20, 160, 0.0), (20, 160, 0.05), (0, 320, 0.0), (0, 320, 0.05))  # steps, images, seconds
TARGETS = ("face with grey hair", "face with glasses", "smiling face")
ALPHA, TOP_K = 3.0, 20


@dataclass(frozen=True)
class Work:
    """What is done to every photograph: the embedded models, and style directions that need not be good."""

    generator: Generator
    clip: ClipModel
    encoder: Encoder
    refinement: RefinementSettings
    deltas: list[Tensor]

    @classmethod
    def load(cls, steps: int) -> Work:
        """Load the models and draw directions."""
        generator, encoder = load_generator(data.GENERATOR), load_encoder(data.ENCODER)
        if not isinstance(encoder, Encoder):
            raise TypeError(f"the embedded encoder is a {type(encoder).__name__}")
        draw = torch.Generator().manual_seed(0)
        count = generator.layout.num_editable
        selection = ChannelSelection(None, TOP_K)
        deltas = [
            select_channels(
                generator.layout, torch.randn(count, generator=draw), torch.ones(count), selection
            ).delta
            for _ in TARGETS
        ]
        return cls(generator, load_clip(data.CLIP), encoder, RefinementSettings(steps=steps), deltas)

    def compute(self, pixels: Tensor) -> tuple[Tensor, list[Tensor], float]:
        """Return inversions and edits of a batch of photographs, and the sum of their CLIP scores."""
        *_, end = refine(self.generator, pixels, self.encoder.encode(pixels), self.refinement)
        total, images = 0.0, []
        with torch.no_grad():
            codes = self.generator.styles(end.w_plus)
            inverted = self.generator.synthesize(codes)
            self.clip.embed_whole(inverted)
            for target, delta in zip(TARGETS, self.deltas, strict=True):
                image = self.generator.synthesize(codes.add(ALPHA * delta))
                text = embed_prompt(self.clip, target, "none")
                total += clip_similarity(self.clip.embed_whole(image), text).sum().item()
                images.append(image)
        return inverted, images, total


def measure(_options: Options) -> Iterator[Section]:
    """Yield a table for each case."""
    for name, speeds, phases in _cases():
        yield Section(
            f"{name}; {len(TARGETS)} edits of each photograph, embedded models; edits/s",
            (
                "core calls in memory", "loop over batches", "flow", "flow: cores not computing",
                "flow: processor ms an edit, this process", "Prefect's server", "S3 server",
                "flow / loop", "flow / in memory", "largest difference of scores",
                *(f"loop: {phase}, ms" for phase in PHASES),
            ),
            [(*speeds, *phases)],
        )  # fmt: skip


def _cases() -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    with stores():
        for steps, count, delay in CASES:
            yield _measure(upload(count), steps, delay)


@contextlib.contextmanager
def stores() -> Iterator[None]:
    """Run a real S3 server and a Prefect server on this machine."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from prefect.testing.utilities import prefect_test_harness

    from tests.object_store import object_store

    with (
        tempfile.TemporaryDirectory() as folder,
        object_store(Path(folder) / "seaweed"),
        prefect_test_harness(server_startup_timeout=180),
    ):
        yield


def _measure(keys: list[str], steps: int, delay: float) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return what was measured, the speeds, and where the loop spends its time."""
    work = Work.load(steps)
    cores = os.cpu_count() or 1
    memory, score = _in_memory(keys, work, cores)
    with _delayed(delay):
        torch.set_num_threads(cores)
        phases = _loop(keys, work)
        loop = sum(phases.values())
        torch.set_num_threads(1)
        flow, busy, flow_score, processor = run_flow(f"s3://photographs/bulk-{len(keys)}", len(keys), steps)
    edits = len(keys) * len(TARGETS)
    name = f"{len(keys)} photographs, {steps} refinement steps, storage {delay * 1000:.0f} ms further away"
    speeds = (
        f"{edits / memory:.1f}", f"{edits / loop:.1f}", f"{edits / flow:.1f}",
        f"{1 - busy / (cores * flow):.0%}", *(f"{1000 * each / edits:.1f}" for each in processor),
        f"{loop / flow:.2f}", f"{memory / flow:.2f}",
        f"{abs(flow_score - score) / edits:.1e}",
    )  # fmt: skip
    return name, speeds, tuple(f"{1000 * phases[phase] / edits:.1f}" for phase in PHASES)


def upload(count: int) -> list[str]:
    """Put photographs into the bucket, the same ones several times, and return their keys."""
    from styleclip.tasks.storage import exists, write_bytes_atomic

    photographs = sorted(data.PHOTOGRAPHS.glob("*.png"))
    keys = [f"bulk-{count}/{number:05d}.png" for number in range(count)]
    for number, key in enumerate(keys):
        if not exists(f"s3://photographs/{key}"):
            write_bytes_atomic(f"s3://photographs/{key}", photographs[number % len(photographs)].read_bytes())
    return keys


def _read(key: str) -> bytes:
    from styleclip.tasks.storage import read_bytes

    return read_bytes(f"s3://photographs/{key}")


def _decode(content: bytes) -> Tensor:
    return fit(decode_image(content), 64, 64)


def _in_memory(keys: list[str], work: Work, cores: int) -> tuple[float, float]:
    """Compute on every core at once, on photographs that are in memory; return seconds and the score."""
    pixels = torch.stack([_decode(_read(key)) for key in keys])
    torch.set_num_threads(1)
    work.compute(pixels[:2])
    with ThreadPoolExecutor(cores) as pool:
        started = time.perf_counter()
        scores = list(pool.map(lambda batch: work.compute(batch)[2], pixels.split(BATCH)))
        return time.perf_counter() - started, sum(scores)


def _loop(keys: list[str], work: Work) -> dict[str, float]:
    """Read, decode, compute, encode, write, one object after the other; return the seconds of each."""
    from styleclip.tasks.storage import write_bytes_atomic

    seconds = dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def phase(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[name] += time.perf_counter() - started

    for first in range(0, len(keys), BATCH):
        batch = keys[first : first + BATCH]
        with phase("read"):
            contents = [_read(key) for key in batch]
        with phase("decode"):
            pixels = torch.stack([_decode(content) for content in contents])
        with phase("compute"):
            inverted, images, _ = work.compute(pixels)
        with phase("encode"):
            encoded = [[encode_png(each) for each in image] for image in [inverted, *images]]
        with phase("write"):
            for number, files in enumerate(encoded):
                for key, content in zip(batch, files, strict=True):
                    write_bytes_atomic(f"s3://results/loop/{number}/{key}", content)
    return seconds


class Processor(NamedTuple):
    """Seconds of processors: of this process, of Prefect's server, of the S3 server."""

    client: float
    prefect: float
    s3: float

    @classmethod
    def now(cls) -> Processor:
        """Return what they have taken so far, servers being children of this process."""
        prefect, s3 = 0.0, 0.0
        for pid in _children(os.getpid()):
            with contextlib.suppress(OSError):  # it has ended
                name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                prefect, s3 = (prefect, s3 + seconds) if b"weed" in name else (prefect + seconds, s3)
        return cls(time.process_time(), prefect, s3)

    def since(self, before: Processor) -> Processor:
        """Return the difference."""
        return Processor(*(now - then for now, then in zip(self, before, strict=True)))


def _children(pid: int) -> Iterator[int]:
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, thread.read_text().split()):
                yield child
                yield from _children(child)


class Flown(NamedTuple):
    """What a flow took: seconds, seconds in which a core computed, processors with the report; the score."""

    seconds: float
    busy: float
    score: float
    processor: Processor


def run_flow(
    photos: str, images: int, steps: int, *, saving: Saving | None = None, shard_size: int | None = None
) -> Flown:
    """Run inversion and editing as tasks, and the report.

    Args:
        photos: URI of the photographs, loose or in tars.
        images: How many there are.
        steps: Refinement steps.
        saving: What edited images are written as; PNG files if not given.
        shard_size: Images of a shard, on average; the usual if not given.
    """
    from prefect import flow

    from styleclip.flows import run as runs
    from styleclip.flows.steps import editing as edits
    from styleclip.flows.steps import photographs, report
    from styleclip.tasks.editing import shards as editing
    from styleclip.tasks.photographs import inversion
    from styleclip.tasks.photographs.datasets.front import locate
    from styleclip.tasks.running import overlap
    from styleclip.tasks.settings import DataSet, Execution, Inversion, Models, Saving

    busy: list[float] = []
    real = overlap.computing

    @contextlib.contextmanager
    def counted(device: str) -> Iterator[Callable[[], float]]:
        with real(device) as elapsed:
            yield elapsed
            busy.append(elapsed())

    models = Models(generator=str(data.GENERATOR), clip=str(data.CLIP), encoder=str(data.ENCODER))
    work = Work.load(steps)
    seconds: list[float] = []
    processor: list[Processor] = []
    place = f"s3://results/flow-{time.time_ns()}"

    @flow(task_runner=runs.task_runner(), persist_result=True)
    def bulk() -> str:
        run = runs.begin(models, Execution(device="cpu"), place, place)
        prepared = [
            _prepared(target, delta, place) for target, delta in zip(TARGETS, work.deltas, strict=True)
        ]
        execution = Execution(shard_size=shard_size) if shard_size else Execution()
        listed = photographs.index(run, locate(photos, DataSet()), execution)
        started, before = time.perf_counter(), Processor.now()
        plans = edits.plan(run, prepared, listed, Inversion(steps=steps), saving or Saving())
        edits.invert_and_edit(run, plans, listed)
        seconds.append(time.perf_counter() - started)
        manifest = str(report.report(run, plans, listed, []).manifest)
        processor.append(Processor.now().since(before))
        return manifest

    for module in (editing, inversion):
        module.computing = counted  # type: ignore[attr-defined]
    try:
        manifest = bulk()
    finally:
        for module in (editing, inversion):
            module.computing = real  # type: ignore[attr-defined]
    from styleclip.tasks.storage import read_bytes

    rows = pd.read_parquet(io.BytesIO(read_bytes(manifest)))
    if len(rows) != images * len(TARGETS) or set(rows["status"]) != {"ok"}:
        raise RuntimeError(f"the flow did {len(rows)} edits, {dict(rows['status'].value_counts())}")
    return Flown(seconds[0], sum(busy), float(rows["clip_after"].sum()), processor[0])


def _prepared(target: str, delta: Tensor, place: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """Store a direction and return the edit that uses it."""
    import pyarrow as pa

    from styleclip.tasks.artifacts import Provenance, vector_column, write_table
    from styleclip.tasks.directions.style_directions import PreparedStep
    from styleclip.tasks.editing.methods import PreparedEdit
    from styleclip.tasks.settings.edits import Edit

    edit = Edit(target=target, alpha=ALPHA, top_k=TOP_K, templates="none").variants()[0]
    uri = f"{place}/directions/{edit.name}.parquet"
    vector, name = vector_column(delta[None].numpy()), f"bench-{edit.name}"
    about = {"channels": TOP_K, "layers": []}
    made = Provenance("style-direction", name, "bench", "1", about, {}, "", "", "")
    write_table(uri, pa.table({"delta": vector, "relevance": vector}), made)
    step = PreparedStep(variant=edit.steps[0], uri=uri, fingerprint=name, channels=TOP_K, text_norm=1.0)
    return PreparedEdit(variant=edit, steps=[step])


@contextlib.contextmanager
def _delayed(seconds: float) -> Iterator[None]:
    """Make every read and every write of an image take so much longer."""
    from styleclip.tasks import storage
    from styleclip.tasks.editing import saving
    from styleclip.tasks.photographs import inversion, reading

    if not seconds:
        yield
        return
    read, versioned, write = storage.read_bytes, storage.read_version, storage.write_bytes_atomic

    def slow_read(uri: str) -> bytes:
        time.sleep(seconds)
        return read(uri)

    def slow_version(uri: str, etag: str) -> bytes:
        time.sleep(seconds)
        return versioned(uri, etag)

    def slow_write(uri: str, content: bytes) -> None:
        time.sleep(seconds)
        write(uri, content)

    places: list[tuple[Any, str, Any]] = [
        (storage, "read_bytes", slow_read), (reading, "read_version", slow_version),
        *((module, "write_bytes_atomic", slow_write) for module in (storage, inversion, saving)),
    ]  # fmt: skip
    before = [getattr(module, name) for module, name, _ in places]
    for module, name, slow in places:
        setattr(module, name, slow)
    try:
        yield
    finally:
        for (module, name, _), value in zip(places, before, strict=True):
            setattr(module, name, value)
