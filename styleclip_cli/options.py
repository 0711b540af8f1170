"""What the commands share: options, the embedded models as defaults, progress bars, closing lines."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import data
from styleclip_cli.generated import Shown
from styleclip_cli.interrupts import stoppable
from tasks.settings import Execution, Inversion, Models, Relevance, Sampling

console = Console(stderr=True, highlight=False)
_T = TypeVar("_T")

Generator = Annotated[
    str,
    typer.Option(
        help="URI of the StyleGAN2 weights (.safetensors, .pkl or .pt); the embedded model if not given"
    ),
]
Clip = Annotated[str, typer.Option(help="CLIP name (ViT-B/32) or URI; the embedded model if not given")]
Encoder = Annotated[
    str, typer.Option(help="URI of the encoder (e4e, pSp); inversion starts at the average w without one")
]
Identity = Annotated[
    str,
    typer.Option(
        help="URI of the identity network (model_ir_se50.pth); the embedded one beside the embedded generator"
    ),
]
Perceptual = Annotated[
    str, typer.Option(help="URI of AlexNet's or VGG16's published weights, for LPIPS; not measured without")
]
Workspace = Annotated[str, typer.Option(help="URI of the folder for intermediate artifacts")]
Photos = Annotated[str, typer.Option(help="URI of the photographs' prefix; only read")]
TableFolder = Annotated[
    str, typer.Option(help="Folder with relevance.parquet and statistics.parquet, instead of building it")
]
MostVariants = Annotated[
    int,
    typer.Option(min=1, help="Variants of every image that the edits may stand for; more are refused"),
]
Workers = Annotated[int, typer.Option(min=0, help="Shards at once; 0 for one per core, or one on a GPU")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Prefect's log")]
OutWorkspace = Annotated[str, typer.Option(help="Folder for artifacts", show_default="OUT/workspace")]

Shards = Annotated[Execution, Shown()]
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
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")


def with_progress(work: Callable[[], _T]) -> _T:
    """Run a flow with one progress bar per step; the first Ctrl-C lets its shards under way end.

    Raises:
        ServerError: If there is no Prefect server to run on.
    """
    from styleclip_cli.prefect_api import reach
    from tasks.running.progress import observe

    reach()  # before there are bars, which would stand still

    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TextColumn("shards"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bars: dict[str, Any] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in bars:
                bars[step] = progress.add_task(step, total=total)
            progress.update(bars[step], completed=done)

        with observe(show), stoppable():
            return work()


def summarize(result: Any) -> None:  # noqa: ANN401 - flows are imported late
    """Print what each step of a run did, and what under its prefix it did not read."""
    for step in result.steps:
        rate = step.rows / step.seconds if step.seconds else 0.0
        console.print(
            f"{step.step}: {step.rows} rows in {step.shards} shards, {step.computed} computed now, "
            f"{step.failed} items failed, {step.seconds:.1f} s, {rate:.1f} rows/s"
        )
    if passed_over := getattr(result, "passed_over", ""):
        console.print(passed_over, markup=False, soft_wrap=True)
