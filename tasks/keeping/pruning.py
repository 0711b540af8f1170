"""Pruning: which batches go and what goes with them; deleted only where that is asked for."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from prefect.logging import get_logger
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.keeping.batches import Batch, Place, has_new_batches, look_at, refuse_overlap
from styleclip.tasks.keeping.references import references_of
from styleclip.tasks.keeping.sweeping import WHOLE, Doomed, Grace, leftovers, of_batches, of_nothing
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import SettingsError
from styleclip.tasks.storage import delete_objects
from styleclip.tasks.storage.deleting import AT_ONCE
from styleclip_core.errors import StyleCLIPError

_UNITS_S = {"h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_log = get_logger("keeping")


class PlaceChangedError(StyleCLIPError):
    """A batch was written while a place was being pruned."""


class Choice(BaseModel):
    """Which batches go: exactly one of these is given.

    Attributes:
        older_than: An age such as ``"90d"``: those that were written before.
        batches: Their names.
        keep_last: How many stay, the newest ones.
    """

    model_config = ConfigDict(frozen=True)

    older_than: str = ""
    batches: tuple[str, ...] = ()
    keep_last: int = 0


class Going(BaseModel):
    """How much of a kind goes.

    Attributes:
        kind: What it is.
        objects: How many.
        size: Bytes.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    objects: int
    size: int


class Pruned(BaseModel):
    """What pruning deleted, or would delete.

    Attributes:
        deleted: Whether it did.
        batches: Names of the batches.
        remaining: How many stay.
        going: What goes, by kind.
        sharing: Other places whose manifests were read, as they share the workspace, and how many they had.
    """

    model_config = ConfigDict(frozen=True)

    deleted: bool
    batches: list[str]
    remaining: int
    going: list[Going]
    sharing: dict[str, int]

    @property
    def objects(self) -> int:
        """Return how many objects go."""
        return sum(each.objects for each in self.going)

    @property
    def size(self) -> int:
        """Return how many bytes go."""
        return sum(each.size for each in self.going)


def seconds_of(age: str) -> float:
    """Return an age in seconds.

    Raises:
        SettingsError: If it is none.
    """
    found = re.fullmatch(r"([0-9]+)([hdw])", age)
    if not found:
        raise SettingsError(f"{age!r} is no age; write hours, days or weeks, such as 12h, 90d or 8w")
    return int(found[1]) * _UNITS_S[found[2]]


@unit_of_work("prune-place")
def prune_place(run: Run, choice: Choice, grace: str, confirmed: bool) -> Pruned:
    """Delete batches of the run's place and what nothing refers to then, or say what would go."""
    return prune(run.out, run.workspace, choice, grace_s=seconds_of(grace), confirmed=confirmed)


def prune(
    out: str, workspace: str, choice: Choice, *, grace_s: float, confirmed: bool, now: float | None = None
) -> Pruned:
    """Delete batches and what no remaining manifest refers to, or say what would go.

    Args:
        out: URI of the place.
        workspace: URI of its folder for artifacts.
        choice: Which batches go.
        grace_s: Age in seconds below which nothing goes that a manifest might come to name.
        confirmed: Whether anything is deleted.
        now: The time, in seconds since 1970.

    Raises:
        SettingsError: If the choice is none, or names a batch that is not there.
        OverlapError: If photographs that a manifest names lie where something is deleted.
        DamagedArtifactError: If a manifest cannot be read.
        PlaceChangedError: If a batch came meanwhile; what is deleted by then was no loss to it.
        StorageError: If something cannot be listed, read or deleted; the message names it.
    """
    now = time.time() if now is None else now

    # a manifest that comes after this look is seen before anything is deleted that it may name
    place = look_at(out, workspace)
    refuse_overlap(place)
    names = _chosen(place, choice, now)
    remaining = [batch for batch in place.batches if batch.name not in names]
    grace = Grace.of(place, now - grace_s)

    counted, sizes = Counter[str](), Counter[str]()
    with references_of(place, remaining) as references:
        going = chain(
            ((each, False) for each in of_batches(place, dict.fromkeys([*names, *leftovers(place, grace)]))),
            ((each, True) for each in of_nothing(place, references, remaining, grace)),
        )
        for some, swept in _together(going):
            if confirmed:
                if swept and has_new_batches(place, remaining):
                    raise PlaceChangedError(
                        f"a batch was written to {out} or to a place that shares its workspace while it was "
                        "pruned; prune again, and what that batch refers to stays"
                    )
                delete_objects(some[0].prefix, [each.key for each in some], folders=some[0].kind in WHOLE)

            counted.update(each.kind for each in some)
            for each in some:
                sizes[each.kind] += each.size

    done = [Going(kind=kind, objects=counted[kind], size=sizes[kind]) for kind in sorted(counted)]
    _log.info("%s: %d objects of %d batches and of none", out, counted.total(), len(names))
    return Pruned(
        deleted=confirmed, batches=names, remaining=len(remaining), going=done, sharing=place.sharing
    )


def _chosen(place: Place, choice: Choice, now: float) -> list[str]:
    """Return the names of the batches that go."""
    given = [bool(choice.older_than), bool(choice.batches), choice.keep_last > 0]
    if sum(given) != 1:
        raise SettingsError("say which batches go: older than an age, by name, or all but the last ones")

    if choice.batches:
        # one without a manifest is what an interrupted pruning left
        known = [*(batch.name for batch in place.batches), *place.leftovers]
        for name in choice.batches:
            if name not in known:
                raise SettingsError(f"{place.out} has no batch {name}; it has {', '.join(known) or 'none'}")
        return list(choice.batches)

    if choice.keep_last:
        return _names(place.batches[: -choice.keep_last])
    before = now - seconds_of(choice.older_than)
    return _names(batch for batch in place.batches if batch.written < before)


def _names(batches: Iterable[Batch]) -> list[str]:
    return [batch.name for batch in batches]


def _together(going: Iterable[tuple[Doomed, bool]]) -> Iterator[tuple[Sequence[Doomed], bool]]:
    """Yield what may be deleted with one request: of one folder, and nothing that goes alone with others."""
    some, kind = list[Doomed](), (False, "", False)
    for each, swept in going:
        mine = (swept, each.prefix, each.kind in WHOLE)
        if some and (mine != kind or each.alone or some[-1].alone or len(some) == AT_ONCE):
            yield some, kind[0]
            some = []
        some.append(each)
        kind = mine

    if some:
        yield some, kind[0]
