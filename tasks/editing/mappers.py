"""Latent mappers: trained for a prompt in storable strides, and applied as an edit."""

from __future__ import annotations

import base64
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image, ImageDraw
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from styleclip.tasks.artifacts import (
    Recipe,
    fingerprint,
    is_complete,
    read_provenance,
    read_table,
    to_matrix,
    write_table,
)
from styleclip.tasks.artifacts.outcomes import OK
from styleclip.tasks.directions.matching import SeenCodes
from styleclip.tasks.directions.matching import plan as plan_looking
from styleclip.tasks.directions.relevant import compute_channels, plan_channels, read_channels
from styleclip.tasks.directions.style_directions import PreparedStep
from styleclip.tasks.running import networks as models
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.networks import Wanted
from styleclip.tasks.running.overlap import computing
from styleclip.tasks.running.rates import Spent, device_name
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.shown import code
from styleclip.tasks.running.texts import prompt_distance, target_embedding
from styleclip.tasks.running.together import each_of
from styleclip.tasks.settings import MapperTraining as Settings
from styleclip.tasks.settings import Sampling, SettingsError
from styleclip.tasks.settings.edits import StepVariant
from styleclip.tasks.storage import exists, join, list_objects, read_bytes, write_bytes_atomic
from styleclip_core.editing import EditedLatents
from styleclip_core.mapper_training import CURVE_COLUMNS, MapperTraining, apply_mapper, stored_step
from styleclip_core.models.mapper import PUBLISHED_STRENGTH, Mapper, save_mapper
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.optimization import published_embedding
from styleclip_core.sampling import sample_z

STEP, VERSION = "train-mapper", "1"
STRENGTH_UNIT = "times the mapper's output, in units of the latent"
_APPLY, _APPLY_VERSION = "apply-mapper", "1"


class MapperPlan(BaseModel):
    """One training: what decides it and where its files lie."""

    model_config = ConfigDict(frozen=True)

    target: str
    folder: str
    recipe: Recipe
    settings: Settings
    seen: SeenCodes | None = None

    @property
    def state(self) -> str:
        """Return where the training is stored between strides."""
        return join(self.folder, "training.safetensors")

    @property
    def curve(self) -> str:
        """Return where the losses lie; they are written last, when the networks are there."""
        return join(self.folder, "curve.parquet")


class MapperRef(BaseModel):
    """A trained mapper."""

    model_config = ConfigDict(frozen=True)

    target: str
    best: str
    last: str
    curve: str
    fingerprint: str
    steps: int
    loss: float
    reused: bool
    spent: tuple[Spent, ...] = ()


def plan(run: Run, target: str, settings: Settings) -> MapperPlan:
    """Return where the mapper of a prompt and these settings lies; nothing is computed."""
    hashes = run.hashes
    inputs = {"generator": hashes.generator, "clip": hashes.clip}
    if settings.settings().identity_weight > 0:
        inputs["identity"] = hashes.identity

    # what CLIP looks at is what edits by default look at, so that one look does for both
    seen = plan_looking(run, Sampling()) if settings.settings().kind == "style-relevant" else None
    inputs |= {"seen": seen.fingerprint} if seen else {}

    parameters = {"target": target, **settings.parameters()}
    recipe = Recipe(STEP, VERSION, parameters, inputs, hashes.generator, hashes.clip)
    folder = recipe.folder(run.workspace, "mappers")
    return MapperPlan(target=target, folder=folder, recipe=recipe, settings=settings, seen=seen)


@unit_of_work("check-targets")
def check_targets(run: Run, targets: list[str], settings: Settings) -> int:
    """Fail at once if CLIP cannot read a prompt, or cannot tell it from the neutral one; count the prompts.

    Raises:
        StyleCLIPError: If some cannot work; it names each.
    """
    templates = settings.chosen_templates

    def check(target: str) -> object:
        # called for what it raises, as a training takes hours and the next prompt would end the run after it
        if settings.settings().needs_neutral:
            prompts = StepVariant(neutral=settings.neutral, target=target, templates=templates)
            return prompt_distance(run, prompts)
        return target_embedding(run, target, templates)

    return len(each_of(targets, "mapper of {!r}".format, check))


@unit_of_work("train-mapper", "train-{planned.target}")
def train_mapper(run: Run, planned: MapperPlan) -> MapperRef:
    """Train the mapper of one prompt, from where an earlier run was stopped if there was one."""
    best, last = (join(planned.folder, name) for name in ("best.safetensors", "last.safetensors"))
    curve = planned.curve

    done, spent = is_complete(curve), list[Spent]()
    if not done:
        training = _training(run, planned)
        if exists(planned.state):
            training.restore(read_bytes(planned.state))
            get_run_logger().info("%s: resumed at step %d", planned.target, training.step)

        with computing(run.device):
            spent += _train(run, planned, training)

        # before the curve, which says that they are there
        for uri, mapper in ((best, training.best), (last, training.mapper)):
            write_bytes_atomic(uri, _mapper_bytes(mapper))

        inputs = {**planned.recipe.inputs, "identity": run.hashes.identity}
        made = planned.recipe.made("mapper", inputs, strength_unit=STRENGTH_UNIT)
        write_table(curve, _curve_table(training.curve), made)
        _show_curve(planned, training.curve)

    # a mapper's file does not say it, and edits take the published one if nothing is said
    if (strength := planned.settings.settings().strength) != PUBLISHED_STRENGTH:
        said = "%s: trained at strength %g; give edits by it the same, their default is %g"
        get_run_logger().warning(said, planned.target, strength, PUBLISHED_STRENGTH)

    rows = read_table(curve)
    losses = rows.filter(rows["validation"])["loss"]
    return MapperRef(
        target=planned.target,
        best=best,
        last=last,
        curve=curve,
        fingerprint=planned.recipe.fingerprint,
        steps=pc.max(rows["step"]).as_py(),
        loss=pc.min(losses).as_py(),
        reused=done,
        spent=tuple(spent),
    )


