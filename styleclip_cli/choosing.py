"""``styleclip choose``: alpha and beta of edits, chosen and written into an edit file that can be kept."""

from __future__ import annotations

from typing import Annotated

import typer

from styleclip.tasks.settings import (
    Choosing,
    DataSet,
    Execution,
    Inversion,
    Relevance,
    Sampling,
    SettingsError,
)
from styleclip.tasks.settings.edits import MOST_VARIANTS, EditStep, dump_edits, load_edits, replace_steps
from styleclip_cli import output
from styleclip_cli.generated import Shown
from styleclip_cli.options import (
    Clip,
    Codes,
    Encoder,
    Generator,
    InvertingFirst,
    MostVariants,
    Shards,
    Table,
    TableFolder,
    Verbose,
    Which,
    Workers,
    Workspace,
    chosen_models,
    prepare,
    with_codes,
    with_progress,
)


def numbers_or_auto(name: str, given: tuple[str, ...]) -> float | tuple[float, ...] | str:
    """Return the values of a repeated option, or auto; one value is no list, as it may stand beside auto.

    Raises:
        SettingsError: If one is neither a number nor auto, or auto is not alone.
    """
    if given == ("auto",):
        return "auto"

    try:
        found = tuple(float(each) for each in given)
    except ValueError as error:
        raise SettingsError(f"--{name} takes numbers, or auto alone; got {', '.join(given)}") from error
    return found[0] if len(found) == 1 else found


def choose(
    edits: Annotated[str, typer.Option(help="URI of a YAML or JSON list of edits, of which some say auto")],
    out: Annotated[str, typer.Option(help="URI of the edit file to write, with numbers in place of auto")],
    workspace: Workspace,
    photos: Annotated[
        str, typer.Option(help="URI of photographs to choose on; sampled style codes without")
    ] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Choose alpha and beta of every style direction, whatever it says")
    ] = False,
    table: TableFolder = "",
    generator: Generator = "",
    clip: Clip = "",
    encoder: Encoder = "",
    choosing: Annotated[Choosing, Shown()] = Choosing(),
    sampling: Codes = Sampling(),
    relevance: Table = Relevance(),
    inversion: InvertingFirst = Inversion(),
    dataset: Which = DataSet(),
    execution: Shards = Execution(),
    most_variants: MostVariants = MOST_VARIANTS,
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Choose alpha and beta where edits say auto, and write the edits with numbers and reasons."""
    prepare(workers, verbose)
    from styleclip.flows.choose_edits import choose_edits as flow
    from styleclip.tasks.storage import canonical, write_bytes_atomic

    if canonical(out) == canonical(edits):
        raise SettingsError(f"--out {out} is the file that --edits reads; give another place")

    wanted = load_edits(edits, most_variants)
    if everything:
        wanted = replace_steps(wanted, _opened)
    result = with_progress(
        lambda: flow(
            chosen_models(generator, clip, encoder), wanted, workspace, photos,
            with_codes(sampling, relevance), relevance, inversion, execution, table, choosing=choosing,
            most_variants=most_variants, dataset=dataset,
        )
    )  # fmt: skip

    output.summarize(result)
    for choice in result.choices:
        output.note(f"{choice.target}: {choice.summary}")
        output.note(f"  every pair tried: {choice.uri}")

    write_bytes_atomic(out, dump_edits(result.edits))
    output.results(edits=out)


def _opened(step: EditStep) -> EditStep:
    """Return a step whose channels and strength are to be chosen, if it is a style direction."""
    if step.method != "global":
        return step
    return step.model_copy(update={"alpha": "auto", "beta": None if step.top_k else "auto", "reason": ""})
