"""Objects that are items of a shard: whether one is to blame for what went wrong with it, or its store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from styleclip.tasks.storage.filesystems import join
from styleclip.tasks.storage.listing import first_page
from styleclip.tasks.storage.objects import answers, read_bytes, read_version
from styleclip.tasks.storage.outages import (
    ChangedObjectError,
    MissingObjectError,
    StorageError,
    StoreError,
    StoreUnavailableError,
    UnreadablePrefixError,
    UnservedObjectError,
)
from styleclip.tasks.storage.places import is_local

_OTHERS = 3  # objects that are asked for before a store is said to serve nothing


@contextmanager
def item_under(prefix: str, key: str) -> Iterator[None]:
    """Read an item's object inside the block; what is raised then says whose fault it is.

    A ``StoreError`` is the store's: nothing is known of the item, and its shard must be done again. Any other
    error is the item's own. An object is to blame for what storage says of it only while its prefix can be
    listed and, unless it is merely gone, another object under the prefix can be read at that moment. So a
    store that lists and serves nothing is at fault, and so is one whose only object cannot be read.

    Args:
        prefix: URI of the prefix that the item was found under.
        key: Its key relative to that.

    Raises:
        UnservedObjectError: If the store fails for this object alone, for as long as anybody waits.
        UnreadablePrefixError: If no object under the prefix can be read.
    """
    try:
        yield
    except ChangedObjectError:
        raise

    except StoreUnavailableError as error:
        # on a disk nobody has waited, and such an error is the machine's: too many open files, a stale mount
        if is_local(prefix) or not _serves_another(prefix, key):
            raise
        raise UnservedObjectError(
            f"cannot read {join(prefix, key)}: the store fails for this object, though not for others under "
            f"{prefix} ({_reason(error)}); upload it again, then the next run takes it"
        ) from error
    except StoreError:
        raise

    # what is gone is the item's own, unless everything is
    except MissingObjectError as error:
        if not _lists_anything(prefix):
            raise UnreadablePrefixError(
                f"{error}, and nothing lies under {prefix} any more; mend that, then press Retry"
            ) from error
        raise

    # so is what may not be read, unless nothing may
    except StorageError as error:
        if not _serves_another(prefix, key):
            raise UnreadablePrefixError(
                f"{error}, and no other object under {prefix} can be read either; mend that, then press Retry"
            ) from error
        raise


def read_item(prefix: str, key: str, version: str = "") -> bytes:
    """Return the content of an item's object; what is raised says whose fault it is, see ``item_under``.

    Args:
        prefix: URI of the prefix that the item was found under.
        key: Its key relative to that.
        version: Its version as it was listed; whichever is there if empty.
    """
    with item_under(prefix, key):
        return read_version(join(prefix, key), version) if version else read_bytes(join(prefix, key))


def _reason(error: StorageError) -> str:
    return " ".join(str(error.__cause__ or error).split())[:200]


def _lists_anything(prefix: str) -> bool:
    try:
        return bool(first_page(prefix, 1))
    except StorageError:
        return False


def _serves_another(prefix: str, key: str) -> bool:
    """Return whether a prefix can be listed and an object under it, other than ``key``, be read just now."""
    try:
        # a list that is answered must not end the waiting of those whom nothing is served
        page = first_page(prefix, patient=False)
        # of an empty object there is no byte to ask for
        others = [item.key for item in page if item.size and item.key != key]
    except StorageError:
        return False

    # far apart, since what lies side by side may have been damaged together
    spread = others[:: max(1, len(others) // _OTHERS)][:_OTHERS]
    return any(answers(join(prefix, other)) for other in spread)
