"""``convert``, ``import``, ``export``: the published files in and out."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from styleclip_cli import output
from styleclip_cli.options import Clip, Generator, chosen_models

_Kind = Literal["generator", "encoder", "identity", "clip", "mapper", "perceptual"]


def convert(
    source: Annotated[str, typer.Argument(help="URI of a weights file: .pkl, .pt, .pth, .safetensors")],
    target: Annotated[
        str, typer.Argument(help="URI to write: .safetensors, or .pt for a generator in rosinality's form")
    ],
    kind: Annotated[
        _Kind | None, typer.Option(help="What to take from the file; told from its content if not given")
    ] = None,
    encoder_kind: Annotated[
        Literal["e4e", "psp"] | None, typer.Option(help="For encoders that do not say which they are")
    ] = None,
) -> None:
    """Turn published weights into safetensors, once; nothing in the file is run."""
    from styleclip.tasks.exchange.published_files import convert_weights

    done = convert_weights(source, target, kind=kind, encoder_kind=encoder_kind)

    sizes = ", ".join(f"{name} {value}" for name, value in done.description.items())
    output.note(f"{done.kind}: {sizes}")
    output.results(weights=target)


def import_(
    out: Annotated[str, typer.Option(help="URI of the folder for the artifacts")],
    relevance: Annotated[str, typer.Option(help="URI of fs3.npy")] = "",
    statistics: Annotated[str, typer.Option(help="URI of the pickle S_mean_std")] = "",
    w: Annotated[
        str, typer.Option(help="URI of W.npy: style codes and statistics are computed from it")
    ] = "",
    latents: Annotated[str, typer.Option(help="URI of w_plus.npy, latents.pt or train_faces.pt")] = "",
    codes: Annotated[int, typer.Option(min=1, help="Style codes to store of --w")] = 100,
    generator: Generator = "",
    clip: Clip = "",
) -> None:
    """Bring files of the published code in; `edit --table OUT` then uses the table."""
    if not (relevance or statistics or w or latents):
        raise ValueError("say what to import: --relevance, --statistics, --w or --latents")
    if statistics and w:
        raise ValueError("--statistics and --w both give statistics; import one of them")
    from styleclip.tasks.exchange import published_files as exchange
    from styleclip.tasks.running.run import Networks, run_here

    chosen = chosen_models(generator, clip)
    network = run_here(Networks(generator=chosen.generator)).generator

    made: list[str] = []
    if relevance:
        embedder = run_here(Networks(clip=chosen.clip)).clip
        width = embedder.embedding_dim
        made.append(exchange.import_relevance(relevance, out, network, embedder.fingerprint, width=width))
    if statistics:
        made.append(exchange.import_statistics(statistics, out, network))
    if w:
        made += exchange.import_codes(w, out, network, codes=codes)
    if latents:
        made.append(exchange.import_latents(latents, out, network))
    output.results(artifacts=made)


def export(
    source: Annotated[
        str, typer.Argument(help="URI of relevance.parquet, statistics.parquet, or latents (a folder too)")
    ],
    target: Annotated[str, typer.Argument(help="URI to write: .npy, or .pt for latents, any for statistics")],
    published_layers: Annotated[
        bool, typer.Option(help="Only layers up to 128 pixels, as the published script measures")
    ] = False,
    half: Annotated[bool, typer.Option(help="float16 instead of float32")] = False,
    generator: Generator = "",
    clip: Clip = "",
) -> None:
    """Write an artifact as the published code reads it: fs3.npy, S_mean_std, w_plus.npy, latents.pt."""
    from styleclip.tasks.artifacts import read_provenance
    from styleclip.tasks.exchange import published_files as exchange
    from styleclip.tasks.running.run import Networks, run_here

    chosen = chosen_models(generator, clip)
    network = run_here(Networks(generator=chosen.generator)).generator

    # a folder is one of latents; all other artifacts are single tables
    kind = read_provenance(source).kind if source.endswith(".parquet") else "latents"

    if kind == "relevance":
        run = run_here(Networks(generator=chosen.generator, clip=chosen.clip))
        exchange.export_relevance(run, source, target, published_layers=published_layers, half=half)
    elif kind == "style-statistics":
        exchange.export_statistics(source, target, network)
    elif kind == "latents":
        exchange.export_latents(source, target, network)
    else:
        raise ValueError(f"{source} is a {kind}, which the published code has no file for")

    output.results(file=target)
