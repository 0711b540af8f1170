"""Say what a place holds.

manifests -> what they refer to --+
listings -------------------------+-> account: batches, kinds of artifacts, tables, what nothing refers to
"""

from __future__ import annotations

from styleclip.flows.run import begin, pipeline, summarize
from styleclip.tasks.keeping.accounts import Account, account_place
from styleclip.tasks.keeping.shown import account_lines
from styleclip.tasks.running.run import Networks
from styleclip.tasks.settings import Execution, OptionalUri, Uri


@pipeline("account-storage")
def account_storage(out: Uri, workspace: OptionalUri = "") -> Account:
    """Return what lies at a place, by batch and by kind; nothing of it is changed.

    Args:
        out: URI of the prefix of results.
        workspace: URI of the folder for artifacts; OUT/workspace if empty.
    """
    run = begin(Networks(), Execution(), workspace, out)
    found = account_place(run)
    summarize("account-storage", f"what lies under {out}", [], {}, sections=["\n".join(account_lines(found))])
    return found
