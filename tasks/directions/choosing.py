"""Edits whose alpha or beta is auto -> numbers, the reason for them, and the trade-off behind them.

The choice is made on inverted photographs of the run, or on sampled style codes where there are none. It is
an artifact of its own: every pair that was tried is a row, and what was chosen is in the file's metadata.
The photographs are those whose keys come first in the order of their hashes, so that one more photograph
seldom changes a choice; whoever wants it never to change keeps the chosen edit file.
"""

from __future__ import annotations

import hashlib
import math
from functools import partial

import pyarrow as pa
import torch
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from styleclip.tasks.artifacts import Recipe, is_complete, read_provenance, write_table
from styleclip.tasks.artifacts.outcomes import OK, Row
from styleclip.tasks.directions.instant import measure_instant
from styleclip.tasks.directions.matching import FURTHER_VERSION, SeenCodes, read_seen
from styleclip.tasks.directions.relevance import read_relevance
from styleclip.tasks.directions.sampling import SampledStyles, read_codes
from styleclip.tasks.directions.style_directions import (
    ALPHA_UNIT,
    MATCHED_UNIT,
    TableRef,
    check_table,
    read_deviations,
)
from styleclip.tasks.photographs.images import ImageShard
from styleclip.tasks.photographs.inversion import InversionPlan, latents_of, read_tuning
from styleclip.tasks.photographs.own import with_tunings
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import computing
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import Choosing, Instant
from styleclip.tasks.settings.edits import EditStep
from styleclip.tasks.storage import join
from styleclip_core.choosing import Choice, ChoosingSettings, Direct, choose, measure_on
from styleclip_core.editing import (
    ChannelSelection,
    StyleDirection,
    Weights,
    select_channels,
    style_direction,
)
from styleclip_core.errors import StyleCLIPError
from styleclip_core.matching import at, choose_matched, derivative_direction, matched_direction
from styleclip_core.prompts import TextDirection, text_direction
from styleclip_core.style_space import StyleCode
from styleclip_core.tuned import AnyGenerator

STEP, VERSION = "choose-strength", "2"
_ALL = ChannelSelection(beta=0.0)
_DECIDES = {"neutral", "target", "alpha", "beta", "top_k", "include", "exclude", "relevance"}


class NothingToChooseOnError(StyleCLIPError):
    """There is no photograph with a latent to choose alpha and beta on."""


class ChoicePlan(BaseModel):
    """What a choice depends on, beside the run and the edit.

    Attributes:
        settings: What is wanted, and how thoroughly it is sought.
        instant: How relevance is taken from gradients, for edits that ask for it.
        table: The relevance table and its statistics, if there is one.
        styles: Sampled style codes and their statistics, if there are any.
        inversion: Where the latents of the run's photographs lie; None to choose on sampled codes.
        shards: The photographs.
        seen: Sampled codes that CLIP has looked at, for edits with matched relevance.
    """

    model_config = ConfigDict(frozen=True)

    settings: Choosing
    instant: Instant
    table: TableRef | None = None
    styles: SampledStyles | None = None
    inversion: InversionPlan | None = None
    shards: list[ImageShard] = []
    seen: SeenCodes | None = None

    @property
    def statistics(self) -> str:
        """Return where the deviations of the style channels are stored."""
        if self.table:
            return self.table.statistics
        return self.styles.statistics if self.styles else ""


class ChosenStrength(BaseModel):
    """Alpha and beta for a step, and why."""

    model_config = ConfigDict(frozen=True)

    uri: str
    target: str
    alpha: float
    beta: float | None
    weights: Weights
    reached: bool
    reason: str

    @property
    def summary(self) -> str:
        """Return numbers and reason for a person."""
        channels = "" if self.beta is None else f", beta {self.beta:g}"
        kind = "" if self.weights == "relevance" else f", {self.weights} weights"
        return f"alpha {self.alpha:g}{channels}{kind}: {self.reason}"

    def apply(self, step: EditStep) -> EditStep:
        """Return the step with these numbers in place of auto."""
        found: dict[str, object] = {
            "alpha": self.alpha, "weights": self.weights, "reason": self.reason, "effect": None,
        }  # fmt: skip
        # a step that counts its channels has no beta to set
        return step.model_copy(update=found | ({} if step.top_k else {"beta": self.beta}))


