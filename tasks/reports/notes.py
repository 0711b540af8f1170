"""What a batch is, written down before it is edited, so that it can be shown whatever ends the run.

A process that is killed shows nothing any more, and no other knows its edits and its images. Both lie in
``WORKSPACE/batches/<edits>/<images>.json``, once for all runs of the same batch.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, ValidationError

from styleclip.tasks.artifacts import artifact_uri
from styleclip.tasks.editing.plans import EditPlan
from styleclip.tasks.photographs.images import ImageIndex
from styleclip.tasks.reports.batch import batch_of
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.partial import batch_name
from styleclip.tasks.running.run import Run
from styleclip.tasks.storage import MissingObjectError, create_bytes, join, list_objects, read_bytes
from styleclip_core.errors import StyleCLIPError

_FOLDER = "batches"


class NoBatchError(StyleCLIPError):
    """No run has begun to edit into a prefix."""


class NotedBatch(BaseModel):
    """What a batch is made of.

    Attributes:
        run: Networks and places.
        plans: The edits.
        index: The images.
    """

    model_config = ConfigDict(frozen=True)

    run: Run
    plans: list[EditPlan]
    index: ImageIndex


@unit_of_work("note-batch")
def note_batch(run: Run, plans: list[EditPlan], index: ImageIndex) -> str:
    """Write down what a batch is made of, and return where."""
    folder = artifact_uri(run.workspace, _FOLDER, batch_name(batch_of(plans)))
    uri = join(folder, f"{index.fingerprint}.json")

    # the device is the machine's, and whoever shows the batch needs none
    noted = NotedBatch(run=run.model_copy(update={"device": "cpu"}), plans=plans, index=index)
    create_bytes(uri, noted.model_dump_json().encode())
    return uri


def noted_batches(workspace: str, out: str) -> Iterator[NotedBatch]:
    """Yield the batches that runs have begun to edit into ``out``.

    Raises:
        NoBatchError: If there is none.
    """
    place, found = join(workspace, _FOLDER), 0
    try:
        for item in list_objects(place, suffixes=(".json",)):
            noted = _read(join(place, item.key))
            if noted.run.out.rstrip("/") == out.rstrip("/"):
                found += 1
                yield noted
    except MissingObjectError:
        pass

    if not found:
        raise NoBatchError(
            f"no run has begun to edit into {out}, going by {place}; check the prefix, or give the workspace "
            "of the run"
        )


def _read(uri: str) -> NotedBatch:
    try:
        return NotedBatch.model_validate_json(read_bytes(uri))
    except ValidationError as error:
        raise NoBatchError(
            f"{uri} does not say what a batch is made of ({error.error_count()} errors); delete it, and the "
            "next run of the batch writes it again"
        ) from error
