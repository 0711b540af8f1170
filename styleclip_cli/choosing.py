"""``styleclip choose``: alpha and beta of edits, chosen and written into an edit file that can be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from styleclip_cli.shared import (
    Clip,
    Encoder,
    Generator,
    Psi,
    Samples,
    Seed,
    Statistics,
    Steps,
    TableFolder,
    Verbose,
    Workers,
    chosen_models,
    console,
    inversion_settings,
    prepare,
    summarize,
    with_progress,
)

if TYPE_CHECKING:  # imported late, after prepare() has set what Prefect reads
    from tasks.edits import EditStep
    from tasks.settings import Choosing

Effect = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=0.99,
        help="What auto aims at: CLIP's mean probability of the target against the neutral prompt "
        "[default: 0.7]",
    ),
]


def numbers_or_auto(name: str, given: list[str] | None) -> tuple[float, ...] | str:
    """Return the values of a repeated option, or auto.

    Raises:
        SettingsError: If one is neither a number nor auto, or auto is not alone.
    """
    from tasks.settings import SettingsError

    if given == ["auto"]:
        return "auto"
    try:
        return tuple(float(each) for each in given or ())
    except ValueError as error:
        raise SettingsError(f"--{name} takes numbers, or auto alone; got {', '.join(given or ())}") from error


def choosing_settings(effect: float | None, images: int = 24, keep: list[str] | None = None) -> Choosing:
    """Return how auto is chosen."""
    from tasks.settings import Choosing

    given = {"images": images, "keep": tuple(keep or ())} | ({"effect": effect} if effect else {})
    return Choosing.model_validate(given)


def choose(
    edits: Annotated[str, typer.Option(help="URI of a YAML or JSON list of edits, of which some say auto")],
    out: Annotated[str, typer.Option(help="URI of the edit file to write, with numbers in place of auto")],
    workspace: Annotated[str, typer.Option(help="URI of the folder for intermediate artifacts")],
    photos: Annotated[
        str, typer.Option(help="URI of photographs to choose on; sampled style codes without")
    ] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Choose alpha and beta of every style direction, whatever it says")
    ] = False,
    effect: Effect = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="A prompt of what should stay, e.g. 'face with a hat'; may be repeated"),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Photographs or codes to choose on, at most")] = 24,
    table: TableFolder = "",
    generator: Generator = "",
    clip: Clip = "",
    encoder: Encoder = "",
    seed: Seed = 5,
    psi: Psi = 0.7,
    statistics: Statistics = 100_000,
    samples: Samples = 100,
    steps: Steps = 100,
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Choose alpha and beta where edits say auto, and write the edits with numbers and reasons."""
    prepare(workers, verbose)
    from flows.choose_edits import choose_edits as flow
    from tasks.edits import dump_edits, load_edits, replace_steps
    from tasks.settings import Execution, Relevance, Sampling, SettingsError
    from tasks.storage import write_bytes_atomic

    if out == edits:
        raise SettingsError(f"--out {out} is the file that --edits reads; give another place")
    wanted = load_edits(edits)
    if everything:
        wanted = replace_steps(wanted, _opened)
    result = with_progress(
        lambda: flow(
            chosen_models(generator, clip, encoder),
            wanted,
            workspace,
            photos,
            Sampling(seed=seed, truncation_psi=psi, statistics=statistics, codes=samples),
            Relevance(samples=samples),
            inversion_settings(steps, 0, None),
            Execution(),
            table,
            choosing=choosing_settings(effect, images, keep),
        )
    )
    summarize(result)
    for choice in result.choices:
        console.print(f"{choice.target}: {choice.summary}", markup=False, soft_wrap=True)
        console.print(f"  every pair tried: {choice.uri}", markup=False, soft_wrap=True)
    write_bytes_atomic(out, dump_edits(result.edits))
    typer.echo(out)


def _opened(step: EditStep) -> EditStep:
    """Return a step whose channels and strength are to be chosen, if it is a style direction."""
    if step.method != "global":
        return step
    return step.model_copy(update={"alpha": "auto", "beta": None if step.top_k else "auto", "reason": ""})
