"""The commands of the relevance table: sample style codes, measure channels."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from styleclip import data
from styleclip.tasks.settings import Execution, Relevance, Sampling, SettingsError, fast_relevance
from styleclip_cli import output
from styleclip_cli.generated import Shown
from styleclip_cli.options import (
    Clip,
    Codes,
    DryRun,
    Generator,
    Verbose,
    Workers,
    Workspace,
    chosen_models,
    prepare,
    with_codes,
    with_progress,
)

Measuring = Annotated[
    dict[str, Any],
    Shown(
        of=Relevance,
        hidden=("first_sample",),
        defaults={
            "tolerance": "0.0, or 0.15 with --fast", "minimum": "8, or 4 with --fast",
            "derivatives": "0, or 64 with --fast",
        },
    ),
]  # fmt: skip


def sample_styles(
    workspace: Workspace,
    generator: Generator = "",
    sampling: Annotated[Sampling, Shown(names={"truncation_psi": "psi"})] = Sampling(),
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Sample style codes and the statistics of style space."""
    prepare(workers, verbose)
    from styleclip.flows.sample_styles import sample_styles as flow

    chosen = chosen_models(generator, str(data.CLIP), "")
    result = with_progress(lambda: flow(chosen, workspace, sampling))

    output.summarize(result)
    if result.styles:
        output.results(statistics=result.styles.statistics)


def build_relevance(
    workspace: Workspace,
    measuring: Measuring,
    generator: Generator = "",
    clip: Clip = "",
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Derivatives for all codes, corrected by moves until that is certain"),
    ] = False,
    add_samples: Annotated[
        int, typer.Option(min=0, help="Merge this many new codes into the last table; the rest as it was")
    ] = 0,
    last_table: Annotated[
        str, typer.Option(help="URI of the table to add to", show_default="the workspace's largest one")
    ] = "",
    sampling: Codes = Sampling(),
    execution: Annotated[Execution, Shown(only=("device", "price_per_hour"))] = Execution(),
    dry_run: DryRun = False,
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Measure the CLIP direction of every style channel: the paper's preprocessing."""
    prepare(workers, verbose)
    from styleclip.flows.build_relevance import build_relevance as flow

    if last_table and not add_samples:
        raise SettingsError("--last-table says what to add to; give --add-samples too")

    relevance = fast_relevance(measuring) if fast else Relevance(**measuring)
    chosen, codes = chosen_models(generator, clip, ""), with_codes(sampling, relevance)
    result = with_progress(
        lambda: flow(
            chosen, workspace, codes, relevance, execution, add_samples, last_table, None, dry_run,
        )
    )  # fmt: skip
    if result.forecast:
        output.foretell(result.forecast)
        return

    output.summarize(result)
    if result.table:
        output.results(relevance=result.table.relevance)
