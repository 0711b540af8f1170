"""Steps that show a batch: manifest, contact sheet, page."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.artifacts import create_link_artifact
from prefect.logging import get_run_logger

from styleclip.flows.course import wait_for
from styleclip.flows.run import StepCounts, is_retry, summarize
from styleclip.tasks.editing.plans import EditPlan
from styleclip.tasks.photographs.images import ImageIndex
from styleclip.tasks.reports import batch as reports
from styleclip.tasks.reports.batch import ReportRef
from styleclip.tasks.reports.page import thumbnails
from styleclip.tasks.reports.page.evaluations import find_evaluations
from styleclip.tasks.reports.page.links import public_url
from styleclip.tasks.reports.page.page import build_page, write_page, write_superseded
from styleclip.tasks.reports.summaries import publish_batch
from styleclip.tasks.running.partial import read_part, supersede
from styleclip.tasks.running.run import Run


def report(
    run: Run,
    plans: list[EditPlan],
    listed: ImageIndex,
    steps: list[StepCounts],
    choices: Sequence[str] = (),
    *,
    sections: Sequence[str] = (),
) -> ReportRef:
    """Rows of all edits -> manifest, contact sheet and page.

    Args:
        run: Networks and places.
        plans: The edits.
        listed: The images.
        steps: What the steps did.
        choices: Tables of what auto tried.
        sections: What else the run's report says, in Markdown.
    """
    write = reports.write_report.with_options(refresh_cache=is_retry())  # a Retry may have mended items
    written = write(run, plans, listed)
    page(run, written.manifest, choices=choices)
    _supersede(run, plans, written)

    publish_batch(written.page, written.contact_sheet)
    headline = (
        f"{written.rows} edits of {listed.rows} images, {written.failed} failed or skipped{listed.aside}"
    )
    places = {
        "report page": written.page, "manifest": written.manifest, "contact sheet": written.contact_sheet,
        "timings": written.timings,
    }  # fmt: skip
    summarize("edit-images", headline, steps, places, reports.broken_items(written.manifest), sections)
    return written


def partial_report(
    run: Run,
    plans: list[EditPlan],
    listed: ImageIndex,
    why: str,
    choices: Sequence[str] = (),
    *,
    quickly: bool = False,
) -> ReportRef | None:
    """Shards that are done -> manifest, contact sheet and page of them; the whole report if all are.

    Args:
        run: Networks and places.
        plans: The edits.
        listed: All images of the batch.
        why: What ended the run, and what goes on from there.
        choices: Tables of what auto tried.
        quickly: Whether only seconds are left. The page is written first without the pictures that nobody has
            made small yet, then with them.

    Returns:
        Where it lies; None where no shard is done.
    """
    written = reports.write_partial_report(run, plans, listed, why)
    if not written:
        return None

    if quickly:
        planned, found = thumbnails.plan_page.fn(run, written.manifest), find_evaluations(written.manifest)
        build_page(planned, 0, found, list(choices))
        made = [thumbnails.thumbnail_chunk.fn(planned.source, chunk) for chunk in planned.chunks]
        build_page(planned, sum(each.size for each in made), found, list(choices))
    else:
        page(run, written.manifest, choices=choices)
    if not read_part(written.folder):
        _supersede(run, plans, written)

    create_link_artifact(
        public_url(written.page), link_text="report page", key="edit-images-page", description=written.page
    )
    get_run_logger().warning("what is done: %s", written.page)
    return written


def _supersede(run: Run, plans: list[EditPlan], written: ReportRef) -> None:
    """Say in the partial reports of a batch where the whole one is, now that its page is there."""
    for folder in supersede(run.out, reports.batch_of(plans), written.page):
        write_superseded(folder)


def page(run: Run, manifest: str, evaluations: Sequence[str] = (), choices: Sequence[str] = ()) -> str:
    """A batch's manifest -> thumbnails -> its page; with the scores of its evaluations, if there are any."""
    planned = thumbnails.plan_page(run, manifest)
    futures = [thumbnails.thumbnail_chunk.submit(planned.source, chunk) for chunk in planned.chunks]
    (made,) = wait_for({"thumbnails": futures})

    size = sum(result.size for result in made.results)
    # those beside the manifest are shown in any case, and each once
    chosen = list(dict.fromkeys([*find_evaluations(manifest), *evaluations]))
    return write_page(planned, size, chosen, list(choices))