def steps_done(planned: MapperPlan) -> int:
    """Return how many steps of a training are done: all, those that are stored, or none."""
    if is_complete(planned.curve):
        return planned.settings.settings().steps
    return stored_step(read_bytes(planned.state)) if exists(planned.state) else 0


def work(run: Run, settings: Settings, kind: str, units: int, seconds: float = 0.0) -> Spent:
    """Return training as it is measured and estimated: per step, or per code of a validation."""
    wanted = settings.settings()
    about = f"{wanted.kind} {wanted.precision}" + (" identity" if wanted.identity_weight > 0 else "")
    return Spent(
        kind=kind, about=about if kind == "validate" else f"{about} x {wanted.batch_size}",
        device=device_name(run.device), resolution=run.generator.image_size[0], units=units, seconds=seconds,
    )  # fmt: skip


def _train(run: Run, planned: MapperPlan, training: MapperTraining) -> list[Spent]:
    """Do the steps that are left, and return what they took and what their validations took."""
    total = planned.settings.settings().steps
    artifact: UUID = create_progress_artifact(  # type: ignore[assignment]
        progress=100.0 * training.step / total, key="train-mapper", description=planned.target
    )

    alone, validating, begun = list[float](), list[float](), time.monotonic()
    for state in training.run():
        if state.validation is None:
            alone.append(time.monotonic() - begun)
            begun = time.monotonic()
            continue

        # with every validation, so that a run that is stopped loses the steps since then only
        write_bytes_atomic(planned.state, training.to_bytes())
        get_run_logger().info(
            "%s: step %d of %d, validation loss %.4f (CLIP %.4f, identity %.4f, L2 %.4f), best %.4f",
            planned.target, state.step, total, state.validation.total, state.validation.clip,
            state.validation.identity, state.validation.l2, state.best,
        )  # fmt: skip
        update_progress_artifact(artifact, progress=100.0 * state.step / total)
        validating.append(time.monotonic() - begun)
        begun = time.monotonic()

    # a step that ends with a validation took as long as the others, and the rest is the validation
    step = sum(alone) / len(alone) if alone else 0.0
    steps, rest = len(alone) + len(validating), sum(max(0.0, each - step) for each in validating)
    codes = len(validating) * planned.settings.validation
    spent = [work(run, planned.settings, "train", steps, step * steps)] if alone else []
    return spent + ([work(run, planned.settings, "validate", codes, rest)] if alone and codes else [])


def looked_at_first(planned: Sequence[MapperPlan]) -> SeenCodes | None:
    """Return the codes that CLIP looks at once before mappers are trained; None if none of these needs it."""
    waiting = (each for each in planned if each.seen and not is_complete(each.curve))
    return next((each.seen for each in waiting), None)


def _training(run: Run, planned: MapperPlan) -> MapperTraining:
    settings = planned.settings
    codes = _codes(run.generator, settings)
    if settings.validation >= len(codes):
        raise SettingsError(
            f"there are {len(codes)} codes, {settings.validation} of them for validation; none is left to "
            "train on: give more latents or a smaller validation"
        )

    wanted, templates = settings.settings(), settings.chosen_templates
    weighted, neutral, channels = wanted.identity_weight > 0, None, None
    if wanted.needs_neutral:
        neutral = target_embedding(run, settings.neutral, templates)
    if planned.seen:
        prompts = StepVariant(neutral=settings.neutral, target=planned.target, templates=templates)
        name = plan_channels(run, prompts, planned.seen).fingerprint
        channels = read_channels(compute_channels.fn(run, prompts, planned.seen), name)

    return MapperTraining(
        run.generator,
        published_embedding(run.clip) if wanted.reference_compat else run.clip.embed_whole,
        target_embedding(run, planned.target, templates),
        codes[: -settings.validation],
        codes[-settings.validation :],
        wanted,
        embed_identity=run.identity.embed if run.identity and weighted else None,
        neutral=neutral,
        scale=run.clip.logit_scale,
        channels=channels,
    )


