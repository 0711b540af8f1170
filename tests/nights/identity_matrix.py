"""The matrix of ``tests.nights.identity``, printed: every input, replaced at every moment, and put back."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from prefect.context import refresh_global_settings_context
from rich.console import Console
from rich.table import Table

from tests.nights.identity import MOMENTS, Outcome, disturb, truth_of
from tests.nights.identity_cases import Place, cases
from tests.prefect_server import server_in


def main() -> None:
    """Print a row for every input and moment; exit status 1 if anything was wrong or lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    chosen, console = parser.parse_args(), Console(width=150)
    table = Table("input", "replaced", "that run", "Retry", "put back", "wrong", "lost", title="identity")
    bad = list[str]()
    with (
        tempfile.TemporaryDirectory(prefix="styleclip-identity-") as folder,
        server_in(Path(folder)) as address,
    ):
        os.environ |= {"PREFECT_API_URL": address, "PREFECT_HOME": f"{folder}/home"}
        refresh_global_settings_context()
        (Path(folder) / "place").mkdir()
        for name, make in cases(Place(Path(folder) / "place")):
            if chosen.only in name:
                case = make()
                truth, names = truth_of(case)
                for moment in MOMENTS:
                    outcome = disturb(case, moment, truth, names)
                    bad += _shown(table, name, moment, outcome)
    console.print(table)
    for line in bad:
        console.print(line, markup=False)
    sys.exit(bool(bad))


def _shown(table: Table, name: str, moment: str, outcome: Outcome) -> list[str]:
    """Add a row, and return what is wrong with it."""
    table.add_row(
        name, moment, outcome.replaced, outcome.retried, outcome.back,
        str(len(outcome.wrong)), str(len(outcome.lost)),
    )  # fmt: skip
    sys.stdout.write(f"{name}, {moment}: {outcome.replaced}, {outcome.retried}, {outcome.back}\n")
    sys.stdout.flush()
    return [f"{name}, {moment}: {each}" for each in outcome.problems()]


if __name__ == "__main__":
    main()
