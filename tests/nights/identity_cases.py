"""The inputs that a run can meet replaced: each with the flow that reads it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load, save

from styleclip import data
from styleclip.flows.align_faces import align_faces
from styleclip.flows.build_relevance import build_relevance
from styleclip.flows.edit_images import edit_images
from styleclip.flows.evaluate import evaluate_edits
from styleclip.flows.paste_faces import paste_faces
from styleclip.flows.score_images import score_images
from styleclip.flows.train_mapper import train_mapper
from styleclip.tasks.evaluation.attributes import AttributePrompts
from styleclip.tasks.evaluation.labels import LabelPrompt
from styleclip.tasks.settings import (
    Alignment,
    Comparison,
    Execution,
    FaceSource,
    FeatureInversion,
    Instant,
    Inversion,
    Judges,
    MapperTraining,
    Models,
    PivotalTuning,
    Relevance,
    Sampling,
)
from styleclip.tasks.settings.edits import Edit
from styleclip_core import load_generator
from styleclip_core.mapper_training import MapperTrainingSettings, new_mapper
from styleclip_core.models.mapper import save_mapper
from tests.nights.identity import Case, Hook
from tests.pipeline.test_faces import ONE, photograph
from tests.pipeline.test_flows import encoded, portrait
from tests.small_networks import write_small_judges, write_small_networks

SHARDS = Execution(shard_size=1, device="cpu")
RUN: Hook = ("styleclip.flows.engine", "run")  # the first thing that it runs identifies the networks
INDEX: Hook = ("styleclip.flows.steps.photographs", "index")
INVERT: Hook = ("styleclip.tasks.photographs.inversion", "_invert")
EDIT: Hook = ("styleclip.tasks.editing.shards", "_edit_batch")
KEYS = ["a.png", "b.png", "c.png"]


def scaled(content: bytes) -> bytes:
    """Return other weights of the same architecture: every number a tenth larger."""
    if content[:2] == b"PK":
        held = torch.load(io.BytesIO(content), weights_only=True)
        state, buffer = held.get("state_dict", held), io.BytesIO()
        larger = {name: value * 1.1 if value.is_floating_point() else value for name, value in state.items()}
        torch.save({**held, "state_dict": larger} if "state_dict" in held else larger, buffer)
        return buffer.getvalue()
    return _scaled_safetensors(content)


def _scaled_safetensors(content: bytes) -> bytes:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors = {
        name: (value * 1.1).contiguous() if value.is_floating_point() else value
        for name, value in load(content).items()
    }
    return save(tensors, header.get("__metadata__"))


def other_photograph(_content: bytes) -> bytes:
    return encoded(portrait(99))


def other_scene(_content: bytes) -> bytes:
    return photograph(7, size=(300, 200))


def other_face(_content: bytes) -> bytes:
    return photograph(7, size=(32, 32))


def other_numbers(content: bytes, column: str) -> bytes:
    """Return a table whose numbers in one column, of numbers or vectors, are a tenth larger."""
    table = pq.read_table(io.BytesIO(content))
    values = table[column].combine_chunks()
    vectors = pa.types.is_fixed_size_list(values.type)
    numbers = (values.flatten() if vectors else values).to_numpy() * 1.1
    changed = pa.array(numbers, values.type.value_type if vectors else values.type)
    if vectors:
        changed = pa.FixedSizeListArray.from_arrays(changed, values.type.list_size)
    table = table.set_column(table.column_names.index(column), table.field(column), changed)
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(pq.read_schema(io.BytesIO(content)).metadata), buffer)
    return buffer.getvalue()


def fewer_rows(content: bytes) -> bytes:
    table = pq.read_table(io.BytesIO(content))
    buffer = io.BytesIO()
    pq.write_table(table.slice(0, len(table) - 1), buffer)
    return buffer.getvalue()


def moved_landmarks(content: bytes) -> bytes:
    found = json.loads(content)
    return json.dumps({key: [[x + 5, y] for x, y in points] for key, points in found.items()}).encode()


class Place:
    """A folder with networks, photographs and what the cases begin with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.networks = write_small_networks(folder / "networks") | write_small_judges(folder / "networks")
        for name, make in (("photos", lambda number: encoded(portrait(number))), ("scenes", photograph)):
            (folder / name).mkdir()
            for number, key in enumerate(KEYS):
                (folder / name / key).write_bytes(make(number))
        self.landmarks = folder / "landmarks.json"
        self.landmarks.write_text(json.dumps(dict.fromkeys(KEYS, ONE.tolist())))
        self.detector = folder / "networks" / "detector.safetensors"
        self.detector.write_bytes(Path(data.FACE_DETECTOR).read_bytes())

    def edits(self, **changes: Any) -> dict[str, Any]:
        """Return parameters of an edit whose relevance is taken at once."""
        edit = Edit(
            name="grey", neutral="hair", target="grey hair", relevance="instant", alpha=4.0, templates="none"
        )
        return {
            "models": Models(**self.networks), "photos": str(self.folder / "photos"), "edits": [edit],
            "sampling": Sampling(codes=4, statistics=8), "instant": Instant(codes=4),
            "inversion": Inversion(steps=1), "execution": SHARDS, **changes,
        }  # fmt: skip


