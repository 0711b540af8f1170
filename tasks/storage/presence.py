"""Which of some objects are there, and in what version, at the price of a listing and not of each."""

from __future__ import annotations

from collections.abc import Collection

from tasks.storage.filesystems import join
from tasks.storage.listing import s3_pages
from tasks.storage.objects import version
from tasks.storage.outages import MissingObjectError
from tasks.storage.places import scheme_of


def versions_of(prefix: str, names: Collection[str]) -> dict[str, str]:
    """Return the versions of those of some objects that are there.

    S3 is asked for the stretch of its listing from the first name to the last: names that lie together, as
    those of a shard do, cost one request for a thousand of them. What is not there is asked for once more by
    its name, as some stores that speak S3 list in another order. Other kinds of storage are asked for each.

    Args:
        prefix: URI of a folder.
        names: Keys relative to it.

    Raises:
        StorageError: If that cannot be found out: an unreachable store is not an absent object.
    """
    if not names:
        return {}
    listed = _s3_versions(prefix, set(names)) if scheme_of(prefix) == "s3" else {}

    for name in set(names) - set(listed):
        try:
            listed[name] = version(join(prefix, name))
        except MissingObjectError:
            continue
    return listed


def _s3_versions(prefix: str, names: set[str]) -> dict[str, str]:
    found, last = dict[str, str](), max(names)

    # a listing begins after a name, so it is asked to begin just before the first one
    for page in s3_pages(prefix, after=min(names)[:-1]):
        found.update({item.key: item.etag for item in page if item.key in names})
        if page[-1].key >= last:
            break
    return found
