"""The command line: every command takes URIs, shows progress, and says last where its result lies.

Without ``--generator`` the embedded models are used. Bad input ends with one line that says what is
wrong, where, and what to do, and exit status 2; a run in which some shards failed ends with 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

import data
from styleclip_cli import choosing, exchange, faces, quality, report, server
from styleclip_cli.choosing import Effect, choosing_settings, numbers_or_auto
from styleclip_cli.models import app as models_app
from styleclip_cli.shared import (
    Clip,
    Encoder,
    Generator,
    Identity,
    Label,
    Perceptual,
    Photos,
    PivotalLocality,
    PivotalSteps,
    Psi,
    Samples,
    Seed,
    ShardSize,
    Statistics,
    Steps,
    TableFolder,
    Verbose,
    Workers,
    Workspace,
    chosen_models,
    console,
    inversion_settings,
    prepare,
    summarize,
    with_progress,
)
from styleclip_core.errors import StyleCLIPError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Text-driven editing of image data sets with StyleGAN2 and CLIP.",
)
app.add_typer(models_app, name="models")
exchange.register(app)

Strength = Annotated[float, typer.Option(min=0, help="Move of a channel, in its standard deviations")]
Fast = Annotated[
    bool, typer.Option("--fast", help="Derivatives for all codes, corrected by moves until that is certain")
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="A channel is done once its direction is this certain, in radians; 0 for never "
        "[default: 0, or 0.15 with --fast]",
    ),
]


@app.command("sample-styles")
def sample_styles(
    workspace: Workspace,
    generator: Generator = "",
    seed: Seed = 5,
    psi: Psi = 0.7,
    label: Label = None,
    statistics: Statistics = 100_000,
    codes: Annotated[int, typer.Option(min=1, help="Codes to store")] = 100,
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Sample style codes and the statistics of style space."""
    prepare(workers, verbose)
    from flows.sample_styles import sample_styles as flow
    from tasks.settings import Sampling

    sampling = Sampling(seed=seed, truncation_psi=psi, label=label, statistics=statistics, codes=codes)
    chosen = chosen_models(generator, str(data.CLIP), "")
    result = with_progress(lambda: flow(chosen, workspace, sampling))
    summarize(result)
    if result.styles:
        typer.echo(result.styles.statistics)


@app.command("build-relevance")
def build_relevance(
    workspace: Workspace,
    generator: Generator = "",
    clip: Clip = "",
    seed: Seed = 5,
    psi: Psi = 0.7,
    label: Label = None,
    statistics: Statistics = 100_000,
    samples: Samples = 100,
    strength: Strength = 5.0,
    centre: Annotated[
        str, typer.Option(help="sample: move around a code's own value; mean: around the channel's mean")
    ] = "sample",
    precision: Annotated[
        str, typer.Option(help="Number format of the networks: float32, bfloat16 or float16")
    ] = "float32",
    eight_bit: Annotated[
        bool, typer.Option("--eight-bit", help="Round images to 8 bits before CLIP, as published")
    ] = False,
    fast: Fast = False,
    tolerance: Tolerance = None,
    minimum: Annotated[
        int | None,
        typer.Option(min=2, help="Codes of a channel before that [default: 8, or 4 with --fast]"),
    ] = None,
    derivatives: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Directions along which derivatives stand in for moves [default: 0, or 64 with --fast]",
        ),
    ] = None,
    reference_compat: Annotated[
        bool,
        typer.Option("--reference-compat", help="Measure as the published script, with its slip; to compare"),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=2, help="Images at once, at most; an even number")] = 32,
    channels_per_shard: Annotated[int, typer.Option(min=1, help="Style channels of one task")] = 24,
    add_samples: Annotated[
        int, typer.Option(min=0, help="Merge this many new codes into the last table; the rest as it was")
    ] = 0,
    last_table: Annotated[
        str, typer.Option(help="URI of the table to add to [default: the workspace's largest one]")
    ] = "",
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Measure the CLIP direction of every style channel: the paper's preprocessing."""
    prepare(workers, verbose)
    from flows.build_relevance import build_relevance as flow
    from tasks.settings import Execution, Relevance, Sampling, SettingsError

    if last_table and not add_samples:
        raise SettingsError("--last-table says what to add to; give --add-samples too")

    sampling = Sampling(seed=seed, truncation_psi=psi, label=label, statistics=statistics, codes=samples)
    relevance = Relevance.model_validate({
        "samples": samples, "strength": strength, "centre": centre, "precision": precision,
        "eight_bit": eight_bit, "reference_compat": reference_compat,
        "batch_size": batch_size, "channels_per_shard": channels_per_shard,
    } | {
        name: value
        for name, value in (("tolerance", tolerance), ("minimum", minimum), ("derivatives", derivatives))
        if value is not None
    })  # fmt: skip
    relevance = relevance.fast() if fast else relevance
    chosen = chosen_models(generator, clip, "")
    result = with_progress(
        lambda: flow(chosen, workspace, sampling, relevance, Execution(), add_samples, last_table)
    )
    summarize(result)
    if result.table:
        typer.echo(result.table.relevance)