def cases(place: Place) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yield the name of every case, and what makes it: some run a flow first."""
    for kind, work in (
        ("generator", EDIT),
        ("clip", EDIT),
        ("encoder", INVERT),
        ("identity", EDIT),
        ("perceptual", EDIT),
    ):
        yield f"edit: {kind}", partial(_edit_network, place, kind, work)
    yield "edit: photograph", partial(_edit_photograph, place)
    for file, column in (("relevance.parquet", "direction"), ("statistics.parquet", "std")):
        yield f"edit: {file}", partial(_edit_table, place, file, column)
    yield "edit: mapper", partial(_edit_mapper, place)
    tuning = Inversion(steps=1, pivotal=PivotalTuning(steps=1))
    residual = Inversion(steps=1, features=FeatureInversion(steps=1, rank=2))
    for name, own in (("tuning", tuning), ("residual", residual)):
        yield f"edit: {name}", partial(_edit_own, place, name, own)
    for kind in ("generator", "clip"):
        yield f"relevance: {kind}", partial(_relevance, place, kind)
    for kind in ("generator", "clip", "identity"):
        yield f"mapper: {kind}", partial(_training, place, kind)
    for kind in ("clip", "identity", "perceptual"):
        yield f"evaluate: {kind}", partial(_evaluate, place, kind)
    for name in ("edited image", "photograph", "manifest"):
        yield f"evaluate: {name}", partial(_evaluate_files, place, name)
    for kind in ("clip", "image"):
        yield f"score: {kind}", partial(_score, place, kind)
    for kind in ("photograph", "landmarks", "detector"):
        yield f"align: {kind}", partial(_align, place, kind)
    for kind in ("table of faces", "edited face", "photograph"):
        yield f"paste: {kind}", partial(_paste, place, kind)


def _edit(
    place: Place,
    name: str,
    file: Path,
    other: Callable[[bytes], bytes],
    named: Hook,
    work: Hook,
    **changes: Any,
) -> Case:
    out = place.folder / f"out-{name.partition('.')[0].replace(' ', '-')}"
    parameters = place.edits(out=str(out), **changes)
    return Case(f"edit: {name}", file, other, edit_images, parameters, out, named, work)


def _edit_network(place: Place, kind: str, work: Hook) -> Case:
    return _edit(place, kind, Path(place.networks[kind]), scaled, RUN, work)


def _edit_photograph(place: Place) -> Case:
    return _edit(place, "photograph", place.folder / "photos" / "b.png", other_photograph, INDEX, INVERT)


def _edit_table(place: Place, file: str, column: str) -> Case:
    folder = place.folder / f"table-for-{file.partition('.')[0]}"
    built = build_relevance(
        Models(**place.networks), str(folder), Sampling(codes=2, statistics=8), Relevance(samples=2), SHARDS
    ).table
    (folder / "given").mkdir()
    for each in (built.relevance, built.statistics):
        (folder / "given" / Path(each).name).write_bytes(Path(each).read_bytes())
    edit = Edit(name="grey", neutral="hair", target="grey hair", beta=0.0, alpha=4.0, templates="none")
    return _edit(
        place, file, folder / "given" / file, partial(other_numbers, column=column),
        ("styleclip.flows.edit_images", "table_for"), EDIT, table=str(folder / "given"), edits=[edit],
    )  # fmt: skip


def _edit_mapper(place: Place) -> Case:
    file = place.folder / "hat.safetensors"
    settings = MapperTrainingSettings(seed=1, levels=("coarse", "medium"))
    save_mapper(new_mapper(load_generator(place.networks["generator"]), settings), file)
    edit = Edit(name="hat", target="hat", method="mapper", mapper=str(file), strength=0.3)
    named = ("styleclip.flows.steps.editing", "prepare_others")
    return _edit(place, "mapper", file, scaled, named, EDIT, edits=[edit])


def _edit_own(place: Place, name: str, settings: Inversion) -> Case:
    case = _edit(place, name, Path(), scaled, INDEX, EDIT, inversion=settings)
    case.flow(**case.parameters)
    (file,) = case.out.rglob("tunings/*b.png*.safetensors")
    found = _edit(place, name, file, scaled, INDEX, EDIT, inversion=settings)
    return replace(found, made=True)


def _relevance(place: Place, kind: str) -> Case:
    out = place.folder / f"relevance-{kind}"
    parameters = {
        "models": Models(**place.networks), "workspace": str(out),
        "sampling": Sampling(codes=2, statistics=8),
        "relevance": Relevance(samples=2, channels_per_shard=8), "execution": SHARDS,
    }  # fmt: skip
    work = ("styleclip.tasks.directions.relevance", "measure_channels")
    return Case(
        f"relevance: {kind}", Path(place.networks[kind]), scaled, build_relevance, parameters, out, RUN, work
    )


def _training(place: Place, kind: str) -> Case:
    out = place.folder / f"mapper-{kind}"
    training = MapperTraining(
        preset="small", steps=2, codes=6, validation=2, validate_every=1, identity_weight=0.1
    )
    parameters = {
        "models": Models(**place.networks), "workspace": str(out), "targets": ["grey hair", "hat"],
        "training": training, "execution": SHARDS,
    }  # fmt: skip
    work = ("styleclip.tasks.editing.mappers", "_training")
    return Case(
        f"mapper: {kind}", Path(place.networks[kind]), scaled, train_mapper, parameters, out, RUN, work
    )


def _edited(place: Place, name: str) -> tuple[Path, str]:
    out = place.folder / f"edited-{name.replace(' ', '-')}"
    return out, edit_images(**place.edits(out=str(out))).report.manifest


def _evaluation(
    place: Place, name: str, manifest: str, file: Path, other: Callable[[bytes], bytes], named: Hook
) -> Case:
    out = place.folder / f"scores-{name.replace(' ', '-')}"
    judges = Judges(**{kind: place.networks[kind] for kind in ("clip", "identity", "perceptual")})
    attributes = [
        AttributePrompts(name="grey", positive="grey hair"),
        AttributePrompts(name="hat", positive="a hat"),
    ]
    parameters = {
        "manifest": manifest, "attributes": attributes, "judges": judges,
        "comparison": Comparison(templates="none", before="photograph"),
        "workspace": str(out), "execution": SHARDS,
    }  # fmt: skip
    work = ("styleclip.tasks.evaluation.shards", "_score")
    return Case(f"evaluate: {name}", file, other, evaluate_edits, parameters, out, named, work)


def _evaluate(place: Place, kind: str) -> Case:
    _, manifest = _edited(place, f"for-{kind}")
    return _evaluation(place, kind, manifest, Path(place.networks[kind]), scaled, RUN)


def _evaluate_files(place: Place, name: str) -> Case:
    out, manifest = _edited(place, f"for-{name}")
    named = ("styleclip.flows.evaluate", "index_edits")
    if name == "manifest":
        return _evaluation(place, name, manifest, Path(manifest), fewer_rows, named)
    if name == "edited image":
        (file,) = (out / "images").rglob("b.png*.png")
        return _evaluation(place, name, manifest, file, lambda _: encoded(portrait(99, (16, 16))), named)
    return _evaluation(place, name, manifest, place.folder / "photos" / "b.png", other_photograph, named)


def _score(place: Place, kind: str) -> Case:
    out = place.folder / f"scores-of-{kind}"
    parameters = {
        "images": str(place.folder / "photos"), "prompts": [LabelPrompt(prompt="a smile", negative="a face")],
        "out": str(out), "clip": place.networks["clip"], "execution": SHARDS,
    }  # fmt: skip
    file = Path(place.networks["clip"]) if kind == "clip" else place.folder / "photos" / "b.png"
    other, named = (scaled, RUN) if kind == "clip" else (other_photograph, INDEX)
    work = ("styleclip.tasks.evaluation.image_scores", "_score")
    return Case(f"score: {kind}", file, other, score_images, parameters, out, named, work)


def _align(place: Place, kind: str) -> Case:
    out = place.folder / f"faces-by-{kind}"
    source = (
        FaceSource(detector=str(place.detector))
        if kind == "detector"
        else FaceSource(landmarks=str(place.landmarks))
    )
    parameters = {
        "source": source, "photos": str(place.folder / "scenes"), "out": str(out),
        "alignment": Alignment(output_size=32), "execution": SHARDS,
    }  # fmt: skip
    file, other = {
        "photograph": (place.folder / "scenes" / "b.png", other_scene),
        "landmarks": (place.landmarks, moved_landmarks),
        "detector": (place.detector, scaled),
    }[kind]
    named = INDEX if kind == "photograph" else ("styleclip.tasks.photographs.faces", "plan")
    work = ("styleclip.tasks.photographs.faces", "_align_photograph")
    return Case(f"align: {kind}", file, other, align_faces, parameters, out, named, work)


def _paste(place: Place, kind: str) -> Case:
    source = place.folder / f"faces-for-{kind.replace(' ', '-')}"
    aligned = align_faces(
        FaceSource(landmarks=str(place.landmarks)), str(place.folder / "scenes"), str(source), "",
        Alignment(output_size=32), SHARDS,
    ).faces  # fmt: skip
    edited = source / "edited"
    edited.mkdir()
    for number, path in enumerate(sorted(Path(aligned.faces).glob("*.png"))):
        (edited / path.name).write_bytes(photograph(20 + number, size=(32, 32)))
    out = place.folder / f"pasted-{kind.replace(' ', '-')}"
    parameters = {"faces": aligned.table, "edited": str(edited), "out": str(out), "execution": SHARDS}
    file, other = {
        "table of faces": (Path(aligned.table), fewer_rows),
        "edited face": (edited / "b.png.face0.png", other_face),
        "photograph": (place.folder / "scenes" / "b.png", other_scene),
    }[kind]
    return Case(
        f"paste: {kind}", file, other, paste_faces, parameters, out,
        ("styleclip.tasks.photographs.pasting", "plan"), ("styleclip.tasks.photographs.pasting", "_paste"),
    )  # fmt: skip
