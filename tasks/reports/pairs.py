"""A batch of edits -> pairs for training: before, instruction, after, with all that is known of each.

    OUT/<name>/train-00000-of-00002.parquet    or .tar, as webdataset has it
    OUT/<name>/validation-00000-of-00001.parquet
    OUT/<name>/README.md                       the data card, by which ``datasets`` finds the files

The columns are those of diffusers' InstructPix2Pix trainer. Which pairs there are is one question to the
manifest; each file is then a unit of work of its own, complete or absent, and made of the same pictures byte
for byte. A picture that is gone ends its file: a set that lacked some of what its card counts would be none.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import (
    Provenance,
    Recipe,
    is_complete,
    read_provenance,
    read_table,
    write_table,
)
from styleclip.tasks.artifacts.tables import portions
from styleclip.tasks.photographs.datasets.database import connected, keep_where
from styleclip.tasks.photographs.datasets.subsets import is_drawn
from styleclip.tasks.photographs.reading import read_image, read_stored
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import read_ahead
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import SettingsError
from styleclip.tasks.settings.by_image import columns_in, put_in
from styleclip.tasks.settings.pairs import Pairing
from styleclip.tasks.storage import ChangedObjectError, copy_to_local, join, read_item, write_bytes_atomic
from styleclip_core.errors import ArtifactConflictError, StyleCLIPError
from styleclip_core.images import decode_image, encode_photograph, is_plain

STEP, VERSION = "export-pairs", "1"
IMAGES, PROMPT = ("input_image", "edited_image"), "edit_prompt"
SPLITS = ("train", "validation")
_LEFT_OUT = ("steps", "status", "error_type", "error")  # that say nothing of a pair that went well
_AHEAD, _ROWS = 32, 8192


class NoPairsError(StyleCLIPError):
    """No edit of a batch becomes a pair."""


class PairsFile(BaseModel):
    """One file of a set.

    Attributes:
        name: Its name, without the ending.
        rows: URI of the table of its pairs, without their pictures.
        pairs: How many there are.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    rows: str
    pairs: int


class PairsPlan(BaseModel):
    """A set of pairs: where it will lie, of what, in which files.

    Attributes:
        folder: URI of its folder.
        out: What the manifest's output keys are relative to.
        photos: URI of the data set of the photographs.
        drawn: URI of the folder of latents, below which lies what the generator drew of each.
        made: What made the manifest.
        considered: Edits of the batch that went well.
    """

    model_config = ConfigDict(frozen=True)

    folder: str
    out: str
    photos: str
    drawn: str
    recipe: Recipe
    made: Provenance
    settings: Pairing
    files: list[PairsFile]
    considered: int

    @property
    def pairs(self) -> int:
        """Return the number of pairs."""
        return sum(each.pairs for each in self.files)

    def uri(self, file: PairsFile) -> str:
        """Return where a file lies."""
        return join(self.folder, f"{file.name}.{'parquet' if self.settings.to == 'parquet' else 'tar'}")


@unit_of_work("plan-pairs")
def plan_pairs(run: Run, manifest: str, out: str, settings: Pairing) -> PairsPlan:
    """Ask a manifest for the pairs and cut them into files.

    Raises:
        ArtifactConflictError: If it is no manifest of edits, or the evaluation is of another one.
        NoPairsError: If the condition leaves none.
        SettingsError: If the condition, or an instruction, names a column that there is not.
        StorageError: If a table cannot be read.
    """
    made = read_provenance(manifest, large=True)
    if made.kind != "edits-manifest":
        raise ArtifactConflictError(f"{manifest} is a table of {made.kind}; give a manifest of edits")

    inputs = {"manifest": made.fingerprint}
    if settings.evaluation:
        inputs["evaluation"] = _evaluation_of(settings.evaluation, manifest, made)
    decided = settings.model_dump(exclude={"evaluation"})
    recipe = Recipe(STEP, VERSION, decided | {"out": run.out}, inputs, made.generator, made.clip)

    # asked on this machine's disk: a manifest may be larger than memory
    rows = recipe.folder(run.workspace, "pairs")
    with TemporaryDirectory(prefix="styleclip-pairs-") as folder, closing(connected(folder)) as database:
        considered = _load(database, Path(folder), manifest, settings)
        keep_where(database, "SELECT * FROM edits", settings.where or "true", "chosen", of=manifest)
        files = list(_cut(database, rows, recipe, settings))

    if not files:
        raise NoPairsError(
            f"none of the {considered} edits of {manifest} becomes a pair: "
            f"where {settings.where!r} leaves none"
        )
    photos, latents = (str(made.parameters.get(name, "")) for name in ("photos", "latents"))
    return PairsPlan(
        folder=join(run.out, f"pairs-{recipe.fingerprint[:16]}"), out=out, photos=photos,
        drawn=latents.rpartition("/")[0],
        recipe=recipe, made=made, settings=settings, files=files, considered=considered,
    )  # fmt: skip


