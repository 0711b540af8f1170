"""Write the page of a batch anew, say with the scores of an evaluation, or of one that was not finished.

manifest -> thumbnails ------+
evaluations -> more scores --+-> index.html beside the manifest, scripts of data in pages/

what a run has written down of its batch, shards that are done -> partial manifest and its page
"""

from __future__ import annotations

from prefect.artifacts import create_link_artifact

from styleclip.flows.run import begin, pipeline
from styleclip.flows.steps import report
from styleclip.tasks.reports.notes import noted_batches
from styleclip.tasks.reports.page.links import parent, public_url
from styleclip.tasks.running.run import Networks
from styleclip.tasks.settings import Execution, OptionalUri, Uri


@pipeline("report-batch")
def report_batch(
    manifest: Uri,
    evaluations: list[Uri] | None = None,
    workspace: OptionalUri = "",
    choices: list[Uri] | None = None,
) -> str:
    """Return the URI of the page; thumbnails that an earlier page made are found and kept.

    Args:
        manifest: URI of the manifest.parquet of a folder under OUT/batches.
        evaluations: URIs of evaluations to show; those that lie beside the manifest are shown too.
        workspace: URI of the folder for artifacts; OUT/workspace if empty.
        choices: URIs of tables of the pairs of alpha and beta that were tried for edits.
    """
    place = workspace or f"{parent(manifest, 3)}/workspace"
    run = begin(Networks(), Execution(), place, parent(manifest), files=[manifest])

    page = report.page(run, manifest, evaluations or [], choices or [])
    create_link_artifact(public_url(page), link_text="report page", key="report-batch-page", description=page)
    return page


@pipeline("report-partial")
def report_partial(out: Uri, workspace: OptionalUri = "") -> list[str]:
    """Return the URIs of pages of what is done, one for each batch that was begun.

    For a run whose process was killed, and which could not say itself how far it came.

    Args:
        out: URI of the prefix for results that the run was given.
        workspace: URI of the folder for artifacts that the run was given; OUT/workspace if empty.
    """
    run, pages = begin(Networks(), Execution(), workspace, out), list[str]()
    for batch in noted_batches(run.workspace, out):
        why = "the run ended before it was complete, press Retry or start it again"
        written = report.partial_report(batch.run, batch.plans, batch.index, why)
        pages += [written.page] if written else []
    return pages
