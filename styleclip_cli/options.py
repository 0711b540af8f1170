"""What the commands share: options, the embedded models as defaults, and how a flow is run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from styleclip import data
from styleclip.tasks.settings import DataSet, Execution, Inversion, Models, Relevance, Sampling, Saving
from styleclip_cli.generated import Shown
from styleclip_cli.interrupts import stoppable

_T = TypeVar("_T")

# Panels of the help; what is in none comes first.
NETWORKS = "Networks"
RUNNING = "How the work is run; none of it changes a result"  # that of Execution


def _suggest(*names: str) -> Callable[[], list[str]]:
    """Return what completes an option: some names; where none fits, the shell goes on to files."""
    return lambda: list(names)


def clip_names() -> list[str]:
    """Return what CLIPs can be called: the embedded one, and those that OpenAI has published."""
    from styleclip_core.models.catalog import catalog

    models = (model for model in catalog().values() if model.kind == "clip")
    return [str(data.CLIP), *(each.description.removeprefix("OpenAI's CLIP ") for each in models)]


Generator = Annotated[
    str,
    typer.Option(
        help="URI of the StyleGAN2 weights (.safetensors, .pkl or .pt); the embedded model if not given",
        envvar="STYLECLIP_GENERATOR", rich_help_panel=NETWORKS, autocompletion=_suggest(str(data.GENERATOR)),
    ),
]  # fmt: skip
Clip = Annotated[
    str,
    typer.Option(
        help="CLIP name (ViT-B/32, open_clip:ARCH/TAG, hf-hub:ORG/NAME) or URI; the embedded model if not "
        "given, or ViT-B/32 beside a --generator",
        envvar="STYLECLIP_CLIP", rich_help_panel=NETWORKS, autocompletion=clip_names,
    ),
]  # fmt: skip
Encoder = Annotated[
    str,
    typer.Option(
        help="URI of the encoder (e4e, pSp); the embedded one beside the embedded generator, else inversion "
        "starts at the average w without one",
        envvar="STYLECLIP_ENCODER", rich_help_panel=NETWORKS, autocompletion=_suggest(str(data.ENCODER)),
    ),
]  # fmt: skip
Identity = Annotated[
    str,
    typer.Option(
        help="URI of the identity network (model_ir_se50.pth); the embedded one beside the embedded "
        "generator",
        envvar="STYLECLIP_IDENTITY", rich_help_panel=NETWORKS, autocompletion=_suggest(str(data.IDENTITY)),
    ),
]  # fmt: skip
Perceptual = Annotated[
    str,
    typer.Option(
        help="URI of AlexNet's or VGG16's published weights, for LPIPS; not measured without",
        envvar="STYLECLIP_PERCEPTUAL", rich_help_panel=NETWORKS,
    ),
]  # fmt: skip
Workspace = Annotated[
    str, typer.Option(help="URI of the folder for intermediate artifacts", envvar="STYLECLIP_WORKSPACE")
]
Photos = Annotated[
    str,
    typer.Option(
        help="URI of the data set: a prefix, an image, a glob, a list, tar shards or Parquet; only read",
        envvar="STYLECLIP_PHOTOS",
    ),
]
Out = Annotated[str, typer.Option(help="URI of the prefix for the results", envvar="STYLECLIP_OUT")]
TableFolder = Annotated[
    str, typer.Option(help="Folder with relevance.parquet and statistics.parquet, instead of building it")
]
MostVariants = Annotated[
    int,
    typer.Option(
        min=1, help="Variants of every image that the edits may stand for; more are refused",
        rich_help_panel=RUNNING,
    ),
]  # fmt: skip
Workers = Annotated[
    int,
    typer.Option(
        min=0, help="Shards at once; 0 for one per core, or one on a GPU", rich_help_panel=RUNNING
    ),
]  # fmt: skip
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Prefect's log", rich_help_panel=RUNNING)]
OutWorkspace = Annotated[
    str,
    typer.Option(
        help="Folder for artifacts", show_default="OUT/workspace", envvar="STYLECLIP_WORKSPACE"
    ),
]  # fmt: skip

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Say what would be read, computed and written, and what it would take; do nothing",
        rich_help_panel=RUNNING,
    ),
]  # fmt: skip

Shards = Annotated[Execution, Shown(hidden=("strict",))]
StrictShards = Annotated[Execution, Shown()]
Which = Annotated[
    DataSet,
    Shown(
        names={
            "column": "image-column", "include": "include-keys", "exclude": "exclude-keys",
            "tables": "with-table",
        }
    ),
]  # fmt: skip
Written = Annotated[Saving, Shown()]
Codes = Annotated[Sampling, Shown(names={"truncation_psi": "psi"}, hidden=("codes",))]
Table = Annotated[Relevance, Shown(only=("samples",))]
_LOCALITY = {"pivotal.locality_weight": "pivotal-locality"}
Inverting = Annotated[Inversion, Shown(names=_LOCALITY)]
InvertingFirst = Annotated[Inversion, Shown(prefix="inversion-", names=_LOCALITY | {"steps": "steps"})]


def chosen_models(
    generator: str, clip: str, encoder: str = "", identity: str = "", perceptual: str = ""
) -> Models:
    """Return the networks to use: the embedded ones where no generator is given."""
    if not generator:
        return Models(
            generator=str(data.GENERATOR),
            clip=clip or str(data.CLIP),
            encoder=encoder or str(data.ENCODER),
            identity=identity or str(data.IDENTITY),
            perceptual=perceptual or None,
        )
    return Models(
        generator=generator,
        clip=clip or "ViT-B/32",
        encoder=encoder or None,
        identity=identity or None,
        perceptual=perceptual or None,
    )


def with_codes(sampling: Sampling, relevance: Relevance) -> Sampling:
    """Return what to sample so that there is a style code for each sample of the table."""
    return sampling.model_copy(update={"codes": relevance.samples})


def prepare(workers: int, verbose: bool) -> None:
    """Set what Prefect and torch read when they are imported."""
    if workers:
        os.environ["STYLECLIP_WORKERS"] = str(workers)
    # what the user has set stays
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if verbose else "CRITICAL")
    # of what is still to be sent to the server when a command ends; these loggers are not below Prefect's
    for name in ("EventsWorker", "APILogWorker"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")


def with_progress(work: Callable[[], _T]) -> _T:
    """Run a flow and show how far its steps are; the first signal lets its shards under way end.

    Raises:
        ServerError: If there is no Prefect server to run on.
    """
    from styleclip.tasks.running.progress import observe
    from styleclip_cli.prefect_api import reach
    from styleclip_cli.progress import shown

    reach()  # before there are bars, which would stand still
    with shown() as observer, observe(observer), stoppable():
        return work()