@app.command()
def invert(
    photos: Photos,
    workspace: Workspace,
    generator: Generator = "",
    encoder: Encoder = "",
    identity: Identity = "",
    perceptual: Perceptual = "",
    steps: Steps = 100,
    pivotal_steps: PivotalSteps = 0,
    pivotal_locality: PivotalLocality = None,
    shard_size: ShardSize = 16,
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Find the latent of every photograph under a prefix."""
    prepare(workers, verbose)
    from flows.invert_images import invert_images as flow
    from tasks.settings import Execution

    chosen = chosen_models(generator, str(data.CLIP), encoder, identity, perceptual)
    inversion = inversion_settings(steps, pivotal_steps, pivotal_locality)
    result = with_progress(
        lambda: flow(chosen, photos, workspace, inversion, Execution(shard_size=shard_size))
    )
    summarize(result)
    typer.echo(result.latents)


@app.command()
def edit(
    photos: Photos,
    out: Annotated[str, typer.Option(help="URI of the prefix for the results")],
    target: Annotated[str, typer.Option(help="What the images should become, e.g. 'grey hair'")] = "",
    neutral: Annotated[str, typer.Option(help="What the target is compared with, e.g. 'hair'")] = "face",
    alpha: Annotated[
        list[str] | None,
        typer.Option(
            help="Strength, in deviations of the most relevant channel; may be repeated, or auto [default: 3]"
        ),
    ] = None,
    beta: Annotated[
        list[str] | None,
        typer.Option(help="Threshold on |relevance|, 0 to 1; may be repeated, or auto [default: 0.15]"),
    ] = None,
    effect: Effect = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Number of channels, instead of --beta")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Layers that may change, e.g. 'b4.*'")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Layers that stay, e.g. 'b64.*'")] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="How much of each channel: relevance, or least-squares "
            "[default: relevance; least-squares where --beta is auto]"
        ),
    ] = "",
    method: Annotated[str, typer.Option(help="global, mapper or optimization")] = "global",
    instant: Annotated[
        bool, typer.Option("--instant", help="Relevance from gradients of this prompt, without any table")
    ] = False,
    mapper: Annotated[str, typer.Option(help="URI of a mapper's weights; means --method mapper")] = "",
    strength: Annotated[
        list[float] | None,
        typer.Option(help="Factor of the mapper's output; may be repeated [default: 0.1]"),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Optimization: published, or gentle for small generators")
    ] = "published",
    optimization_steps: Annotated[
        int | None, typer.Option(min=1, help="Optimization: steps, at most [default: the preset's]")
    ] = None,
    frames: Annotated[int, typer.Option(min=0, help="Optimization: frames of a video of each image")] = 0,
    edits: Annotated[str, typer.Option(help="URI of a YAML or JSON list of edits, instead of --target")] = "",
    table: TableFolder = "",
    generator: Generator = "",
    clip: Clip = "",
    encoder: Encoder = "",
    identity: Identity = "",
    perceptual: Perceptual = "",
    workspace: Annotated[str, typer.Option(help="Folder for artifacts [default: OUT/workspace]")] = "",
    seed: Seed = 5,
    psi: Psi = 0.7,
    label: Label = None,
    statistics: Statistics = 100_000,
    samples: Samples = 100,
    steps: Steps = 100,
    pivotal_steps: PivotalSteps = 0,
    pivotal_locality: PivotalLocality = None,
    shard_size: ShardSize = 16,
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Edit every photograph under a prefix by text: the whole chain."""
    prepare(workers, verbose)
    from flows.edit_images import edit_images as flow
    from tasks.edits import Edit, load_edits
    from tasks.settings import Execution, Instant, Relevance, Sampling, SettingsError

    inversion = inversion_settings(steps, pivotal_steps, pivotal_locality)
    if bool(edits) == bool(target):
        raise SettingsError("say what to edit: --target with a prompt, or --edits with a file, one of them")
    method = "mapper" if mapper else method
    given: dict[str, Any] = {
        "alpha": numbers_or_auto("alpha", alpha), "beta": numbers_or_auto("beta", beta), "top_k": top_k,
        "include": tuple(include or ()), "exclude": tuple(exclude or ()), "weights": weights,
        "relevance": "instant" if instant else "", "mapper": mapper, "strength": tuple(strength or ()),
    }  # fmt: skip
    if method == "optimization":
        given["optimization"] = {"preset": preset, "steps": optimization_steps, "frames": frames}
    one = {name: value for name, value in given.items() if value not in ("", (), None)}
    wanted = (
        load_edits(edits)
        if edits
        else [Edit.model_validate({"target": target, "neutral": neutral, "method": method, **one})]
    )
    result = with_progress(
        lambda: flow(
            chosen_models(generator, clip, encoder, identity, perceptual),
            photos,
            out,
            wanted,
            workspace,
            Sampling(seed=seed, truncation_psi=psi, label=label, statistics=statistics, codes=samples),
            Relevance(samples=samples),
            inversion,
            Execution(shard_size=shard_size),
            table,
            Instant(),
            choosing_settings(effect),
        )
    )
    for choice in result.choices:
        console.print(f"{choice.target}: {choice.summary}", markup=False, soft_wrap=True)
    _finish(result)


@app.command("train-mapper")
def train_mapper(
    workspace: Workspace,
    target: Annotated[list[str], typer.Option(help="What images should become; may be repeated")],
    generator: Generator = "",
    clip: Clip = "",
    identity: Identity = "",
    latents: Annotated[
        str, typer.Option(help="Folder of latents that `invert` wrote; codes are sampled without")
    ] = "",
    codes: Annotated[int, typer.Option(min=2, help="Codes to sample, if there are no latents")] = 5000,
    validation: Annotated[int, typer.Option(min=1, help="Of the codes, those kept for validation")] = 100,
    psi: Psi = 0.7,
    kind: Annotated[str | None, typer.Option(help="levels, single, style or style-full")] = None,
    level: Annotated[
        list[str] | None,
        typer.Option(help="For levels: coarse, medium, fine; may be repeated [default: all]"),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Defaults of what follows: published, or small for small generators")
    ] = "published",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps, at most")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Codes per step")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="RAdam's rate")] = None,
    decay: Annotated[
        float | None, typer.Option(min=0, max=1, help="Fraction of the steps over which the rate falls to 0")
    ] = None,
    clip_weight: Annotated[float | None, typer.Option(min=0, help="Weight of the CLIP term")] = None,
    identity_weight: Annotated[
        float | None, typer.Option(min=0, help="Weight of identity; 0 without --identity")
    ] = None,
    l2_weight: Annotated[float | None, typer.Option(min=0, help="Weight of the mean squared move")] = None,
    validate_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between validations and stores")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Validations without a gain before it ends")
    ] = None,
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 for mixed precision")] = "float32",
    templates: Annotated[str, typer.Option(help="Prompt templates, e.g. styleclip-79")] = "none",
    seed: Seed = 0,
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Train a latent mapper for each prompt; a run that was stopped goes on where it was."""
    prepare(workers, verbose)
    from flows.train_mapper import train_mapper as flow
    from tasks.settings import MapperTraining

    weight = 0.0 if identity_weight is None and not identity else identity_weight
    training = MapperTraining.model_validate({
        "preset": preset, "kind": kind, "levels": level or ("coarse", "medium", "fine"), "steps": steps,
        "seed": seed,
        "batch_size": batch_size, "learning_rate": learning_rate, "decay": decay, "clip_weight": clip_weight,
        "identity_weight": weight, "l2_weight": l2_weight, "validate_every": validate_every,
        "patience": patience, "precision": precision, "latents": latents, "codes": codes,
        "truncation_psi": psi, "validation": validation, "templates": templates,
    })  # fmt: skip
    for mapper in flow(chosen_models(generator, clip, "", identity), target, workspace, training).mappers:
        done = "found" if mapper.reused else "trained"
        console.print(
            f"{mapper.target}: {done}, {mapper.steps} steps, best validation loss {mapper.loss:.4f}"
        )
        typer.echo(mapper.best)


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Folder for the results")] = "demo",
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Edit the embedded photographs by text, with the embedded models."""
    prepare(workers, verbose)
    from flows.edit_images import edit_images as flow
    from tasks.edits import load_edits
    from tasks.settings import Inversion, Relevance, Sampling

    place = str(Path(out).resolve()) if "://" not in out else out
    console.print(f"editing {len(list(data.PHOTOGRAPHS.glob('*.png')))} photographs into {place}")
    result = with_progress(
        lambda: flow(
            chosen_models("", "", ""),
            str(data.PHOTOGRAPHS),
            place,
            load_edits(str(data.EDITS)),
            "",
            Sampling(truncation_psi=1.0, statistics=20_000, codes=DEMO_SAMPLES),
            Relevance(samples=DEMO_SAMPLES),
            Inversion(),
        )
    )
    _finish(result)


DEMO_SAMPLES = 24


def _finish(result: Any) -> None:  # noqa: ANN401
    summarize(result)
    report = result.report
    console.print(f"{report.rows} edits, {report.failed} of them failed or skipped (see the manifest)")
    typer.echo(f"manifest       {report.manifest}")
    typer.echo(f"contact sheet  {report.contact_sheet}")
    typer.echo(f"report page    {report.page}")


app.command()(choosing.choose)
app.command()(faces.align)
app.command()(faces.paste)
app.command("setup-server")(server.setup_server)
app.command("server-metrics")(server.server_metrics)
app.command()(report.report)
quality.register(app)


def run() -> None:
    """Run the command line; errors that a user can act on are one line."""
    try:
        app()
    except (StyleCLIPError, ValidationError, ValueError) as error:
        from tasks.progress import ShardsFailedError
        from tasks.settings import describe

        text = describe(error) if isinstance(error, ValidationError) else " ".join(str(error).split())
        console.print(f"error: {text}", markup=False, soft_wrap=True)
        sys.exit(1 if isinstance(error, ShardsFailedError) else 2)


if __name__ == "__main__":
    run()
