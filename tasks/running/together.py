"""Many things of which some may not work: all that is wrong is said at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from styleclip.tasks.settings import SettingsError
from styleclip.tasks.storage.outages import StoreError
from styleclip_core.errors import StyleCLIPError

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def each_of(
    items: Iterable[_Item], name: Callable[[_Item], str], work: Callable[[_Item], _Made]
) -> dict[_Item, _Made]:
    """Return what is made of each item; those that cannot work are told together, when all have been tried.

    Args:
        items: What work is done on, each once.
        name: Item -> what it is called in a message.
        work: Item -> what is made of it.

    Raises:
        StyleCLIPError: If some cannot work: of their own kind if that is one. It names each item.
    """
    made: dict[_Item, _Made] = {}
    problems: dict[str, StyleCLIPError] = {}
    for item in items:
        try:
            made[item] = work(item)
        except StoreError:  # nobody's edit is to blame
            raise
        except StyleCLIPError as error:
            problems[f"{name(item)}: {error}"] = error

    if not problems:
        return made
    (first, *others), kinds = problems.values(), {type(error) for error in problems.values()}
    count = f"{len(problems)} cannot work: " if others else ""
    kind = SettingsError if len(kinds) > 1 else type(first)
    raise kind(count + "; ".join(problems)) from first