@unit_of_work("choose-strength", "choose-{step.target}")
def choose_strength(run: Run, step: EditStep, planned: ChoicePlan) -> ChosenStrength:
    """Choose alpha, beta or both for one step of an edit, or find the choice made.

    Raises:
        NothingToChooseOnError: If no photograph has a latent.
        NoRelevantChannelError: If the step's own beta leaves no channel.
        PromptError: If CLIP cannot tell the prompts apart.
    """
    rows = _validation_rows(planned)
    recipe = _recipe(run, step, planned, rows)
    uri = _uri(run, recipe)

    if not is_complete(uri):
        with computing(run.device):
            found = _choose(run, step, planned, rows)

        made = recipe.made(
            "choice",
            chosen_alpha=found.alpha,
            chosen_beta=found.selection.beta,
            reached=found.reached,
            reason=found.reason,
            effect_before=found.before,
            alpha_unit=MATCHED_UNIT if step.relevance == "matched" else ALPHA_UNIT,
        )
        write_table(uri, trials_table(found), made)

    # read back in any case, so that a choice that was found is told like one that was made
    chosen = _read(uri)
    log = get_run_logger()
    (log.info if chosen.reached else log.warning)("%s: %s", chosen.target, chosen.summary)
    return chosen


def find_choice(run: Run, step: EditStep, planned: ChoicePlan) -> ChosenStrength | None:
    """Return the choice that was made for a step on these very images; None where there is none yet."""
    try:
        uri = _uri(run, _recipe(run, step, planned, _validation_rows(planned)))
    except NothingToChooseOnError:
        return None
    return _read(uri) if is_complete(uri) else None


def _uri(run: Run, recipe: Recipe) -> str:
    return join(recipe.folder(run.workspace, "choices"), "choice.parquet")


def _recipe(run: Run, step: EditStep, planned: ChoicePlan, rows: list[Row]) -> Recipe:
    parameters = {
        **step.model_dump(mode="json", include=_DECIDES),
        **planned.settings.aiming_at(step.effect).parameters(),
        "weights": step.chosen_weights, "templates": step.templates or "styleclip-79",
        "instant": planned.instant.model_dump() if step.relevance == "instant" else None,
    }  # fmt: skip
    if step.relevance == "matched":
        parameters["further"] = FURTHER_VERSION

    hashes = run.hashes
    inputs = {"clip": hashes.clip, "generator": hashes.generator, **_inputs(step, planned, rows)}
    return Recipe(STEP, VERSION, parameters, inputs, hashes.generator, hashes.clip)


def trials_table(found: Choice) -> pa.Table:
    """Return every pair that was tried as a row, with standard errors over images; the last was chosen."""

    def error(values: Tensor) -> float | None:
        return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None

    return pa.table({
        "stage": [each.stage for each in found.trials],
        "alpha": pa.array([each.alpha for each in found.trials], pa.float64()),
        "beta": pa.array([each.selection.beta for each in found.trials], pa.float64()),
        "top_k": pa.array([each.selection.top_k for each in found.trials], pa.int32()),
        "channels": pa.array([each.channels for each in found.trials], pa.int32()),
        "images": pa.array([len(each.measured.effect) for each in found.trials], pa.int32()),
        "effect": pa.array([each.effect for each in found.trials], pa.float32()),
        "effect_error": pa.array([error(each.measured.effect) for each in found.trials], pa.float32()),
        "movement": pa.array([each.movement for each in found.trials], pa.float32()),
        "movement_error": pa.array([error(each.measured.movement) for each in found.trials], pa.float32()),
    })  # fmt: skip


def _read(uri: str) -> ChosenStrength:
    about = read_provenance(uri).parameters
    return ChosenStrength(
        uri=uri,
        target=about["target"],
        alpha=about["chosen_alpha"],
        beta=about["chosen_beta"],
        weights=about["weights"],
        reached=about["reached"],
        reason=about["reason"],
    )


def _inputs(step: EditStep, planned: ChoicePlan, rows: list[Row]) -> dict[str, str]:
    """Return what went into a choice: relevance, deviations, and the images it is made on."""
    inputs = {}
    if step.relevance == "table" and planned.table:
        inputs["relevance"] = planned.table.fingerprint
    if step.relevance == "matched" and planned.seen:
        inputs["seen"] = planned.seen.fingerprint
    if planned.styles:
        inputs["styles"] = planned.styles.fingerprint
    if planned.inversion:
        # an image may be replaced under its key, so its content counts
        seen = repr([(row["image_key"], row["content_hash"]) for row in rows])
        inputs["latents"] = planned.inversion.fingerprint
        inputs["photographs"] = hashlib.sha256(seen.encode()).hexdigest()
    return inputs


