"""The commands of editing: invert photographs, edit them, train mappers, and a demonstration."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from styleclip import data
from styleclip.tasks.settings import (
    Choosing,
    DataSet,
    Execution,
    Instant,
    Inversion,
    MapperTraining,
    Optimization,
    Relevance,
    Sampling,
    Saving,
    SettingsError,
)
from styleclip.tasks.settings.edits import MOST_VARIANTS, Edit, EditStep, load_edits
from styleclip_cli import output
from styleclip_cli.choosing import numbers_or_auto
from styleclip_cli.generated import Shown
from styleclip_cli.options import (
    Clip,
    Codes,
    DryRun,
    Encoder,
    Generator,
    Identity,
    Inverting,
    InvertingFirst,
    MostVariants,
    Out,
    OutWorkspace,
    Perceptual,
    Photos,
    Shards,
    StrictShards,
    Table,
    TableFolder,
    Verbose,
    Which,
    Workers,
    Workspace,
    Written,
    chosen_models,
    prepare,
    with_codes,
    with_progress,
)

_DEMO_SAMPLES = 24

Step = Annotated[
    dict[str, Any],
    Shown(
        of=EditStep,
        hidden=("target", "effect", "reason", "relevance", "optimization"),
        defaults={"weights": "relevance; least-squares where --beta is auto", "beta": "0.15"},
    ),
]
Optimizing = Annotated[
    dict[str, Any],
    Shown(of=Optimization, prefix="optimization-", names={"preset": "preset", "frames": "frames"}),
]
Training = Annotated[
    dict[str, Any], Shown(of=MapperTraining, names={"levels": "level", "truncation_psi": "psi"})
]


def invert(
    photos: Photos,
    workspace: Workspace,
    generator: Generator = "",
    encoder: Encoder = "",
    identity: Identity = "",
    perceptual: Perceptual = "",
    inversion: Inverting = Inversion(),
    dataset: Which = DataSet(),
    execution: Shards = Execution(),
    dry_run: DryRun = False,
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Find the latent of every photograph under a prefix."""
    prepare(workers, verbose)
    from styleclip.flows.invert_images import invert_images as flow

    chosen = chosen_models(generator, str(data.CLIP), encoder, identity, perceptual)
    result = with_progress(lambda: flow(chosen, photos, workspace, inversion, execution, dataset, dry_run))
    if result.forecast:
        output.foretell(result.forecast)
        return

    output.summarize(result)
    output.results(latents=result.latents)


