"""Which of some objects are there, in what version or with what content, at the price of a listing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from contextlib import suppress

from styleclip.tasks.storage.filesystems import join
from styleclip.tasks.storage.listing import s3_pages
from styleclip.tasks.storage.objects import version
from styleclip.tasks.storage.outages import MissingObjectError
from styleclip.tasks.storage.places import is_local, local_path, scheme_of


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


def contents_of(prefix: str) -> Callable[[str, bytes], bool]:
    """Return what says whether an object below a prefix has some content, by its name and that content.

    S3 is listed once, now: the etag of an object that was written with one request is the MD5 of its content.
    One whose etag is something else, as with some encryption, counts as other content, and so does everything
    on other kinds of remote storage. Files of this machine are read where the size is right.

    Args:
        prefix: URI of a folder, which need not be there.

    Raises:
        StorageError: If the prefix cannot be listed.
    """
    if is_local(prefix):
        return lambda name, content: _is_in_file(join(prefix, name), content)

    s3 = scheme_of(prefix) == "s3"
    etags = {item.key: item.etag for page in s3_pages(prefix) for item in page} if s3 else {}
    return lambda name, content: etags.get(name) == hashlib.md5(content, usedforsecurity=False).hexdigest()


def _is_in_file(uri: str, content: bytes) -> bool:
    path = local_path(uri)
    with suppress(OSError):  # whoever writes it then is told what is wrong
        return path.stat().st_size == len(content) and path.read_bytes() == content
    return False
