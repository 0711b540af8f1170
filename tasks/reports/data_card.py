"""The data card of a set of pairs: how many there are, from what, by which networks, filtered how.

It is the README.md that ``datasets`` and the Hub read: what stands between the lines of dashes tells them
which files are of which split, and of tars the types of all columns. Without these ``datasets`` takes those
of five samples: what is null in them would end its reading later, whole numbers would cut off the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pyarrow as pa
import yaml

from styleclip.tasks.artifacts import read_table
from styleclip.tasks.reports.pairs import IMAGES, PROMPT, SPLITS, PairsPlan, ending, pictures_of
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.shown import code
from styleclip.tasks.storage import join, write_bytes_atomic

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@unit_of_work("write-data-card")
def write_data_card(run: Run, planned: PairsPlan) -> str:
    """Write the card of a set whose files are there, and return where."""
    uri = join(planned.folder, "README.md")
    write_bytes_atomic(uri, data_card(planned).encode())
    return uri


def data_card(planned: PairsPlan) -> str:
    """Return the card of a set."""
    head = yaml.safe_dump(_head(planned), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n".join(_body(planned))


def _head(planned: PairsPlan) -> dict[str, object]:
    tars = planned.settings.to == "webdataset"
    splits = [split for split in SPLITS if _count(planned, split)]
    size = next((name for most, name in _SIZES if planned.pairs < most), "n>1M")
    return {
        "pretty_name": "Pairs of images before and after an edit by text",
        "task_categories": ["image-to-image"],
        "size_categories": [size],
        "tags": ["styleclip", "instruct-pix2pix"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"{split}-*.{'tar' if tars else 'parquet'}"} for split in splits
                ],
            }
        ],
        **({"dataset_info": {"features": _features(planned)}} if tars else {}),
    }


def _features(planned: PairsPlan) -> list[dict[str, object]]:
    """Return the columns of tars with their types, as ``datasets`` writes them down."""
    rows = read_table(planned.files[0].rows)
    pair = zip(IMAGES, pictures_of(planned, rows.slice(0, 1).to_pylist()[0]), strict=True)
    simple: dict[str, object] = {f"{name}.{ending(content)}": "image" for name, content in pair}
    simple |= dict.fromkeys((f"{PROMPT}.txt", "__key__", "__url__"), "string")
    about: dict[str, object] = {"name": "json", **_type(pa.struct(rows.schema))}
    return [about, *({"name": name, "dtype": kind} for name, kind in simple.items())]


def _type(kind: pa.DataType) -> dict[str, object]:
    """Return the type that a value has once JSON has kept it."""
    if pa.types.is_struct(kind):
        return {"struct": [{"name": field.name, **_type(field.type)} for field in kind]}
    if pa.types.is_list(kind):
        inner = _type(kind.value_type)
        return {"list": inner.get("struct", inner.get("dtype", inner))}
    if pa.types.is_boolean(kind):
        return {"dtype": "bool"}
    if pa.types.is_integer(kind):
        return {"dtype": "int64"}
    return {"dtype": "float64" if pa.types.is_floating(kind) else "string"}


def _count(planned: PairsPlan, split: str) -> int:
    return sum(each.pairs for each in planned.files if each.name.startswith(split))


def _body(planned: PairsPlan) -> Iterator[str]:
    settings, made = planned.settings, planned.made
    of = "of what the generator drew of a photograph" if settings.before == "inversion" else "of photographs"
    splits = ", ".join(f"{_count(planned, split):,} {split}" for split in SPLITS)
    yield "# Pairs of images before and after an edit by text\n"
    yield f"{planned.pairs:,} pairs ({splits}) {of}, an instruction, and what StyleCLIP made of both."
    yield "A photograph is in one split alone.\n"
    yield "| column | what it is |\n|---|---|"
    yield f"| {code(IMAGES[0])} | the image before the edit, PNG or as the photograph lies there |"
    yield f"| {code(PROMPT)} | the instruction |"
    yield f"| {code(IMAGES[1])} | the image after it |"
    yield "| the others | the columns of the manifest: what the edit was, and its scores |\n"

    yield "## Where it comes from\n"
    yield f"- photographs: {code(planned.photos)}"
    yield f"- instructions: {'; '.join(code(text) for text in settings.instruction)}"
    yield f"- of {planned.considered:,} edits those are here for which {code(settings.where or 'true')}"
    for name, hash_ in _networks(planned):
        yield f"- {name}: SHA-256 {code(hash_)}"
    yield f"- manifest: {code(made.fingerprint)}\n"

    yield "## Edits\n"
    edits = json.dumps(made.parameters.get("edits", []), indent=1, ensure_ascii=False)
    yield f"````json\n{edits}\n````\n"
    yield "## Rights\n"
    yield (
        "Whoever publishes this set answers for the rights in the photographs and for the consent of who is "
        "shown. The edited images are synthetic, and should be told apart as such."
    )


def _networks(planned: PairsPlan) -> Iterator[tuple[str, str]]:
    yield "generator", planned.made.generator
    yield "CLIP", planned.made.clip
    models = planned.made.parameters.get("models", {})
    yield from models.items() if isinstance(models, dict) else ()
