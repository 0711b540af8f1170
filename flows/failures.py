"""When failed items make a run fail: where all of them failed, or more than somebody allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from styleclip.flows.run import remedy
from styleclip.tasks.artifacts.outcomes import Row
from styleclip.tasks.running.progress import ItemsFailedError
from styleclip.tasks.settings import Execution

_CAUSES = 3  # that are named


def refuse_failures(
    execution: Execution, what: str, rows: int, failed: int, problems: Sequence[Row], table: str
) -> None:
    """End a run as Failed where too many of its items failed; called when all it leaves is written.

    Args:
        execution: Says what share of items may fail.
        what: What an item is, in the plural, e.g. ``images``.
        rows: All items of the run, those found done among them.
        failed: Those that have an error in their row and were not left out by choice.
        problems: Rows of items that failed; their errors are counted.
        table: URI of the table that lists them.

    Raises:
        ItemsFailedError: If all failed, or a larger share than ``execution.max_failed``.
    """
    if not failed or (failed < rows and failed <= execution.max_failed * rows):
        return

    counted = Counter(row["error_type"] or row["status"] for row in problems).most_common()
    causes = ", ".join(f"{count} {kind}" for kind, count in counted[:_CAUSES])
    others = f" and {len(counted) - _CAUSES} other kinds" if len(counted) > _CAUSES else ""
    allowed = "" if failed == rows else f", and max_failed is {execution.max_failed:g}"
    raise ItemsFailedError(
        f"{failed} of {rows} {what} failed{allowed}: {causes}{others}; each is listed with its error in "
        f"{table}; mend the cause and {remedy()}: the failed ones are tried again"
    )
