"""The soak: a bulk edit through server, worker, bucket and proxy, night after night, each with its fault.

``make soak`` prints one account: of every scenario, how many nights there were, what was lost, doubled,
left behind, or other than in an undisturbed night (all must be 0), and how long after the end of the fault
the run was complete. The moments of the kills are drawn from a seed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.nights.installation import Account, Nights, installation, start_prefect
from tests.nights.scenarios import FORKED, JUDGED_BY_THEMSELVES, Scenario, scenarios


def main() -> None:
    """Live through the nights and print the account; exit status 1 if anything was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs of the worker's processes [50]")
    parser.add_argument("--forks", type=int, default=50, help="SIGKILLs of forked runs [50]")
    parser.add_argument("--terms", type=int, default=5, help="SIGTERMs [5]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills [0]")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--without", default="-", help="no scenarios whose name contains this")
    chosen = parser.parse_args()
    console, accounts = Console(width=150), list[Account]()
    wanted = {
        name: each
        for name, each in scenarios(chosen).items()
        if chosen.only in name and chosen.without not in name
    }
    try:
        with (
            tempfile.TemporaryDirectory(prefix="styleclip-soak-") as folder,
            installation(Path(folder)) as nights,
        ):
            for name, scenario in wanted.items():
                accounts.append(Account(name))
                live_through(scenario, nights, accounts[-1], console)
    finally:  # an interrupted soak has its account too
        console.print(table(accounts))
    if any(each.lost or each.wrong or each.doubled or each.left_behind for each in accounts):
        sys.exit(1)


def live_through(scenario: Scenario, nights: Nights, account: Account, console: Console) -> None:
    """Let one scenario happen; what it raises counts as lost, as the other nights are yet to come."""
    if account.scenario != FORKED and not nights.table:
        start_prefect(nights)
        console.print(
            f"an undisturbed night takes {nights.usual:.0f} s and leaves {len(nights.calm)} objects"
        )
    started = time.monotonic()
    nights.clear()
    try:
        scenario(nights, account)
        if scenario not in JUDGED_BY_THEMSELVES and not account.nights:
            nights.judge(account)
    except Exception as error:
        account.lost += 1
        account.remarks.append(f"{type(error).__name__}: {error}")
    took = time.monotonic() - started
    console.print(f"{account.scenario}: {took:.0f} s, {account}"[:1500], highlight=False, markup=False)


def table(accounts: list[Account]) -> Table:
    """Return the account of all nights."""
    found = Table(
        "scenario", "nights", "faults", "lost", "wrong", "doubled", "left behind", "recovery, median",
        "longest", title="soak", title_justify="left",
    )  # fmt: skip
    for each in accounts:
        recovery = each.recovery or [float("nan")]
        found.add_row(
            each.scenario, str(each.nights), str(each.disturbances), str(each.lost), str(each.wrong),
            str(each.doubled), str(each.left_behind), f"{statistics.median(recovery):.1f} s",
            f"{max(recovery):.1f} s",
        )  # fmt: skip
    return found


if __name__ == "__main__":
    main()
