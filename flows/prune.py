"""Delete batches, and what no other batch refers to.

batches -> those that stay -> what their manifests refer to --+
listings -----------------------------------------------------+-> what goes
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from styleclip.flows.run import begin, pipeline, summarize
from styleclip.tasks.keeping.pruning import Choice, Pruned, prune_place
from styleclip.tasks.keeping.shown import pruned_lines
from styleclip.tasks.running.run import Networks
from styleclip.tasks.settings import Execution, OptionalUri, Uri


@pipeline("prune")
def prune(
    out: Uri,
    workspace: OptionalUri = "",
    older_than: str = "",
    batches: list[str] | None = None,
    keep_last: Annotated[int, Field(ge=0)] = 0,
    grace: str = "24h",
    confirmed: bool = False,
) -> Pruned:
    """Return what pruning deletes; without ``confirmed`` it only says what that would be.

    Args:
        out: URI of the prefix of results.
        workspace: URI of the folder for artifacts; OUT/workspace if empty.
        older_than: Batches that were written longer ago go, e.g. 90d; also h for hours and w for weeks.
        batches: Names of batches that go.
        keep_last: All batches but so many of the newest go.
        grace: Age below which nothing goes that a run under way may come to name in its manifest.
        confirmed: Whether anything is deleted.
    """
    run = begin(Networks(), Execution(), workspace, out)
    choice = Choice(older_than=older_than, batches=tuple(batches or ()), keep_last=keep_last)
    done = prune_place(run, choice, grace, confirmed)
    what = "what was deleted" if confirmed else "what would be deleted"
    summarize("prune", f"{what} of {out}", [], {}, sections=["\n".join(pruned_lines(done))])
    return done