def _evaluation_of(uri: str, manifest: str, made: Provenance) -> str:
    """Return the fingerprint of an evaluation of a manifest."""
    found = read_provenance(uri, large=True)
    if found.inputs.get("manifest") != made.fingerprint:
        raise ArtifactConflictError(f"{uri} is no evaluation of {manifest}; evaluate that, or leave it out")
    return found.fingerprint


def _load(database: duckdb.DuckDBPyConnection, folder: Path, manifest: str, settings: Pairing) -> int:
    """Read the edits that went well into a table ``edits``; returns how many there are."""
    copy_to_local(manifest, folder / "manifest.parquet")
    left_out = ", ".join(_LEFT_OUT)
    names = _names(database, folder / "manifest.parquet")
    if "inversion_key" not in names:
        raise ArtifactConflictError(
            f"{manifest} does not say which images it is of; edit again, which finds them"
        )

    join_on, more = "", ""
    if settings.evaluation:
        copy_to_local(settings.evaluation, folder / "evaluation.parquet")
        # both say what an edit is and how CLIP finds it, by other judges
        theirs = [name for name in _names(database, folder / "evaluation.parquet") if name not in _LEFT_OUT]
        picked = (
            f'evaluated."{name}" AS "{f"evaluation_{name}" if name in names else name}"'
            for name in theirs
            if name not in ("image_key", "variant", "attributes")
        )
        more = ", " + ", ".join(picked)
        join_on = (
            f"LEFT JOIN read_parquet('{folder}/evaluation.parquet') AS evaluated "
            "ON edited.image_key = evaluated.image_key AND edited.variant = evaluated.variant"
        )
    database.execute(
        f"CREATE TABLE edits AS SELECT edited.* EXCLUDE ({left_out}){more} "
        f"FROM read_parquet('{folder}/manifest.parquet') AS edited {join_on} WHERE edited.status = 'ok'"
    )
    (count,) = database.execute("SELECT count(*) FROM edits").fetchone() or (0,)
    return int(count)


def _names(database: duckdb.DuckDBPyConnection, path: Path) -> list[str]:
    found = database.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(path)]).fetchall()
    return [str(row[0]) for row in found]


