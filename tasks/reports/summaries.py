"""What a run shows in Prefect's UI when it ends: what it did, how fast, where it lies, and what failed."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from PIL import Image
from prefect import runtime
from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

from styleclip.tasks.artifacts import is_complete, read_table
from styleclip.tasks.artifacts.outcomes import OK, Row
from styleclip.tasks.reports.page.links import public_url
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.shown import code, markdown_table
from styleclip.tasks.storage import read_bytes

METRICS = {"rows": "rows", "failed items": "failed", "seconds": "seconds", "rows/s": "rate"}  # name: field
_SHOWN = 20  # failed items
_SHEET = 900  # pixels, the longer side of the contact sheet


def publish_summary(
    flow: str,
    headline: str,
    steps: Sequence[Mapping[str, object]],
    places: Mapping[str, str],
    problems: Sequence[Row] = (),
    sections: Sequence[str] = (),
) -> None:
    """Show one page about a run, in the place of what it showed when it began.

    Args:
        flow: Name of the flow, which names the artifact.
        headline: What the run did, one sentence.
        steps: Its steps, with shards, computed, rows, failed, seconds and rate of each.
        places: URIs of what it wrote, by name.
        problems: Rows of the items that failed.
        sections: What else there is to say, in Markdown.
    """
    lines = [headline, ""]
    if steps:
        lines += [*_step_table(steps), "", _for_metrics(steps), ""]
    if places:
        lines += ["## Where it lies", ""]
        lines += [f"- {name}: [{code(uri)}](<{public_url(uri)}>)" for name, uri in places.items() if uri]

    if problems:
        lines += ["", f"## What failed: {len(problems)}", "", *_problem_table(problems)]

    lines += [line for section in sections for line in ("", section)]
    publish_report(flow, "\n".join(lines), headline)


def publish_report(flow: str, text: str, description: str) -> None:
    """Show the one report of a run; what the run, or an earlier try of it, has shown so far is replaced."""
    key, run = f"{flow}-report", runtime.flow_run.id
    wanted = ArtifactFilter(
        key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(str(run))])
    )
    with get_client(sync_client=True) as client:
        shown = client.read_artifacts(artifact_filter=wanted, limit=1)
        if shown:
            client.update_artifact(shown[0].id, ArtifactUpdate(data=text, description=description))
            return
    create_markdown_artifact(text, key=key, description=description)


def publish_batch(page: str, contact_sheet: str) -> None:
    """Show the contact sheet of a batch of edits as an image, and link its page."""
    sheet = Image.open(io.BytesIO(read_bytes(contact_sheet)))
    sheet.thumbnail((_SHEET, _SHEET))
    small = io.BytesIO()
    sheet.convert("RGB").save(small, "JPEG", quality=80)

    # the picture itself goes into the artifact: a browser may not read the bucket
    picture = base64.b64encode(small.getvalue()).decode()
    create_image_artifact(
        f"data:image/jpeg;base64,{picture}", key="edit-images-contact-sheet", description=contact_sheet
    )
    create_link_artifact(
        public_url(page),
        link_text="report page",
        key="edit-images-page",
        description=f"before and after, scores and failures: {page}",
    )


def failed_items(results: Iterable[ShardResult]) -> list[Row]:
    """Return the latest rows of the items that failed in some shards, whose results name first attempts."""
    rows: list[Row] = []
    for result in results:
        if result.failed:
            rows += [row for row in _latest(result.uri) if row["status"] != OK]
    return rows


def _latest(first: str) -> list[Row]:
    """Return the latest row of every item of a shard, from its attempts."""
    rows: dict[tuple[object, ...], Row] = {}
    attempt = 0

    while is_complete(uri := first.replace(".attempt-000.", f".attempt-{attempt:03d}.")):
        for row in read_table(uri).to_pylist():
            rows[(row["image_key"], row.get("face_index"))] = row
        attempt += 1

        # a name without a number is the only table there is, and would be read for ever
        if uri == first and ".attempt-000." not in first:
            break
    return list(rows.values())


def _for_metrics(steps: Sequence[Mapping[str, object]]) -> str:
    """Return the steps for ``styleclip.flows.server_metrics``, in a comment that no page shows."""
    rows = {str(step["step"]): {title: step[name] for title, name in METRICS.items()} for step in steps}
    return f"<!-- steps {json.dumps(rows)} -->"


def read_steps(report: str) -> dict[str, dict[str, float]]:
    """Return rows, failed items, seconds and rows/s of each step that a report is about."""
    found = re.search(r"<!-- steps (\{.*\}) -->", report)
    steps: dict[str, dict[str, float]] = json.loads(found[1]) if found else {}
    return steps


def _step_table(steps: Sequence[Mapping[str, object]]) -> list[str]:
    names = ("shards", "computed", "rows", "failed", "seconds", "rate")
    titles = "| step | shards | computed now | rows | failed | seconds | images/s |"
    lines = [titles, "|---|---:|---:|---:|---:|---:|---:|"]

    for step in steps:
        values = [step[name] for name in names]
        cells = [f"{value:.1f}" if isinstance(value, float) else str(value) for value in values]
        lines.append(f"| {step['step']} | {' | '.join(cells)} |")
    return lines


def _problem_table(problems: Sequence[Row]) -> list[str]:
    rows = [(row["image_key"], row["error_type"] or row["status"], row["error"]) for row in problems[:_SHOWN]]
    lines = markdown_table(("image", "error", "what it says"), rows)

    if len(problems) > _SHOWN:
        lines += ["", f"The first {_SHOWN} of {len(problems)}; all are in the table above."]
    return lines
