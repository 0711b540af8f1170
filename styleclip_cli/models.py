"""Published models: list them, show one, fetch one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from styleclip_cli import output
from styleclip_cli.commands import Command
from styleclip_cli.generated import with_options
from styleclip_core.models.catalog import KINDS, ORIGINS, PublishedModel, catalog, find_model, partners

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help=__doc__)


def _names() -> list[str]:
    return list(catalog())


Name = Annotated[
    str,
    typer.Argument(help="Name in the list, or OpenAI's name of a CLIP (ViT-B/32)", autocompletion=_names),
]


def list_models(
    kind: Annotated[
        str, typer.Option(help=f"Only these: {', '.join(KINDS)}", autocompletion=lambda: list(KINDS))
    ] = "",
) -> None:
    """List the published models, one a line."""
    if kind and kind not in KINDS:
        raise ValueError(f"--kind {kind!r} is none of {', '.join(KINDS)}")

    shown = [model for model in catalog().values() if kind in ("", model.kind)]

    rows = [("name", "kind", "px", "SHA-256", "use", "description")]
    rows += [
        (
            model.name,
            model.kind,
            str(model.resolution or "-"),
            model.sha256_origin or "none",
            "non-commercial" if model.license.non_commercial else "any",
            model.description,
        )
        for model in shown
    ]

    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    output.answer(
        ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows],
        models=[_known(model) for model in shown],
    )


def show(name: Name) -> None:
    """Show what is known of a published model, and where it lies or would lie."""
    from styleclip.tasks.exchange.catalogue import model_path
    from styleclip.tasks.running.networks import cache_folder

    model = find_model(name)
    path = model_path(model, cache_folder() / "models")

    lines = {
        "name": model.name,
        "kind": model.kind,
        "description": model.description,
        "licence": _license(model),
        "url": model.url + ("" if model.verified else "  (put together from paths, not read as a link)"),
        "page": model.page,
        "SHA-256": f"{model.sha256} ({ORIGINS[model.sha256_origin]})"
        if model.sha256
        else "no trustworthy one known",
        "reported": f"{model.reported_sha256} (by one project only)" if model.reported_sha256 else "",
        "size": f"{model.size:,} bytes" if model.size else "",
        "resolution": f"{model.resolution} px" if model.resolution else "",
        "mapping": f"{model.mapping_layers} layers" if model.mapping_layers else "",
        "pairs with": ", ".join(partners(model)),
        "notes": model.notes,
        "place": f"{path}{'' if path.exists() else '  (not fetched)'}",
    }

    output.answer(
        [f"{label:<12} {text}" for label, text in lines.items() if text],
        model=_known(model), place=str(path), fetched=path.exists(),
    )  # fmt: skip


def fetch(
    name: Name,
    accept_sha256: Annotated[
        str, typer.Option("--accept-sha256", help="The SHA-256 to accept, 64 hexadecimal digits")
    ] = "",
    trust: Annotated[
        bool, typer.Option("--trust", help="Accept a file that has no published SHA-256, the first time")
    ] = False,
) -> None:
    """Download a published model into the cache, continuing what was cut, and check its SHA-256."""
    from styleclip.tasks.exchange.catalogue import Consent, fetch_model
    from styleclip.tasks.running.networks import cache_folder
    from styleclip_cli.progress import downloading

    model = find_model(name)
    consent = Consent(accept_sha256.lower() or None, trust)
    output.note(f"{model.name}: {model.description}")
    # said before the download, as it may forbid what the model is wanted for
    output.note(f"licence: {_license(model)}")

    with downloading(model.file) as observe:
        path = fetch_model(model, cache_folder() / "models", consent, observe=observe, tell=output.tell)
    output.results(file=str(path))


def _known(model: PublishedModel) -> dict[str, Any]:
    """Return what is known of a model, as values."""
    return {**asdict(model), "license": _license(model)}


def _license(model: PublishedModel) -> str:
    use = "non-commercial use only" if model.license.non_commercial else "commercial use allowed"
    return f"{model.license.name} ({use}), {model.license.url}"


app.command("list", cls=Command)(with_options(list_models))
app.command("show", cls=Command)(with_options(show))
app.command("fetch", cls=Command)(with_options(fetch))
