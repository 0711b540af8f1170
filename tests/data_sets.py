"""Data sets of every form, made by the packages that people make them with."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd


def captions(images: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Return what each image is said to show: a caption, a number, a truth."""
    return {
        key: {"caption": f"a face with hat {number}", "age": 20 + number, "glasses": number % 2 == 0}
        for number, key in enumerate(sorted(images))
    }


def write_folder(folder: Path, images: Mapping[str, bytes], metadata: str = "") -> None:
    """Write loose files, with what is known of them as ``datasets``' imagefolder has it."""
    for key, content in images.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if metadata:
        table = _table(images, "file_name")
        path = folder / f"metadata.{metadata}"
        if metadata == "csv":
            table.to_csv(path, index=False)
        elif metadata == "jsonl":
            table.to_json(path, orient="records", lines=True)
        else:
            table.to_parquet(path, index=False)


def _table(images: Mapping[str, bytes], column: str, names: Mapping[str, str] | None = None) -> pd.DataFrame:
    said = captions(images)
    return pd.DataFrame([{column: (names or {}).get(key, key), **said[key]} for key in sorted(images)])


def write_list(path: Path, images: Mapping[str, bytes], names: Mapping[str, str] | None = None) -> None:
    """Write a list of keys, or of other names, in the form that its ending says."""
    table = _table(images, "image_key", names)
    ending = path.suffix
    if ending in (".csv", ".tsv"):
        table.to_csv(path, index=False, sep="," if ending == ".csv" else "\t")
    elif ending == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    elif ending == ".parquet":
        table.to_parquet(path, index=False)
    else:
        path.write_text("".join(f"{name}\n" for name in table.image_key))


def write_tars(folder: Path, images: Mapping[str, bytes], each: int) -> None:
    """Write tar shards with webdataset: an image, its caption and a JSON for each sample."""
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    said, keys = captions(images), sorted(images)
    for number, first in enumerate(range(0, len(keys), each)):
        with webdataset.TarWriter(str(folder / f"{number:05d}.tar")) as writer:
            for key in keys[first : first + each]:
                stem, _, ending = key.rpartition(".")
                writer.write(
                    {
                        "__key__": stem.replace("/", "-"), ending: images[key],
                        "txt": said[key]["caption"], "json": said[key],
                    }
                )  # fmt: skip


def write_img2dataset(folder: Path, images: Mapping[str, bytes], each: int) -> None:
    """Write what img2dataset leaves: shards and samples by number, a table and statistics beside each."""
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    said, keys = captions(images), sorted(images)
    for number, first in enumerate(range(0, len(keys), each)):
        rows = []
        with webdataset.TarWriter(str(folder / f"{number:05d}.tar")) as writer:
            for place, key in enumerate(keys[first : first + each]):
                name = f"{number:05d}{place:04d}"
                row = {
                    "url": f"https://example.org/{key}", "key": name, "status": "success",
                    "error_message": None, "width": 20, "height": 20, "sha256": "0", **said[key],
                }  # fmt: skip
                rows.append(row)
                writer.write({"__key__": name, "jpg": images[key], "txt": row["caption"], "json": row})
        pd.DataFrame(rows).to_parquet(folder / f"{number:05d}.parquet")
        (folder / f"{number:05d}_stats.json").write_text(json.dumps({"count": len(rows)}))


def write_hugging_face(folder: Path, images: Mapping[str, bytes], each: int) -> None:
    """Write Parquet as ``datasets`` does: ``image: struct<bytes, path>``."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    said, keys = captions(images), sorted(images)
    for number, first in enumerate(range(0, len(keys), each)):
        mine = keys[first : first + each]
        columns = {"image": [{"bytes": images[key], "path": Path(key).name} for key in mine]}
        columns |= {name: [said[key][name] for key in mine] for name in ("caption", "age", "glasses")}
        features = datasets.Features(
            image=datasets.Image(), caption=datasets.Value("string"), age=datasets.Value("int64"),
            glasses=datasets.Value("bool"),
        )  # fmt: skip
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(folder / f"train-{number:05d}.parquet", batch_size=3)


def write_binary(path: Path, images: Mapping[str, bytes], row_group: int = 4) -> None:
    """Write Parquet with a plain column of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = _table(images, "name").assign(content=[images[key] for key in sorted(images)])
    table.to_parquet(path, index=False, row_group_size=row_group)


def upload(folder: Path, uri: str) -> None:
    """Copy a folder to a store."""
    from styleclip.tasks.storage import join, write_bytes_atomic

    for path in folder.rglob("*"):
        if path.is_file():
            write_bytes_atomic(join(uri, str(path.relative_to(folder))), path.read_bytes())


def as_frame(content: bytes) -> pd.DataFrame:
    """Return a Parquet file as a frame."""
    return pd.read_parquet(io.BytesIO(content))