def _cut(
    database: duckdb.DuckDBPyConnection, folder: str, recipe: Recipe, settings: Pairing
) -> Iterator[PairsFile]:
    """Write down which pairs each file has; yields the files, those for training first."""
    keys = [str(row[0]) for row in database.execute("SELECT DISTINCT image_key FROM chosen").fetchall()]
    # by the photograph, so that none is in both splits
    held = [key for key in keys if is_drawn(key, settings.validation, "split")]
    database.register("held", pa.table({"image_key": pa.array(held, pa.string())}))

    for split in SPLITS:
        inside = "IN" if split == "validation" else "NOT IN"
        mine = f"FROM chosen WHERE image_key {inside} (SELECT image_key FROM held)"
        ((count,),) = database.execute(f"SELECT count(*) {mine}").fetchall()
        files = -(-int(count) // settings.pairs_per_file)

        # a file's rows are in memory at a time: all of them may be more than that holds
        ordered = f"SELECT * {mine} ORDER BY encode(image_key), encode(variant)"
        found = database.sql(ordered).to_arrow_reader(_ROWS)
        batches = (pa.Table.from_batches([batch]) for batch in found)
        for number, table in enumerate(portions(found.schema, batches, settings.pairs_per_file)):
            name = f"{split}-{number:05d}-of-{files:05d}"
            uri = join(folder, f"{name}.parquet")
            write_table(uri, _with_prompts(table, settings), recipe.made("pairs-rows"))
            yield PairsFile(name=name, rows=uri, pairs=len(table))


def _with_prompts(table: pa.Table, settings: Pairing) -> pa.Table:
    """Return pairs with their instructions."""
    prompts = [_instruction(row, settings.instruction) for row in table.to_pylist()]
    return table.add_column(0, PROMPT, pa.array(prompts, pa.string()))


def _instruction(row: dict[str, Any], choices: Sequence[str]) -> str:
    """Return what a pair is to be told; of several instructions always the same one.

    Raises:
        SettingsError: If it names a column that there is not.
    """
    digest = hashlib.sha256(f"{row['image_key']}\0{row['variant']}".encode()).digest()
    text = choices[int.from_bytes(digest[:4], "big") % len(choices)]
    missing = [name for name in columns_in(text) if name not in row]
    if missing:
        raise SettingsError(f"instruction {text!r} names {missing[0]!r}; there are {', '.join(row)}")
    return put_in(text, row)


@unit_of_work("write-pairs", "write-pairs-{file.name}")
def write_pairs(run: Run, planned: PairsPlan, file: PairsFile) -> ShardResult:
    """Write one file of a set, with edits and inversions byte for byte as they lie in the batch.

    Raises:
        ChangedObjectError: If a photograph is not the one any more that was edited.
        StorageError: If a picture is missing or cannot be read.
    """
    uri = planned.uri(file)
    result = partial(ShardResult, uri=uri, rows=file.pairs, failed=0, seconds=0.0)
    if is_complete(uri):
        return result(reused=True)

    rows = read_table(file.rows)
    pictures = read_ahead(rows.to_pylist(), partial(pictures_of, planned), ahead=_AHEAD)
    if planned.settings.to == "parquet":
        content = _parquet(rows, pictures)
    else:
        content = _tar(file.name.split("-")[1], rows, pictures)
    write_bytes_atomic(uri, content)
    return result(reused=False)


def pictures_of(planned: PairsPlan, row: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return the picture before and the one after an edit.

    A photograph is handed on as it lies there, if whoever trains will see in it what the edit began from:
    most readers turn by EXIF or do not, and none follows colour profiles. Else it is drawn anew, as PNG. So
    it is in tars, whose members' endings are columns: those of all samples have to be the same.
    """
    after = read_stored(planned.out, row["output_key"])
    if planned.settings.before == "inversion":
        return read_item(planned.drawn, row["inversion_key"]), after

    before = read_image(planned.photos, row["image_key"], row.get("place"))
    if hashlib.sha256(before).hexdigest() != row["content_hash"]:
        raise ChangedObjectError(
            f"{row['image_key']} is not the photograph any more that was edited; edit it again, or pair with "
            "inversions"
        )
    seen, may_stay = decode_image(before), planned.settings.to == "parquet" or ending(before) == "png"
    if not (may_stay and is_plain(before, seen)):
        before = encode_photograph(seen, colours_of=None)
    return before, after


def _parquet(rows: pa.Table, pictures: Iterator[tuple[bytes, bytes]]) -> bytes:
    """Return pairs as Parquet, with pictures as ``datasets`` keeps them."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: list[list[dict[str, Any]]] = [[], []]
    for key, pair in zip(rows["image_key"].to_pylist(), pictures, strict=True):
        for column, content in zip(columns, pair, strict=True):
            column.append({"bytes": content, "path": _name(key, content)})

    for place, (name, values) in enumerate(zip(IMAGES, columns, strict=True)):
        rows = rows.add_column(place * 2, name, pa.array(values, kind))
    # else they would be structs of bytes and a name to it
    features = {"info": {"features": {name: {"_type": "Image"} for name in IMAGES}}}
    rows = rows.replace_schema_metadata({"huggingface": json.dumps(features, sort_keys=True)})
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd", row_group_size=100, write_page_checksum=True)
    return buffer.getvalue()


def _tar(number: str, rows: pa.Table, pictures: Iterator[tuple[bytes, bytes]]) -> bytes:
    """Return pairs as an archive: two pictures, the instruction, and a JSON of all columns for each."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for place, (row, pair) in enumerate(zip(rows.to_pylist(), pictures, strict=True)):
            text = json.dumps(row, sort_keys=True, default=str, ensure_ascii=False)
            members = {
                f"{name}.{ending(content)}": content for name, content in zip(IMAGES, pair, strict=True)
            }
            members |= {f"{PROMPT}.txt": row[PROMPT].encode(), "json": text.encode()}
            for name, content in members.items():
                # a file's times and owner would be another one's bytes
                info = tarfile.TarInfo(f"{number}{place:06d}.{name}")
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _name(key: str, content: bytes) -> str:
    return f"{key.rpartition('/')[2].rpartition('.')[0] or 'image'}.{ending(content)}"


def ending(content: bytes) -> str:
    """Return what a picture is, by its first bytes."""
    if content.startswith(b"\x89PNG"):
        return "png"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "webp"
    return "avif" if content[4:12] == b"ftypavif" else "jpg"
