"""Which older shards hold the items of a shard, so that the cost of a change is the change.

A shard is named by its items and their versions, and so are its outcomes. An item that is added, removed or
replaced makes a new shard, whose other items have been done under the old one's name. The last list of
shards is kept beside the artifacts; the next one is held against it, key range by key range.

What is kept is a hint: without it work is done again, and no result hangs on it. Of two runs at once that
list different shards, the later one's list stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, takewhile

from prefect.logging import get_logger

from styleclip.tasks.storage import MissingObjectError, join, read_bytes, write_bytes_atomic

_MOST = 8  # older shards that a shard is looked for in
_log = get_logger("artifacts")


@dataclass(frozen=True)
class Span:
    """A shard as a stretch of sorted keys.

    Attributes:
        digest: Name of its items and their versions.
        first: Its first key.
        last: Its last key.
        before: Digests of older shards that hold keys of it, the newest first.
    """

    digest: str
    first: str
    last: str
    before: tuple[str, ...] = ()


def follow(workspace: str, name: str, spans: Sequence[Span]) -> list[Span]:
    """Return shards with the older ones that hold their keys, and remember them for the next list.

    Args:
        workspace: URI of the folder for artifacts.
        name: Of the list, e.g. of the photographs of one prefix.
        spans: The shards there are now, sorted by key.
    """
    uri = lineage_uri(workspace, name)
    found = list(inherit(spans, _read(uri)))
    write_bytes_atomic(uri, json.dumps([asdict(span) for span in found]).encode())
    return found


def lineage_uri(workspace: str, name: str) -> str:
    """Return where the last list of a name is kept."""
    return join(workspace, "lineage", f"{name}.json")


def inherit(spans: Sequence[Span], earlier: Sequence[Span]) -> Iterator[Span]:
    """Yield shards with the digests of the earlier ones that overlap them, and of those before these."""
    start = 0
    for span in spans:
        # both lists are sorted, so what ends before this shard begins is behind the next ones too
        while start < len(earlier) and earlier[start].last < span.first:
            start += 1

        known: dict[str, None] = {}
        overlapping = _overlapping(earlier, start, span.last)
        known.update((each.digest, None) for each in overlapping)
        known.update((digest, None) for each in overlapping for digest in each.before)
        known.pop(span.digest, None)
        yield replace(span, before=tuple(known)[:_MOST])


def _overlapping(earlier: Sequence[Span], start: int, last: str) -> list[Span]:
    """Return the shards from place ``start`` on that begin before a key ends."""
    return list(takewhile(lambda span: span.first <= last, islice(earlier, start, None)))


def _read(uri: str) -> list[Span]:
    try:
        return [Span(**{**each, "before": tuple(each["before"])}) for each in json.loads(read_bytes(uri))]
    except MissingObjectError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        _log.warning("%s is damaged (%s) and written anew; what its shards hold is done again", uri, error)
        return []