def edit(
    photos: Photos,
    out: Out,
    *,
    step: Step,
    target: Annotated[str, typer.Option(help="What the images should become, e.g. 'grey hair'")] = "",
    instant: Annotated[
        bool, typer.Option("--instant", help="Relevance from gradients of this prompt, without any table")
    ] = False,
    matched: Annotated[
        bool,
        typer.Option(
            "--matched",
            help="Bring channels to where images that show the target have them, without any table",
        ),
    ] = False,
    edits: Annotated[str, typer.Option(help="URI of a YAML or JSON list of edits, instead of --target")] = "",
    table: TableFolder = "",
    generator: Generator = "",
    clip: Clip = "",
    encoder: Encoder = "",
    identity: Identity = "",
    perceptual: Perceptual = "",
    workspace: OutWorkspace = "",
    choosing: Annotated[Choosing, Shown(only=("effect",))] = Choosing(),
    optimizing: Optimizing,
    sampling: Codes = Sampling(),
    relevance: Table = Relevance(),
    inversion: InvertingFirst = Inversion(),
    dataset: Which = DataSet(),
    saving: Written = Saving(),
    execution: StrictShards = Execution(),
    most_variants: MostVariants = MOST_VARIANTS,
    dry_run: DryRun = False,
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Edit every photograph under a prefix by text: the whole chain."""
    prepare(workers, verbose)
    from styleclip.flows.edit_images import edit_images as flow

    if bool(edits) == bool(target):
        raise SettingsError("say what to edit: --target with a prompt, or --edits with a file, one of them")

    wanted = (
        load_edits(edits, most_variants)
        if edits
        else [_edit(target, step, optimizing, _source(instant, matched))]
    )
    result = with_progress(
        lambda: flow(
            chosen_models(generator, clip, encoder, identity, perceptual), photos, out, wanted, workspace,
            with_codes(sampling, relevance), relevance, inversion, execution, table, Instant(), choosing,
            most_variants, dataset, saving, dry_run,
        )
    )  # fmt: skip
    if result.forecast:
        output.foretell(result.forecast)
        return

    for choice in result.choices:
        output.note(f"{choice.target}: {choice.summary}")
    _finish(result)


def _source(instant: bool, matched: bool) -> dict[str, Any]:
    """Return where relevance comes from, if not from the table; a matched edit goes the whole way."""
    if instant and matched:
        raise SettingsError("--instant and --matched are two sources of relevance; give one of them")
    if matched:
        return {"relevance": "matched", "alpha": 1.0}
    return {"relevance": "instant"} if instant else {}


def _edit(target: str, step: dict[str, Any], optimizing: dict[str, Any], source: dict[str, Any]) -> Edit:
    """Return the one edit that the command line describes."""
    numbers = {name: numbers_or_auto(name, step[name]) for name in ("alpha", "beta") if name in step}
    others: dict[str, Any] = {}

    # the method follows from what is given, so that nobody has to name it twice
    if step.get("mapper"):
        others["method"] = "mapper"
    if optimizing:
        others["optimization"] = optimizing
    return Edit.model_validate({"target": target, **source, **step, **numbers, **others})


def train_mapper(
    workspace: Workspace,
    target: Annotated[list[str], typer.Option(help="What images should become; may be repeated")],
    training: Training,
    generator: Generator = "",
    clip: Clip = "",
    identity: Identity = "",
    execution: Annotated[Execution, Shown(only=("device", "price_per_hour"))] = Execution(),
    dry_run: DryRun = False,
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Train a latent mapper for each prompt; a run that was stopped goes on where it was."""
    prepare(workers, verbose)
    from styleclip.flows.train_mapper import train_mapper as flow

    # without a network for it the identity term can only be left out
    weight = {} if identity else {"identity_weight": 0.0}
    settings = MapperTraining.model_validate(weight | training)

    chosen = chosen_models(generator, clip, "", identity)
    result = with_progress(lambda: flow(chosen, target, workspace, settings, execution, dry_run))
    if result.forecast:
        output.foretell(result.forecast)
        return

    mappers = result.mappers
    for mapper in mappers:
        done = "found" if mapper.reused else "trained"
        output.note(f"{mapper.target}: {done}, {mapper.steps} steps, best validation loss {mapper.loss:.4f}")
    output.results(mappers=[mapper.best for mapper in mappers])


def demo(
    out: Annotated[str, typer.Option(help="Folder for the results")] = "demo",
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Edit the embedded photographs by text, with the embedded models."""
    prepare(workers, verbose)
    from styleclip.flows.edit_images import edit_images as flow

    output.tell(f"editing {len(list(data.PHOTOGRAPHS.glob('*.png')))} photographs into {out}")
    result = with_progress(
        lambda: flow(
            chosen_models("", "", ""),
            str(data.PHOTOGRAPHS),
            out,
            load_edits(str(data.EDITS)),
            "",
            Sampling(truncation_psi=1.0, statistics=20_000, codes=_DEMO_SAMPLES),
            Relevance(samples=_DEMO_SAMPLES),
            Inversion(),
        )
    )
    _finish(result)


def _finish(result: Any) -> None:  # noqa: ANN401
    output.summarize(result)
    report = result.report
    output.count(edits=report.rows, failed=report.failed)
    output.tell(f"{report.rows} edits, {report.failed} of them failed or skipped (see the manifest)")
    output.results(manifest=report.manifest, contact_sheet=report.contact_sheet, report_page=report.page)
