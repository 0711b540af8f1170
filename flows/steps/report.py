"""Steps that show a batch: manifest, contact sheet, page."""

from __future__ import annotations

from collections.abc import Sequence

from flows.run import StepCounts, is_retry, summarize
from tasks.editing.plans import EditPlan
from tasks.photographs.images import ImageIndex
from tasks.reports import batch as reports
from tasks.reports.batch import ReportRef
from tasks.reports.page import thumbnails
from tasks.reports.page.evaluations import find_evaluations
from tasks.reports.page.page import write_page
from tasks.reports.summaries import publish_batch
from tasks.running.progress import gather
from tasks.running.run import Run


def report(
    run: Run,
    plans: list[EditPlan],
    listed: ImageIndex,
    steps: list[StepCounts],
    choices: Sequence[str] = (),
) -> ReportRef:
    """Rows of all edits -> manifest, contact sheet and page; ``choices`` are tables of what auto tried."""
    write = reports.write_report.with_options(refresh_cache=is_retry())  # a Retry may have mended items
    written = write(run, plans, listed)
    page(run, written.manifest, choices=choices)

    publish_batch(written.page, written.contact_sheet)
    headline = (
        f"{written.rows} edits of {listed.rows} images, {written.failed} failed or skipped{listed.aside}"
    )
    places = {
        "report page": written.page, "manifest": written.manifest, "contact sheet": written.contact_sheet,
        "timings": written.timings,
    }  # fmt: skip
    summarize("edit-images", headline, steps, places, reports.broken_items(written.manifest))
    return written


def page(run: Run, manifest: str, evaluations: Sequence[str] = (), choices: Sequence[str] = ()) -> str:
    """A batch's manifest -> thumbnails -> its page; with the scores of its evaluations, if there are any."""
    planned = thumbnails.plan_page(run, manifest)
    futures = [thumbnails.thumbnail_chunk.submit(planned.source, chunk) for chunk in planned.chunks]
    made = gather("thumbnails", futures)

    size = sum(result.size for result in made.results)
    # those beside the manifest are shown in any case, and each once
    chosen = list(dict.fromkeys([*find_evaluations(manifest), *evaluations]))
    return write_page(planned, size, chosen, list(choices))