def _validation_rows(planned: ChoicePlan) -> list[Row]:
    """Return the latents to choose on: those of the first photographs in the order of their keys' hashes."""
    if planned.inversion is None:
        return []

    log = planned.inversion.log
    rows = [row for shard in planned.shards for row in log(shard).latest() if row["status"] == OK]
    if not rows:
        raise NothingToChooseOnError(
            f"none of the photographs under {planned.inversion.photos} has a latent, so there is nothing to "
            "choose alpha and beta on; give photographs that can be inverted, or numbers instead of auto"
        )

    # by hash, so that the choice is made on a mixture, not on the first folder
    rows.sort(key=lambda row: hashlib.sha256(row["image_key"].encode()).digest())
    return rows[: planned.settings.images]


def _choose(run: Run, step: EditStep, planned: ChoicePlan, rows: list[Row]) -> Choice:
    clip = run.clip
    text = text_direction(
        clip, neutral=step.neutral, target=step.target, templates=step.templates or "styleclip-79"
    )

    generator, codes = _images(run, planned, rows)
    relevance, direct, beyond = _channels(run, step, planned, text, codes)

    # what has to stay is a direction of its own, from the same neutral prompt
    kept = [
        text_direction(clip, neutral=step.neutral, target=each, templates=text.templates).direction
        for each in planned.settings.keep
        if each != step.target
    ]

    measure = measure_on(
        generator,
        clip.embed_whole,
        codes,
        text,
        clip.logit_scale,
        keep=torch.stack(kept) if kept else None,
        batch_size=planned.settings.batch_size,
    )

    # numbers that the step gives are kept; only what says auto is chosen
    fixed = step.beta != "auto"
    beta = None if step.top_k else (step.beta if isinstance(step.beta, float) else 0.15)
    # 0 leaves every channel open, where the threshold is to be chosen
    allowed = ChannelSelection(
        0.0 if not fixed else beta, step.top_k, step.include, step.exclude, step.chosen_weights
    )
    alpha = step.alpha if isinstance(step.alpha, float) else None
    settings: ChoosingSettings = planned.settings.aiming_at(step.effect)
    if beyond:
        return choose_matched(
            measure, relevance, direct, partial(beyond, allowed), settings, layout=generator.layout,
            allowed=allowed, alpha=alpha, fixed=fixed,
        )  # fmt: skip
    return choose(
        measure, generator.layout, relevance, direct, settings, allowed=allowed, alpha=alpha, fixed=fixed
    )


def _channels(
    run: Run, step: EditStep, planned: ChoicePlan, text: TextDirection, codes: StyleCode
) -> tuple[Tensor, Direct, Direct | None]:
    """Return the relevance of every channel, ``[N]``, and what makes a style direction of a selection.

    A direction that depends on the image is made for ``codes``, which are chosen on. Beside it stands what
    makes its further way; None of others, which have none.
    """
    if step.relevance == "matched" and planned.seen:
        seen, probability = read_seen(run, planned.seen, text)

        def direct(selection: ChannelSelection) -> StyleDirection:
            return at(matched_direction(seen, probability, selection), codes.to("cpu"))

        further = partial(derivative_direction, run.generator, run.clip.embed_whole, seen, text)
        return matched_direction(seen, probability, _ALL).relevance, direct, further

    layout = run.generator.layout
    std = read_deviations(planned.statistics, layout)

    if step.relevance == "table" and planned.table:
        check_table(planned.table)
        table = read_relevance(run, planned.table.relevance)
        text_vector = text.direction.cpu()
        return table.relevance(text_vector), partial(style_direction, table, text_vector, std), None
    if planned.styles:
        relevance = measure_instant(run, text.direction, planned.styles, planned.instant).cpu()
        return relevance, partial(select_channels, layout, relevance, std), None
    raise StyleCLIPError(f"there is neither a table nor codes to find channels for {step.target!r} with")


def _images(run: Run, planned: ChoicePlan, rows: list[Row]) -> tuple[AnyGenerator, StyleCode]:
    """Return the style codes to choose on and what draws them."""
    generator = run.generator
    if planned.inversion:
        inversion = planned.inversion
        w_plus = latents_of(run, rows)
        tunings = [read_tuning(inversion, generator, row) for row in rows]
        tuned = with_tunings(generator, tunings, w_plus)
        with torch.no_grad():
            return tuned, tuned.styles(w_plus)

    if planned.styles is None:
        raise NothingToChooseOnError("there are neither photographs nor sampled codes to choose on")

    codes = read_codes(planned.styles.codes, generator.layout, 0, planned.settings.images)
    return generator, codes.to(run.device)
