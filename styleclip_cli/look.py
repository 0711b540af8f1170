"""Commands that look: evaluate edits, score a bucket, inspect prompts and channels."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from styleclip import data
from styleclip.tasks.settings import (
    Comparison,
    DataSet,
    Execution,
    Judges,
    Relevance,
    Sampling,
    SettingsError,
)
from styleclip.tasks.settings.edits import MOST_VARIANTS, load_edits
from styleclip_cli import output
from styleclip_cli.generated import Shown
from styleclip_cli.options import (
    NETWORKS,
    Clip,
    Codes,
    Generator,
    MostVariants,
    Out,
    OutWorkspace,
    Shards,
    Table,
    TableFolder,
    Verbose,
    Which,
    Workers,
    chosen_models,
    clip_names,
    prepare,
    with_codes,
    with_progress,
)
from styleclip_core.templates import TEMPLATE_SETS

Templates = Annotated[
    str,
    typer.Option(
        help="Prompt templates: styleclip-79, imagenet-80 or none", autocompletion=lambda: list(TEMPLATE_SETS)
    ),
]
Attributes = Annotated[
    str,
    typer.Option(
        help="URI of a YAML or JSON list of attributes (name, positive, negative, group); for faces, or of "
        "the embedded world, if not given"
    ),
]


WorkspaceOrTable = Annotated[
    str,
    typer.Option(
        help="Folder for artifacts; a table that is not there is built in it",
        show_default="TABLE/explorations",
        envvar="STYLECLIP_WORKSPACE",
    ),
]


def evaluate(
    manifest: Annotated[str, typer.Option(help="URI of the manifest.parquet of a batch of edits")],
    clip: Annotated[str, typer.Option(help="CLIP name (ViT-B/16) or URI; best one that made no edit")] = "",
    identity: Annotated[str, typer.Option(help="URI of an identity network; not scored without")] = "",
    perceptual: Annotated[
        str,
        typer.Option(help="URI of AlexNet's or VGG16's published weights, for LPIPS; not measured without"),
    ] = "",
    attributes: Attributes = "",
    comparison: Annotated[Comparison, Shown(names={"before": "compare-with"})] = Comparison(),
    out: Annotated[
        str,
        typer.Option(help="What the manifest's output keys are relative to", show_default="found from it"),
    ] = "",
    workspace: Annotated[
        str,
        typer.Option(
            help="Workspace the edits were made with",
            show_default="OUT/workspace",
            envvar="STYLECLIP_WORKSPACE",
        ),
    ] = "",
    execution: Shards = Execution(),
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Score every edit of a manifest: CLIP, identity, pixels, attributes; per image, and per edit.

    Edits of the embedded models are judged by the embedded CLIP, identity network and attributes, if no
    others are given; other edits by ViT-B/32.
    """
    prepare(workers, verbose)
    from styleclip.flows.evaluate import evaluate_edits as flow
    from styleclip.tasks.evaluation.attributes import load_attributes
    from styleclip.tasks.evaluation.tables import overview

    # told by who made the edits, as a manifest may be judged without their networks at hand
    embedded = made_by_embedded(manifest)
    chosen = tuple(load_attributes(attributes or default_attributes(embedded)))

    judges = chosen_judges(clip, identity, perceptual, embedded)
    result = with_progress(lambda: flow(manifest, chosen, judges, comparison, out, workspace, execution))

    output.summarize(result)
    output.table(*overview(result.evaluation))
    output.results(evaluation=result.evaluation.evaluation, summary=result.evaluation.summary)


