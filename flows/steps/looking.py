"""What runs would find done and compute, step by step: looked up by the functions that the steps go by."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from styleclip.flows import engine
from styleclip.flows.estimates import Outlook, StepForecast, Work, size_of
from styleclip.tasks.artifacts import is_complete, read_table
from styleclip.tasks.artifacts.lineage import lineage_uri
from styleclip.tasks.artifacts.outcomes import FAILED, OK
from styleclip.tasks.directions import matching, relevance, sampling
from styleclip.tasks.directions.matching import SeenCodes
from styleclip.tasks.directions.relevance import ChannelShard, RelevancePlan
from styleclip.tasks.directions.sampling import SampledStyles
from styleclip.tasks.editing import accounts, mappers, shards
from styleclip.tasks.editing.mappers import MapperPlan
from styleclip.tasks.editing.plans import EditPlan
from styleclip.tasks.photographs import images, inversion
from styleclip.tasks.photographs.datasets.front import Source
from styleclip.tasks.photographs.images import ImageIndex, ImageShard
from styleclip.tasks.photographs.inversion import InversionPlan
from styleclip.tasks.reports.page import thumbnails
from styleclip.tasks.running.overlap import io_threads, read_ahead
from styleclip.tasks.running.rates import Rates, Spent
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.shards import look, without_result
from styleclip.tasks.settings import Execution
from styleclip.tasks.storage import MissingObjectError, read_bytes, write_bytes_atomic


@contextmanager
def listing(run: Run, source: Source, execution: Execution) -> Iterator[tuple[Run, ImageIndex]]:
    """List the images of a data set as a run does, with the index in a temporary folder of this machine.

    Yields:
        The run with that folder as its workspace, and the index.
    """
    with tempfile.TemporaryDirectory(prefix="styleclip-dry-run-") as folder:
        # which older shards hold an image is known from the last list, which lies in the workspace
        name = images.list_name(source.prefix, execution.shard_size)
        try:
            last = read_bytes(lineage_uri(run.workspace, name))
        except MissingObjectError:
            last = b""
        if last:
            write_bytes_atomic(lineage_uri(folder, name), last)

        # called as a function: what a task returns is kept for Retry, and the folder will have gone
        aside = run.model_copy(update={"workspace": folder})
        yield aside, images.index_images.fn(aside, source, execution.shard_size)


@dataclass(frozen=True)
class SeenPlan:
    """An edit as it is looked for.

    Attributes:
        plan: The edit.
        settled: Whether its strength is known; of one that is still to be chosen nothing can be done.
    """

    plan: EditPlan
    settled: bool


@dataclass(frozen=True)
class SeenShard:
    """What there is of a shard of images.

    Attributes:
        number: Its place in the index.
        images: Its photographs: bytes by key.
        missing: Keys of those that would be inverted.
        again: Of those, the ones that failed before.
        changed: Of those, the ones that were inverted in another version.
        restored: Reconstructions that would be drawn again.
        adopted: Whether it takes rows over from older shards.
        contents: Content hash of every image whose latent is known.
        edits: Images to edit, of each edit: all, at least, and those that it is for.
    """

    number: int
    images: Mapping[str, int]
    missing: list[str]
    again: int
    changed: int
    restored: int
    adopted: bool
    contents: Mapping[str, str]
    edits: list[tuple[int, int, int]]


def see_shards(
    run: Run, planned: InversionPlan, listed: ImageIndex, plans: Sequence[SeenPlan] = ()
) -> list[SeenShard]:
    """Look at every shard of an index, many at a time: each is some requests.

    Args:
        run: Networks and places.
        planned: How they are inverted.
        listed: The images.
        plans: Their edits; a shard that none of them is for is left alone.
    """
    mine = [shard for shard in listed.shards if not plans or any(each.plan.touches(shard) for each in plans)]
    seen = read_ahead(mine, lambda shard: _see(run, planned, shard, plans), ahead=io_threads() // 2)
    return list(seen)


def _see(run: Run, planned: InversionPlan, shard: ImageShard, plans: Sequence[SeenPlan]) -> SeenShard:
    log, listed = planned.log(shard), images.read_shard(shard)
    files = inversion.files_of(run, planned)
    found = look(log, without_result(listed), versions=dict(listed), files=files)
    missing = [key for key, _ in found.missing]
    before = {row["image_key"] for rows in log.earlier() for row in rows} if missing else set()
    again = {key for key in missing if found.known.get((key,), {}).get("status") == FAILED}
    changed = {key for key in missing if key in before and (key,) not in found.known}

    # an image that is still to be inverted has no content yet that an edit could be known by
    lost = set(missing)
    done = [row for row in found.known.values() if row["image_key"] not in lost and row["status"] == OK]
    contents = {row["image_key"]: row["content_hash"] for row in done}

    # one that failed before most likely fails again, and is not edited
    edits = []
    for each in plans:
        keys = each.plan.wanted_in(shard)
        fresh = [key for key in missing if key not in again and (keys is None or key in keys)]
        mine = shards.wanted_of(each.plan, shard, done)
        state = shards.state_of(each.plan, mine, shard) if each.settled else None
        todo = sum(not (state and state.is_done(row)) for row in mine) + len(fresh)
        edits.append((todo, todo - len(changed & set(fresh)), len(mine) + len(fresh)))

    return SeenShard(
        number=shard.number, images=_sizes(shard), missing=missing, again=len(again), changed=len(changed),
        restored=sum(len(rows) for _, rows in found.restorable), adopted=bool(found.older),
        contents=contents, edits=edits,
    )  # fmt: skip


def _sizes(shard: ImageShard) -> dict[str, int]:
    """Return the bytes of every image of a shard, by its key."""
    rows = read_table(shard.index, columns=["key", "size"]).slice(shard.first, shard.rows)
    return dict(zip(rows["key"].to_pylist(), rows["size"].to_pylist(), strict=True))


def photographs(
    run: Run, planned: InversionPlan, plans: Sequence[EditPlan], seen: Sequence[SeenShard], rates: Rates
) -> tuple[list[StepForecast], Work, int, int]:
    """Return what is to be done of some images: its steps, their work, files and bytes that are read."""
    rows, missing = sum(len(each.images) for each in seen), sum(len(each.missing) for each in seen)
    again, changed = sum(each.again for each in seen), sum(each.changed for each in seen)
    restored = sum(each.restored for each in seen)
    size = size_of(rates, [inversion.work(run, planned, missing - again + restored)])
    tunings = missing - again if planned.settings.own else 0
    steps = [
        StepForecast(
            step="invert-images", unit="images", task_runs=len(seen), found=rows - missing, computed=missing,
            again=again, changed=changed, files=missing - again + restored + tunings, size=size,
        )
    ]  # fmt: skip

    if plans:
        names, todo = (
            ["invert-images", "edit-images"],
            [sum(n for n, _, _ in column) for column in _columns(seen)],
        )
        wanted = sum(n for column in _columns(seen) for _, _, n in column)
        files = _files(plans, seen)
        frames = [any(step.variant.frames for step in plan.prepared.steps) for plan in plans]
        works = [_edited(run, plan, count) for plan, count in zip(plans, todo, strict=True)]
        steps.append(StepForecast(
            step="edit-images", unit="edits", task_runs=len(seen), found=wanted - sum(todo),
            computed=sum(todo), files=files + sum(n for n, some in zip(todo, frames, strict=True) if some),
            size=size_of(rates, works),
        ))  # fmt: skip
    else:
        names = ["invert-images"]

    def jobs(*, least: bool) -> list[list[Spent]]:
        return [_job(run, planned, plans, shard, least=least) for shard in seen]

    work = Work(tuple(names), len(names) * len(seen), jobs(least=False), jobs(least=True) if changed else [])
    read = sum(shard.images[key] for shard in seen for key in shard.missing)
    return steps, work, missing, read


def page(steps: Sequence[StepForecast], rows: int) -> Work:
    """Return the thumbnails of a batch's page: of every image that would be written, and its photograph."""
    inverted, edited = steps[0].computed, steps[1].computed
    chunks = thumbnails.chunk_count(rows)
    share = [thumbnails.work(-(-(2 * inverted + edited) // chunks))]
    return Work(("thumbnails",), chunks, [share] * chunks)


def _columns(seen: Sequence[SeenShard]) -> Iterator[list[tuple[int, int, int]]]:
    """Yield what is to be done of each edit, a shard after the other."""
    return map(list, zip(*(shard.edits for shard in seen), strict=True))


def _job(
    run: Run, planned: InversionPlan, plans: Sequence[EditPlan], shard: SeenShard, *, least: bool
) -> list[Spent]:
    """Return what a shard computes: latents, what is not edited, and edits."""
    # one that failed before fails while it is read
    inverted = len(shard.missing) - shard.again - (shard.changed if least else 0)
    todo = [low if least else count for count, low, _ in shard.edits]
    drawn = accounts.work(run, "draw", "", max(todo, default=0))
    edits = [_edited(run, plan, count) for plan, count in zip(plans, todo, strict=True)]
    return [inversion.work(run, planned, inverted), drawn, *edits]


def _files(plans: Sequence[EditPlan], seen: Sequence[SeenShard]) -> int:
    """Return how many objects edits would write, of what is to be done of each shard."""
    loose = [[0 if plan.saving.packed else count for count, _, _ in column]
             for plan, column in zip(plans, _columns(seen), strict=True)]  # fmt: skip

    # a tar or a table of a shard holds all of its images, of all edits of a group
    packed = {
        (shard.number, plan.together)
        for shard in seen
        for plan, (count, _, _) in zip(plans, shard.edits, strict=True)
        if plan.saving.packed and count
    }
    return sum(map(sum, loose)) + len(packed)


def _edited(run: Run, plan: EditPlan, count: int) -> Spent:
    return accounts.edit_work(run, plan, count)


# ---- the relevance table -------------------------------------------------------------------------------


def sampled(run: Run, styles: SampledStyles) -> tuple[StepForecast, Work]:
    """Return what is to be sampled: the codes, and shards of statistics."""
    settings = styles.settings
    parts = [sampling.shard_of(styles, number) for number in range(sampling.shard_count(settings))]
    return _sampled(run, [(styles.codes, settings.codes), *((uri, len(ids)) for uri, ids in parts)])


def looked_at(run: Run, seen: SeenCodes) -> tuple[StepForecast, Work]:
    """Return which sampled codes CLIP is still to look at."""
    sizes = [len(seen.ids(shard)) for shard in range(seen.shards)]
    done = _done([seen.part(shard) for shard in range(seen.shards)])
    todo = [size for size, there in zip(sizes, done, strict=True) if not there]
    step = StepForecast(
        step="look-at-codes", unit="style codes", task_runs=seen.shards, found=seen.codes - sum(todo),
        computed=sum(todo),
    )  # fmt: skip
    return step, Work(("look-at-codes",), seen.shards, [[matching.work(run, size)] for size in todo])


def more_codes(run: Run, styles: SampledStyles, first: int, last: int) -> tuple[StepForecast, Work]:
    """Return what is to be sampled to add to a table."""
    return _sampled(run, [(sampling.more_codes_uri(styles, first, last), last - first)])


def _sampled(run: Run, parts: Sequence[tuple[str, int]]) -> tuple[StepForecast, Work]:
    todo = [
        count for (_, count), done in zip(parts, _done([uri for uri, _ in parts]), strict=True) if not done
    ]
    total = sum(count for _, count in parts)
    step = StepForecast(
        step="sample-styles", unit="style codes", task_runs=len(parts), found=total - sum(todo),
        computed=sum(todo),
    )  # fmt: skip
    return step, Work(("sample-styles",), len(parts), [[sampling.work(run, count)] for count in todo])


def measured(run: Run, planned: RelevancePlan) -> tuple[list[StepForecast], list[Work]]:
    """Return what is to be measured of a relevance table: derivatives if it is a fast one, then channels."""
    layout, settings = engine.generator(run).layout, planned.settings
    steps, works, built = [], [], is_complete(planned.table)

    # a table that is there is found whole, however its parts were cut
    def done_of(uris: Sequence[str]) -> list[bool]:
        return [True] * len(uris) if built else _done(uris)

    if ranges := relevance.derivative_shards(settings):
        last_layer = layout.editable[-1].name
        done = done_of([relevance.derivatives_uri(planned, last_layer, *each) for each in ranges])
        todo = [last - first for (first, last), there in zip(ranges, done, strict=True) if not there]
        found = settings.samples - sum(todo)
        steps.append(StepForecast(
            step="derivatives", unit="style codes", task_runs=len(ranges), found=found, computed=sum(todo)
        ))  # fmt: skip
        jobs = [[relevance.derivatives_work(run, settings, count)] for count in todo]
        works.append(Work(("derivatives",), len(ranges), jobs))

    cut = relevance.shards(layout, settings, run.device)
    done = done_of([relevance.part_uri(planned, shard) for shard in cut])
    missing = [shard for shard, there in zip(cut, done, strict=True) if not there]
    computed = sum(shard.last - shard.first for shard in missing)
    total = sum(shard.last - shard.first for shard in cut)
    steps.append(StepForecast(
        step="build-relevance", unit="style channels", task_runs=len(cut), found=total - computed,
        computed=computed,
    ))  # fmt: skip
    works.append(Work(("build-relevance",), len(cut), [[_measured(run, planned, each)] for each in missing]))
    return steps, works


def _measured(run: Run, planned: RelevancePlan, shard: ChannelShard) -> Spent:
    return relevance.work(run, planned.settings, shard.layer, shard.last - shard.first)


def _done(uris: Sequence[str]) -> list[bool]:
    """Return which artifacts are there, in their order; many are asked for at once."""
    return list(read_ahead(uris, is_complete, ahead=io_threads()))


# ---- mappers -------------------------------------------------------------------------------------------


def trained(run: Run, planned: Sequence[MapperPlan]) -> Outlook:
    """Return what is to be trained: all steps of a mapper, or what is left since it was stored."""
    found, jobs, notes = 0, list[Spent](), list[str]()
    for each in planned:
        wanted, done = each.settings.settings(), mappers.steps_done(each)
        found += done
        left = wanted.steps - done
        validations = sum(
            step % wanted.validate_every == 0 or step == wanted.steps
            for step in range(done + 1, wanted.steps + 1)
        )
        jobs.append(mappers.work(run, each.settings, "train", left))
        jobs.append(mappers.work(run, each.settings, "validate", validations * each.settings.validation))
        state = "found" if not left else f"resumed at step {done}" if done else "trained"
        notes.append(f"{each.target}: {state}, {left} of {wanted.steps} steps to do")

    total = sum(each.settings.settings().steps for each in planned)
    step = StepForecast(
        step="train-mapper", unit="steps", task_runs=len(planned), found=found, computed=total - found
    )
    about = f"trains {len(planned)} mappers"
    steps, works = [step], [Work((), 0, [jobs])]
    # what CLIP sees in sampled codes serves all of them
    if seen := mappers.looked_at_first(planned):
        looking, work = looked_at(run, seen)
        steps, works = [looking, *steps], [work, *works]
    return Outlook(about, steps, works, notes=notes)
