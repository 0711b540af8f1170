"""What a run leaves that ended early: tables of the shards that are done, marked as partial.

    OUT/partial/<batch>-<content>/     such a table, and partial.json, which says how much of the batch it is

``<batch>`` names what is made, of whichever images, ``<content>`` the outcomes in the table. So a batch may
have several of them, after several Retries. The run that completes the batch finds them all and writes into
each partial.json where the whole lies. Nothing is deleted: who may write need not be allowed to delete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import Provenance, fingerprint, is_complete, write_tables
from styleclip.tasks.artifacts.outcomes import OutcomeLog
from styleclip.tasks.running.overlap import io_threads, read_ahead
from styleclip.tasks.storage import MissingObjectError, join, list_objects, read_bytes, write_bytes_atomic

FOLDER, NOTE = "partial", "partial.json"
_NAME = 12  # hex digits of either half of a folder's name
_S = TypeVar("_S")


class Part(BaseModel):
    """How much of a batch a partial table has.

    Attributes:
        batch: Name of what is made, of whichever images.
        content: Name of the outcomes in it.
        shards: Shards that are done.
        of: Shards that there are.
        why: What ended the run, and what goes on from there.
        superseded_by: URI of the whole; empty as long as there is none.
    """

    model_config = ConfigDict(frozen=True)

    batch: str
    content: str
    shards: int
    of: int
    why: str
    superseded_by: str = ""

    @classmethod
    def named(cls, batch: Mapping[str, str], attempts: Sequence[str], shards: int, of: int, why: str) -> Part:
        """Return a part under the names of what makes the batch and of what it has of that."""
        content = fingerprint(FOLDER, "1", {"attempts": list(attempts), "of": of}, batch)
        return cls(batch=batch_name(batch), content=content[:_NAME], shards=shards, of=of, why=why)

    @property
    def text(self) -> str:
        """Return what a person is told."""
        then = f"superseded by {self.superseded_by}" if self.superseded_by else self.why
        return f"partial: {self.shards} of {self.of} shards; {then}"

    def folder(self, out: str) -> str:
        """Return where the partial table lies."""
        return join(out, FOLDER, f"{self.batch}-{self.content}")

    def mark(self, made: Provenance) -> Provenance:
        """Return what the partial table says of itself."""
        # not why: another end of the run makes the same table of the same outcomes
        return replace(
            made, parameters={**made.parameters, "partial": {"shards": self.shards, "of": self.of}}
        )

    def keep(self, out: str) -> None:
        """Write ``partial.json``, or write it anew."""
        write_bytes_atomic(join(self.folder(out), NOTE), self.model_dump_json(indent=1).encode())


def batch_name(batch: Mapping[str, str]) -> str:
    """Return the first half of the names of a batch's partial folders.

    Args:
        batch: What makes it: names, and the fingerprints of their recipes.
    """
    return fingerprint(FOLDER, "1", {}, batch)[:_NAME]


def done_shards(shards: Sequence[_S], logs: Callable[[_S], Sequence[OutcomeLog]]) -> list[_S]:
    """Return the shards of which every log has an attempt: its first one has a row for every item."""

    def is_done(shard: _S) -> bool:
        return all(is_complete(log.uri(0)) for log in logs(shard))

    # many are asked for at once: a run that is being cancelled has some seconds
    asked = read_ahead(shards, is_done, ahead=io_threads())
    return [shard for shard, done in zip(shards, asked, strict=True) if done]


def all_attempts(logs: Sequence[OutcomeLog]) -> list[str]:
    """Return the attempts of many logs, in their order."""
    found = read_ahead(logs, lambda log: log.attempts(), ahead=io_threads())
    return [uri for attempts in found for uri in attempts]


def write_partial_table(
    name: str,
    out: str,
    schema: pa.Schema,
    made: Provenance,
    shards: Sequence[_S],
    log: Callable[[_S], OutcomeLog],
    why: str,
) -> str:
    """Write the rows of the shards that are done.

    Args:
        name: Of the table, e.g. ``faces.parquet``.
        out: URI of the prefix for results.
        schema: Columns of the table.
        made: What makes the whole table.
        shards: All shards of the batch.
        log: Shard -> its outcomes.
        why: What ended the run, and what goes on from there.

    Returns:
        URI of the table; empty where no shard is done, or all are, which the whole table is made of.
    """
    done = done_shards(shards, lambda shard: [log(shard)])
    if not 0 < len(done) < len(shards):
        return ""

    attempts = all_attempts([log(shard) for shard in done])
    part = Part.named({made.step: made.fingerprint}, attempts, len(done), len(shards), why)
    uri = join(part.folder(out), name)
    if not is_complete(uri):
        write_tables(uri, schema, (log(shard).table(schema) for shard in done), part.mark(made))
    part.keep(out)
    return uri


def read_part(folder: str) -> Part | None:
    """Return what a folder's ``partial.json`` says; None where there is none."""
    try:
        return Part.model_validate_json(read_bytes(join(folder, NOTE)))
    except MissingObjectError:
        return None


def supersede(out: str, batch: Mapping[str, str], by: str) -> list[str]:
    """Say in all partial folders of a batch that it is complete now.

    Args:
        out: URI of the prefix for results.
        batch: As of ``batch_name``.
        by: URI of the whole.

    Returns:
        The folders that had not said so.
    """
    try:
        found = [item.key for item in list_objects(join(out, FOLDER), suffixes=(NOTE,))]
    except MissingObjectError:
        return []

    changed = []
    for key in found:
        folder = join(out, FOLDER, key.rpartition("/")[0])
        part = read_part(folder) if key.startswith(f"{batch_name(batch)}-") else None
        if part and part.superseded_by != by:
            part.model_copy(update={"superseded_by": by}).keep(out)
            changed.append(folder)
    return changed
