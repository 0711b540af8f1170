"""An account, and what pruning did, as Markdown: for Prefect's UI and for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from styleclip.tasks.keeping.accounts import Account
from styleclip.tasks.keeping.pruning import Pruned

_UNITS = ("B", "kB", "MB", "GB", "TB")


def account_lines(found: Account) -> list[str]:
    """Return an account as Markdown."""
    lines = [f"What {found.out} holds, with its workspace {found.workspace}", "", "## Batches", ""]
    lines += _table(
        ("batch", "written", "edits", "rows", "own folder", "images", "of these alone", "missing"),
        (
            (each.name, each.written, each.edits, each.rows, size(each.own), size(each.referred),
             size(each.alone), each.missing)
            for each in found.batches
        ),
    )  # fmt: skip

    # what nothing refers to stands at the end of each row: it is what pruning would take
    lines += ["", "## By kind", ""]
    lines += _table(
        ("kind", "folders", "objects", "size", "oldest", "newest", "objects of no batch", "size"),
        (
            (each.kind, each.folders, each.objects, size(each.size), each.oldest, each.newest,
             each.unreferenced, size(each.unreferenced_size))
            for each in found.kinds
        ),
    )  # fmt: skip

    if found.tables:
        lines += ["", "## Relevance tables", ""]
        lines += _table(
            ("written", "table", "samples", "size", "pruning"),
            (
                (each.day, each.name, each.samples, size(each.size), "goes" if each.thinned else "stays")
                for each in found.tables
            ),
        )
    return [*lines, *_sharing(found.sharing)]


def pruned_lines(found: Pruned) -> list[str]:
    """Return what pruning did, or would do, as Markdown."""
    verb = "Deleted" if found.deleted else "Would delete"
    lines = [
        f"{verb} {len(found.batches)} batches ({', '.join(found.batches) or 'none'}); {found.remaining} stay",
        "",
        *_table(
            ("what", "objects", "size"), ((each.kind, each.objects, size(each.size)) for each in found.going)
        ),
    ]
    return [*lines, *_sharing(found.sharing)]


def size(count: int) -> str:
    """Return bytes for a person.

    >>> size(1_234_567)
    '1.2 MB'
    """
    value = float(count)
    for unit in _UNITS[:-1]:
        if value < 1000:
            return f"{value:.1f} {unit}" if unit != "B" else f"{count} B"
        value /= 1000
    return f"{value:.1f} {_UNITS[-1]}"


def _sharing(places: dict[str, int]) -> Iterator[str]:
    if places:
        yield from ("", "The workspace has rows of other places, whose manifests count as well:", "")
    for place, batches in places.items():
        yield f"- {place}: {batches} batches" if batches else f"- {place}: no batch there any more"


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"
    for row in rows:
        yield f"| {' | '.join(str(cell) for cell in row)} |"
