"""Files of the published StyleCLIP code -> our artifacts, and back; weights of any form -> safetensors.

Imported artifacts carry the hashes of the generator and the CLIP that they are said to go with, so that
an edit refuses to mix them with others, as it does for tables built here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from styleclip.tasks.artifacts import (
    Provenance,
    Recipe,
    read_provenance,
    read_table,
    to_matrix,
    vector_column,
    write_table,
)
from styleclip.tasks.artifacts.outcomes import OK, success
from styleclip.tasks.directions.relevance import read_relevance, relevance_table
from styleclip.tasks.directions.sampling import read_statistics, statistics_table
from styleclip.tasks.photographs.inversion import latents_schema
from styleclip.tasks.running import networks as models
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import SettingsError
from styleclip.tasks.storage import is_local, join, list_objects, local_path, write_bytes_atomic
from styleclip_core import exchange
from styleclip_core.convert import Conversion, Kind, convert
from styleclip_core.files.checkpoint import file_sha256
from styleclip_core.models.clip_names import parse_clip
from styleclip_core.models.psp import Kind as EncoderKind
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.sampling import measure_statistics
from styleclip_core.style_space import StyleCode

STEP, VERSION = "import", "1"
_BATCH = 1000


def convert_weights(
    source: str, target: str, *, kind: Kind | None = None, encoder_kind: EncoderKind | None = None
) -> Conversion:
    """Convert a weights file from one URI to another; see ``styleclip_core.convert``."""
    said = parse_clip(source)
    path: str | Path = models.local_weights(said.place or source)
    if said.activation:
        path = said.at(str(path)).given
    if is_local(target):
        return convert(path, local_path(target), kind=kind, encoder_kind=encoder_kind)

    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / target.rsplit("/", 1)[-1]
        done = convert(path, aside, kind=kind, encoder_kind=encoder_kind)

        # the description first: weights that are there have one
        write_bytes_atomic(target.rsplit(".", 1)[0] + ".json", aside.with_suffix(".json").read_bytes())
        write_bytes_atomic(target, aside.read_bytes())
    return done


def import_relevance(fs3: str, out: str, generator: Generator, clip_hash: str, *, width: int) -> str:
    """Write ``fs3.npy`` as ``relevance.parquet`` under ``out``; returns its URI.

    Raises:
        SettingsError: If its rows are not as wide as the CLIP's embedding.
    """
    path = models.local_weights(fs3)
    table = exchange.relevance_from_fs3(path, generator.layout)
    if table.direction.shape[1] != width:
        raise SettingsError(
            f"{fs3} holds directions of {table.direction.shape[1]} numbers, this CLIP embeds in {width}; "
            "give the CLIP that the table was made with (ViT-B/32 for the published ones)"
        )

    uri = join(out, "relevance.parquet")
    # the published file does not say over how many samples it was measured
    made = _imported("relevance", fs3, path, generator, clip_hash, {"n": "not stored"})
    write_table(uri, relevance_table(table), made)
    return uri


def import_statistics(pickle: str, out: str, generator: Generator) -> str:
    """Write ``S_mean_std`` as ``statistics.parquet`` under ``out``; returns its URI."""
    path = models.local_weights(pickle)
    statistics = exchange.statistics_from_pickle(path, generator.layout)

    uri = join(out, "statistics.parquet")
    made = _imported("style-statistics", pickle, path, generator, "", {"n": "assumed"})
    write_table(uri, statistics_table(generator.layout, statistics), made)
    return uri


def import_codes(w: str, out: str, generator: Generator, *, codes: int) -> tuple[str, str]:
    """Write ``W.npy`` as style codes and statistics, as the published GetCode does.

    Args:
        w: URI of ``[N, w_dim]``, truncated already.
        out: Folder for ``codes.parquet`` (the first ``codes`` rows) and ``statistics.parquet`` (of all).
        generator: Maps w to styles.
        codes: Codes to store.

    Raises:
        SettingsError: If w has another width than the generator's.
    """
    path = models.local_weights(w)
    rows = exchange.read_array(path, axes=2)
    if rows.shape[1] != generator.config.w_dim:
        raise SettingsError(
            f"{w} is {rows.shape[1]} wide, the generator's w {generator.config.w_dim}; give its own"
        )
    if not len(rows):
        raise SettingsError(f"{w} holds no row; give a file of w with at least one")

    # statistics are of all rows, so the styles of all are computed, though only the first are kept
    kept: list[np.ndarray] = []

    def batches() -> Iterator[StyleCode]:
        for first in range(0, len(rows), _BATCH):
            styles = _styles(generator, np.array(rows[first : first + _BATCH], np.float32))
            if first < codes:
                kept.append(styles.flat().cpu().numpy()[: codes - first])
            yield styles

    # going through the batches fills what is kept, too
    total = measure_statistics(batches())
    stored = np.concatenate(kept)

    table = pa.table({
        "sample_id": pa.array(range(len(stored)), pa.int64()),
        "w": vector_column(np.array(rows[: len(stored)], np.float32)),
        "s": vector_column(stored),
    })  # fmt: skip

    places = join(out, "codes.parquet"), join(out, "statistics.parquet")
    write_table(places[0], table, _imported("style-samples", w, path, generator, "", {"codes": len(stored)}))
    made = _imported("style-statistics", w, path, generator, "", {"n": total.n})
    write_table(places[1], statistics_table(generator.layout, total), made)
    return places


def import_latents(file: str, out: str, generator: Generator) -> str:
    """Write ``w_plus.npy``, ``latents.pt`` or ``train_faces.pt`` as ``latents.parquet`` under ``out``.

    The image key of a row is its number in the file: the published files hold no names.

    Raises:
        SettingsError: If the latents are not of this generator's shape.
    """
    path = models.local_weights(file)
    rows = exchange.read_latents(path)
    expected = (generator.num_ws, generator.config.w_dim)
    if rows.shape[1:] != expected:
        raise SettingsError(
            f"{file} holds latents of shape {list(rows.shape[1:])}, this generator's are {list(expected)}; "
            "give the generator that they were inverted with"
        )

    width = expected[0] * expected[1]
    schema = latents_schema(width, tunings=False)
    empty = dict.fromkeys(schema.names) | {"method": "imported"} | success()

    # a part at a time, as rows are lists of Python's numbers before they are a table
    parts = list[pa.Table]()
    for first in range(0, len(rows), _BATCH):
        part = np.array(rows[first : first + _BATCH], np.float32).reshape(-1, width)
        named = [
            {**empty, "image_key": f"{number:06d}", "w_plus": row} for number, row in enumerate(part, first)
        ]
        parts.append(pa.Table.from_pylist(named, schema))

    uri = join(out, "latents.parquet")
    made = _imported("latents", file, path, generator, "", {"rows": len(rows)})
    write_table(uri, pa.concat_tables(parts), made)
    return uri


def export_relevance(run: Run, relevance: str, target: str, *, published_layers: bool, half: bool) -> int:
    """Write a relevance table as ``fs3.npy``; returns its number of rows."""
    table = read_relevance(run, relevance)
    with _uploaded(target) as path:
        return exchange.write_fs3(table, path, published_layers=published_layers, half=half)


def export_statistics(statistics: str, target: str, generator: Generator) -> int:
    """Write statistics as the pickle ``S_mean_std``; returns the number of style channels."""
    _check_generator(statistics, generator)
    found = read_statistics(statistics)

    with _uploaded(target) as path:
        exchange.write_statistics(found, generator.layout, path)
    return len(found.mean)


def export_latents(latents: str, target: str, generator: Generator) -> int:
    """Write the latents that are ``ok``, sorted by image key, as ``.npy`` or ``.pt``; returns how many.

    Args:
        latents: URI of a table, or of the folder that an inversion ends with: for every image its last
            attempt counts.
        target: URI of the ``.npy`` or ``.pt``; a ``.json`` beside it lists the image keys of the rows,
            as the published files have no place for names.
        generator: The one that they were inverted with.

    Raises:
        SettingsError: If there is none, or they belong to another generator.
    """
    whole = latents.endswith(".parquet")
    found = {} if whole else {item.key: item for item in list_objects(latents, (".parquet",))}
    uris = [latents] if whole else [join(latents, key) for key in sorted(found)]

    # attempts at a shard sort in their order, so what an image's last one says comes last
    rows: dict[str, np.ndarray | None] = {}
    for uri in uris:
        _check_generator(uri, generator)
        table = read_table(uri, ["image_key", "w_plus", "status"])
        done = table.filter(pc.equal(table["status"], OK))
        rows |= dict.fromkeys(table["image_key"].to_pylist())
        rows |= dict(zip(done["image_key"].to_pylist(), to_matrix(done, "w_plus"), strict=True))

    usable = {key: row for key, row in sorted(rows.items()) if row is not None}
    if not usable:
        raise SettingsError(f"{latents} holds no latent with status ok; there is nothing to export")

    w_plus = np.stack(list(usable.values())).reshape(-1, generator.num_ws, generator.config.w_dim)
    with _uploaded(target) as path:
        exchange.write_latents(w_plus, path)
    write_bytes_atomic(f"{target}.json", json.dumps(list(usable), indent=0).encode())
    return len(usable)


class _uploaded:
    """A local path to write to; the file then goes to ``target`` whole."""

    def __init__(self, target: str) -> None:
        self._target = target

    def __enter__(self) -> Path:
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / self._target.rsplit("/", 1)[-1]
        return self._path

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # a file that was not written to its end goes nowhere
            if kind is None:
                write_bytes_atomic(self._target, self._path.read_bytes())
        finally:
            self._folder.cleanup()


def _styles(generator: Generator, w: np.ndarray) -> StyleCode:
    latents = torch.from_numpy(w).to(generator.device)

    # an imported w is given to all layers, truncated already
    with torch.no_grad():
        return generator.styles(latents[:, None].expand(-1, generator.num_ws, -1))


def _check_generator(uri: str, generator: Generator) -> None:
    made = read_provenance(uri)
    if made.generator != generator.fingerprint:
        raise SettingsError(
            f"{uri} was made with generator {made.generator[:16]}, this is {generator.fingerprint[:16]}; "
            "give its own"
        )


def _imported(
    kind: str, uri: str, path: Path, generator: Generator, clip_hash: str, parameters: dict[str, str | int]
) -> Provenance:
    # its hash goes into the name, so that another file of this name is another artifact
    source = {"file": file_sha256(path)}
    known = {"imported_from": uri.rsplit("/", 1)[-1], **parameters}
    inputs = source | {"generator": generator.fingerprint, "clip": clip_hash}
    return Recipe(STEP, VERSION, known, inputs, generator.fingerprint, clip_hash).made(kind, source)