def score(
    photos: Annotated[
        str,
        typer.Option(
            "--photos", "--images", help="URI of the images' prefix; only read", envvar="STYLECLIP_PHOTOS"
        ),
    ],
    out: Out,
    prompts: Annotated[
        str,
        typer.Option(
            help="URI of a YAML or JSON list of prompts: texts that exclude each other, or entries with "
            "name, prompt, negative, group; a list of attributes will do"
        ),
    ] = "",
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt; may be repeated, instead of --prompts")
    ] = None,
    labels: Annotated[
        str,
        typer.Option(
            help="URI of what is known of the images, .csv or .parquet: a column image_key, and a column for "
            "each prompt (1, 0) or group (name); adds accuracy and AUC"
        ),
    ] = "",
    clip: Annotated[
        str,
        typer.Option(
            help="CLIP name (ViT-B/32) or URI; 'embedded' for the embedded world's",
            envvar="STYLECLIP_CLIP",
            rich_help_panel=NETWORKS,
            autocompletion=lambda: ["embedded", *clip_names()],
        ),
    ] = "ViT-B/32",
    templates: Templates = "styleclip-79",
    workspace: OutWorkspace = "",
    dataset: Which = DataSet(),
    execution: Shards = Execution(shard_size=256),
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Score every image under a prefix with every prompt, by CLIP alone (zero-shot)."""
    prepare(workers, verbose)
    from styleclip.flows.score_images import score_images as flow
    from styleclip.tasks.evaluation.labels import LabelPrompt, load_prompts

    if bool(prompts) == bool(prompt):
        raise SettingsError("say what to look for: --prompts with a file, or --prompt, one of them")

    wanted = load_prompts(prompts) if prompts else [LabelPrompt(prompt=each) for each in prompt or ()]
    network = str(data.CLIP) if clip == "embedded" else clip
    result = with_progress(
        lambda: flow(photos, wanted, out, network, labels, templates, workspace, execution, dataset)
    )

    output.summarize(result)
    if result.scores.accuracy:
        _print_accuracy(result.scores.accuracy)
    output.results(accuracy=result.scores.accuracy, scores=result.scores.scores)


def _print_accuracy(uri: str) -> None:
    from styleclip.tasks.artifacts import read_table

    lines = [
        [
            row["label"] or f"all of {row['group']}", str(row["n"]), str(row["positives"]),
            f"{row['accuracy']:.3f} ± {row['standard_error']:.3f}",
            "" if row["auc"] is None else f"{row['auc']:.4f}",
        ]
        for row in read_table(uri).to_pylist()
    ]  # fmt: skip
    output.table(["label", "images", "where it holds", "accuracy", "AUC"], lines)


def prompts(
    edits: Annotated[str, typer.Option(help="URI of a YAML or JSON list of edits, as for `edit`")],
    workspace: WorkspaceOrTable = "",
    table: TableFolder = "",
    generator: Generator = "",
    clip: Clip = "",
    sampling: Codes = Sampling(),
    relevance: Table = Relevance(),
    most_variants: MostVariants = MOST_VARIANTS,
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Say what the prompts of an edit file will do: channels, pictures, pairs that nearly coincide."""
    prepare(workers, verbose)
    from styleclip.flows.inspect_prompts import inspect_prompts as flow
    from styleclip.tasks.inspection import prompts as diagnostics

    wanted = load_edits(edits, most_variants)
    result = with_progress(
        lambda: flow(
            chosen_models(generator, clip), wanted, workspace or _beside(table),
            with_codes(sampling, relevance), relevance, table=table, most_variants=most_variants,
        )
    )  # fmt: skip

    output.summarize(result)
    found = result.diagnosis
    output.table(*diagnostics.overview(found))
    for line in (*diagnostics.foreign(found), *result.uncarried):
        output.note(f"warning: {line}")
    for line in diagnostics.warnings(found.correlations):
        output.note(f"nearly the same: {line}")

    output.results(
        prompts=found.prompts, channels=found.channels, correlations=found.correlations,
        pictures=found.pictures,
    )  # fmt: skip


def channels(
    target: Annotated[
        str, typer.Option(help="What images should become; lists and draws the strongest channels")
    ] = "",
    neutral: Annotated[str, typer.Option(help="What the target is compared with")] = "face",
    count: Annotated[int, typer.Option(min=1, help="Channels to list and draw")] = 12,
    channel: Annotated[
        str, typer.Option(help="A channel, e.g. b16.conv1.42; lists the attributes it is nearest to")
    ] = "",
    attributes: Attributes = "",
    templates: Templates = "styleclip-79",
    workspace: WorkspaceOrTable = "",
    table: TableFolder = "",
    generator: Generator = "",
    clip: Clip = "",
    sampling: Codes = Sampling(),
    relevance: Table = Relevance(),
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Look into the relevance table: channels of a prompt, or prompts of a channel, with pictures."""
    prepare(workers, verbose)
    from styleclip.flows.explore_channels import Question
    from styleclip.flows.explore_channels import explore_channels as flow
    from styleclip.tasks.evaluation.attributes import load_attributes

    question = Question(target=target, neutral=neutral, count=count, channel=channel, templates=templates)

    listed = tuple(load_attributes(attributes or default_attributes(not generator)))
    result = with_progress(
        lambda: flow(
            chosen_models(generator, clip), question, workspace or _beside(table), listed,
            with_codes(sampling, relevance), relevance, table=table,
        )
    )  # fmt: skip

    output.summarize(result)
    _print_exploration(result.found.table)
    output.results(table=result.found.table, picture=result.found.picture)


def _print_exploration(uri: str) -> None:
    from styleclip.tasks.artifacts import read_table

    rows = read_table(uri).to_pylist()
    # the table is one of prompts near a channel, or of channels near a prompt
    if "attribute" in rows[0]:
        header = ["attribute", "positive", "negative", "cosine"]
        lines = [
            [row["attribute"], row["positive"], row["negative"], f"{row['cosine']:+.3f}"] for row in rows[:12]
        ]
    else:
        header = ["channel", "relevance", "consistency", "standard error"]
        names = ("relevance", "consistency", "standard_error")
        lines = [[row["name"], *(f"{row[name]:+.3f}" for name in names)] for row in rows]

    output.table(header, lines)


def _beside(table: str) -> str:
    """Return where to write if no workspace is given: beside the table."""
    if not table:
        raise SettingsError(
            "give --table with the folder of a relevance table, or --workspace to build one in"
        )
    from styleclip.tasks.storage import join

    return join(table, "explorations")


def made_by_embedded(manifest: str) -> bool:
    """Return whether the embedded generator drew the edits of a manifest."""
    from styleclip.tasks.artifacts import read_provenance
    from styleclip_core.files.checkpoint import file_sha256

    return read_provenance(manifest).generator == file_sha256(data.GENERATOR)


def default_attributes(embedded: bool) -> str:
    """Return the list of attributes to use where none is given."""
    from styleclip.tasks.evaluation.attributes import FACES

    return str(data.ATTRIBUTES) if embedded else FACES


def chosen_judges(clip: str, identity: str, perceptual: str, embedded: bool) -> Any:  # noqa: ANN401
    """Return the networks that evaluate: the embedded ones for edits of the embedded models."""
    return Judges(
        clip=clip or (str(data.CLIP) if embedded else "ViT-B/32"),
        identity=identity or (str(data.IDENTITY) if embedded else None),
        perceptual=perceptual or None,
    )