@torch.no_grad()
def _codes(generator: Generator, settings: Settings) -> Tensor:
    """Return the w_plus to train on: stored latents, or sampled ones."""
    if not settings.latents:
        ids = range(settings.codes)
        z = torch.cat([sample_z(settings.settings().seed, ids[i : i + 500], generator.config.z_dim)
                       for i in range(0, len(ids), 500)])  # fmt: skip
        return generator.map(z.to(generator.device), truncation_psi=settings.truncation_psi)

    found: dict[str, np.ndarray] = {}
    for item in list_objects(settings.latents, (".parquet",)):
        if ".attempt-" not in item.key:
            continue

        uri = join(settings.latents, item.key)
        made = read_provenance(uri)
        if made.generator != generator.fingerprint:
            raise SettingsError(
                f"{uri} was made with generator {made.generator[:16]}, this run uses "
                f"{generator.fingerprint[:16]}; give latents of this generator"
            )

        rows = read_table(uri, columns=["image_key", "w_plus", "status"])
        rows = rows.filter(pc.equal(rows["status"], OK))
        if len(rows):
            # attempts come in their order, so the last latent of an image is the one that stays
            found |= dict(zip(rows["image_key"].to_pylist(), to_matrix(rows, "w_plus"), strict=True))

    if not found:
        raise SettingsError(
            f"no latents under {settings.latents}; give the folder that `styleclip invert` names"
        )

    # by key, so that what is kept for validation does not depend on shards
    flat = np.stack([found[key] for key in sorted(found)])
    return torch.from_numpy(flat).view(len(flat), generator.num_ws, -1).to(generator.device)


def _mapper_bytes(mapper: Mapper) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mapper.safetensors"
        save_mapper(mapper, path)
        return path.read_bytes()


def _curve_table(curve: list[tuple[float, ...]]) -> pa.Table:
    columns = dict(zip(CURVE_COLUMNS, zip(*curve, strict=True), strict=True))
    return pa.table({
        "step": pa.array([int(step) for step in columns["step"]], pa.int64()),
        "validation": pa.array([bool(flag) for flag in columns["validation"]]),
        **{name: pa.array(columns[name], pa.float64()) for name in CURVE_COLUMNS[2:]},
    })  # fmt: skip


def _show_curve(planned: MapperPlan, curve: list[tuple[float, ...]]) -> None:
    """Draw the loss of training and validation into Prefect's UI."""
    width, height, margin = 640, 240, 12
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    low, high = min(row[5] for row in curve), max(row[5] for row in curve)
    last = max(row[0] for row in curve)

    def place(row: tuple[float, ...]) -> tuple[float, float]:
        down = (high - row[5]) / max(high - low, 1e-9)
        return margin + (width - 2 * margin) * row[0] / last, margin + (height - 2 * margin) * down

    for validation, colour in ((0.0, "#9bb"), (1.0, "#c30")):
        points = [place(row) for row in curve if row[1] == validation]
        if len(points) > 1:
            pen.line(points, fill=colour, width=2)

    pen.text((margin, 0), f"loss {high:.3f} (top) to {low:.3f}, {last:.0f} steps", fill="black")

    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    create_markdown_artifact(
        f"{code(planned.target)}: training (grey) and validation (red)\n\n"
        f"![loss](data:image/png;base64,{picture})",
        key="train-mapper-loss",
        description=f"loss of the mapper {code(planned.target)}",
    )


# ---- applying ------------------------------------------------------------------------------------------


@unit_of_work("prepare-mapper", "prepare-{variant.label}")
def prepare_mapper(run: Run, variant: StepVariant) -> PreparedStep:
    """Load the mapper once, so that a wrong one fails here, and name it by its content."""
    if variant.mapper is None:
        raise SettingsError(f"the edit towards {variant.target!r} names no mapper")
    network, generator = (
        cast(Mapper, models.current(Wanted("mapper", variant.mapper, run.device))),
        run.generator,
    )

    # tried out, as no setting says which channels a network changes
    with torch.no_grad():
        probe = EditedLatents(_probe(generator))
        moved = apply_mapper(network, generator, probe, 1.0).codes(generator)  # raises if of another one
        before = probe.codes(generator)
    changed = {name: int((moved[name] != before[name]).any(dim=0).sum()) for name in before}

    inputs = {"mapper": network.fingerprint, "generator": run.hashes.generator, "clip": run.hashes.clip}
    return PreparedStep(
        variant=variant,
        uri=variant.mapper,
        fingerprint=fingerprint(_APPLY, _APPLY_VERSION, {"strength": variant.strength}, inputs),
        content=network.fingerprint,
        channels=sum(changed.values()),
        layers=[name for name, channels in changed.items() if channels],
        text_norm=prompt_distance(run, variant),
    )


def prepared_mapper(run: Run, step: PreparedStep) -> Mapper:
    """Return the mapper of a step.

    Raises:
        ChangedWeightsError: If it is not the one any more that the step was prepared with.
    """
    return cast(Mapper, models.load(Wanted("mapper", step.uri, run.device, step.content)))


def _probe(generator: Generator) -> Tensor:
    """Return a few w_plus, the same ones always, to see what a mapper changes at all."""
    draw = torch.Generator().manual_seed(0)
    shape = (4, generator.num_ws, generator.config.w_dim)
    return torch.randn(shape, generator=draw).to(generator.device)
