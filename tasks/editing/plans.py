"""One edit over a set of latents: where its rows and images lie, and what a row says of it."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import Provenance, Recipe
from styleclip.tasks.artifacts.outcomes import OutcomeLog, Row
from styleclip.tasks.directions.style_directions import PreparedStep
from styleclip.tasks.editing.assignments import keys_for
from styleclip.tasks.editing.methods import PreparedEdit, units
from styleclip.tasks.editing.schemas import ROW_SCHEMA
from styleclip.tasks.photographs.images import ImageShard
from styleclip.tasks.photographs.inversion import InversionPlan
from styleclip.tasks.photographs.reading import object_of
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.shards import Files
from styleclip.tasks.settings import Saving
from styleclip.tasks.storage import readable_key

STEP, VERSION = "edit-images", "4"


class Chosen(BaseModel):
    """The images that an edit is for, where it is not for all.

    Attributes:
        assignment: URI of the folder that says so, see ``styleclip.tasks.editing.assignments``.
        number: The edit's number there.
        group: What the edits are called together that columns of the data set made of one, at one strength:
            each image has one of them at most, so they are computed and packed together. Empty for others.
    """

    model_config = ConfigDict(frozen=True)

    assignment: str
    number: int
    group: str = ""

    def strength(self, number: int) -> Chosen:
        """Return the same for one of several strengths: an image has all of these."""
        return self.model_copy(update={"group": f"{number}-{self.group}" if self.group else ""})

    def images_of(self, shard: ImageShard) -> frozenset[str]:
        """Return the keys of those in a shard."""
        return keys_for(self.assignment, self.number, shard)


class EditPlan(BaseModel):
    """One edit variant over one set of latents: where its rows and its images lie."""

    model_config = ConfigDict(frozen=True)

    out: str
    folder: str
    recipe: Recipe
    prepared: PreparedEdit
    inversion: InversionPlan
    saving: Saving = Saving()
    chosen: Chosen | None = None

    @property
    def fingerprint(self) -> str:
        """Return the name of the edit's rows."""
        return self.recipe.fingerprint

    @property
    def variant(self) -> str:
        """Return what tells this edit from others of its name, e.g. of other strengths, in every table."""
        return f"{self.prepared.variant.label}_{self.fingerprint[:8]}"

    @property
    def images(self) -> str:
        """Return the folder of the edited images, relative to ``out``."""
        return f"images/{self.variant}"

    @property
    def group(self) -> str:
        """Return what edits are called that columns made of one, and that are shown as one; else empty."""
        return self.chosen.group if self.chosen else ""

    @property
    def together(self) -> str:
        """Return what the edits are called that are computed and packed with this one; else its own name."""
        # what a mapper or a descent does is one network or one text for a batch
        alike = all(step.variant.method == "global" for step in self.prepared.steps)
        return self.group if self.group and alike else self.variant

    def made(self) -> Provenance:
        """Return what the metadata of rows, and of what lies beside them, says."""
        steps = self.prepared.variant.steps
        inputs = {"direction": self.prepared.fingerprint, "latents": self.inversion.fingerprint}
        return self.recipe.made("edits", inputs, units=[units(step) for step in steps])

    def log(self, shard: ImageShard) -> OutcomeLog:
        """Return the attempts at a shard."""
        return OutcomeLog(self.folder, shard.digest, ("image_key",), shard.before, "content_hash")

    def wanted_in(self, shard: ImageShard) -> frozenset[str] | None:
        """Return the images of a shard that the edit is for; None for all."""
        return self.chosen.images_of(shard) if self.chosen else None

    def touches(self, shard: ImageShard) -> bool:
        """Return whether the edit is for an image of a shard."""
        return self.wanted_in(shard) != frozenset()

    def output_key(self, row: Row) -> str:
        """Return where the edited image of a row is written, relative to ``out``, if it gets its own file.

        Where one lies that is written, its row says: names were others once.
        """
        ending, version = self.saving.ending, row["content_hash"]
        return f"{self.images}/{readable_key(row['image_key'], suffix=ending, version=version)}"

    def video_key(self, row: Row, number: int) -> str:
        """Return where the video of an optimization is written, relative to ``out``."""
        name = readable_key(row["image_key"], suffix=".mp4", version=row["content_hash"])
        return f"videos/{self.variant}/step-{number}/{name}"

    def files(self) -> list[Files]:
        """Return what the rows speak of: an image each, and the videos of steps that leave some."""
        videos = [
            Files(self.out, partial(_video, number=number))
            for number, step in enumerate(self.prepared.steps) if step.variant.frames
        ]  # fmt: skip
        return [Files(self.out, _image), *videos]


def _image(row: Row) -> str | None:
    return object_of(row["output_key"]) if row["output_key"] else None


def _video(row: Row, *, number: int) -> str | None:
    steps = row["steps"] or []
    return steps[number]["video"] if number < len(steps) else None


def plan(
    run: Run,
    prepared: PreparedEdit,
    inversion: InversionPlan,
    saving: Saving = Saving(),
    chosen: Chosen | None = None,
) -> EditPlan:
    """Return where the rows and images of an edit lie; nothing is computed."""
    hashes = run.hashes
    inputs = {"direction": prepared.fingerprint, "latents": inversion.fingerprint}

    # judges decide the scores in the rows, so they are part of their name
    judges = {"identity": hashes.identity, "perceptual": hashes.perceptual}
    inputs |= {name: hash_ for name, hash_ in judges.items() if hash_}

    parameters = parameters_of(run, prepared, saving)
    recipe = Recipe(STEP, VERSION, parameters, inputs, hashes.generator, hashes.clip)
    folder = recipe.folder(run.workspace, "edits")
    return EditPlan(
        out=run.out,
        folder=folder,
        recipe=recipe,
        prepared=prepared,
        inversion=inversion,
        saving=saving,
        chosen=chosen,
    )


def parameters_of(run: Run, prepared: PreparedEdit, saving: Saving) -> dict[str, Any]:
    """Return the settings that name an edit's rows and images, as JSON values."""
    # how images are written counts where somebody asks for it, so that other edits keep their names
    asked = {"saving": said} if (said := saving.parameters()) else {}
    return {**prepared.variant.parameters(), "out": run.out, **asked}


def edit_row(planned: EditPlan, image: Row) -> Row:
    """Return a row that says what the edit is, of an image whose row is given.

    Settings are those of its one step, if it has one.
    """
    variant = planned.prepared.variant
    steps = planned.prepared.steps
    return (
        dict.fromkeys(ROW_SCHEMA.names)
        | (step_settings(steps[0]) if len(steps) == 1 else {})
        | {
            "image_key": image["image_key"],
            "content_hash": image["content_hash"],
            "edit": variant.name,
            "variant": planned.variant,
            "neutral": variant.neutral,
            "target": variant.target,
            "method": variant.method,
        }
    )


def step_settings(step: PreparedStep) -> Row:
    """Return the settings of a step, with the unit of its strength."""
    variant = step.variant
    apart = ("neutral", "target", "method")
    settings: dict[str, Any] = {k: v for k, v in variant.parameters().items() if k not in apart}
    settings |= units(variant) | ({"mapper": variant.mapper} if variant.mapper else {})
    settings |= {"reason": variant.reason} if variant.reason else {}
    return {
        "neutral": variant.neutral,
        "target": variant.target,
        "method": variant.method,
        "alpha": variant.alpha,
        "beta": variant.beta,
        "top_k": variant.top_k,
        "strength": variant.strength,
        "channels": step.channels,
        "layers": " ".join(step.layers) or None,
        "settings": json.dumps(settings, sort_keys=True),
    }
