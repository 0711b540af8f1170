"""Write the page of a batch that was edited before, say with the scores of an evaluation.

manifest -> thumbnails ------+
evaluations -> more scores --+-> index.html beside the manifest, scripts of data in pages/
"""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_link_artifact

from flows.run import begin, task_runner
from flows.steps import report
from tasks.reports.page.links import parent, public_url
from tasks.running.run import Networks
from tasks.settings import Execution, OptionalUri, Uri


@flow(name="report-batch", task_runner=task_runner(), persist_result=True)
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
    run = begin(Networks(), Execution(), place, parent(manifest))

    page = report.page(run, manifest, evaluations or [], choices or [])
    create_link_artifact(public_url(page), link_text="report page", key="report-batch-page", description=page)
    return page
