"""What to do to every image: the edit file of the command line, and the ``edits`` parameter of the flows.

An ``Edit`` is one step, or a sequence of steps that each start at the result of the former. A step that
lists several strengths or thresholds stands for all of them; with all choices made it is a ``StepVariant``,
and an edit with all choices made an ``EditVariant``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import product
from math import prod
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue

from styleclip.tasks.settings import (
    Optimization,
    Prompt,
    Settings,
    SettingsError,
    TemplateSet,
    UriOrNone,
    describe,
)
from styleclip.tasks.settings.files import read_list
from styleclip.tasks.settings.folding import folded, unfolded
from styleclip.tasks.settings.variants import FOREIGN, NAME, Method, slug
from styleclip.tasks.settings.variants import EditVariant as EditVariant
from styleclip.tasks.settings.variants import RelevanceSource as RelevanceSource
from styleclip.tasks.settings.variants import StepVariant as StepVariant
from styleclip_core.errors import LayoutMismatchError
from styleclip_core.settings.editing import FURTHEST, ChannelSelection, Weights, allowed_layers, layer_names
from styleclip_core.settings.mapper_training import PUBLISHED_STRENGTH

MOST_VARIANTS = 2000  # that a list of edits may stand for without a word
_STRONGEST = 100.0
Auto = Literal["auto"]
# A column of the data set that says a number, image by image.
Column = Annotated[str, StringConstraints(pattern=r"^\{[^{}]+\}$")]

# What the server checks before there is a run; the form says the same in words.
_Strength = Annotated[
    float, WithJsonSchema({"type": "number", "minimum": -_STRONGEST, "maximum": _STRONGEST})
]
_Threshold = Annotated[float, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]


class EditStep(Settings):
    """Prompts, a method, and that method's settings.

    What few edits need may also stand in a mapping ``advanced``, which is how a form folds it away.
    """

    neutral: Prompt = Field("face", description="What the prompt is compared with")
    target: Prompt = Field(description="What the image should become")
    method: Method = Field("global", description="global (style direction), mapper, or optimization")
    alpha: _Strength | tuple[_Strength, ...] | Auto | Column = Field(
        3.0,
        description="Strength in standard deviations of the most relevant channel; one or several, or auto",
    )
    beta: _Threshold | tuple[_Threshold, ...] | Auto | Column | None = Field(
        None,
        description="Threshold on |relevance|, 0 to 1; one or several, or auto (0.15 if top_k is not given)",
    )
    effect: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="What auto aims at: CLIP's mean probability of the target against the neutral prompt; "
        "none for the run's setting",
    )
    reason: str = Field("", description="Why alpha and beta are what they are; a record, without effect")
    top_k: int | None = Field(None, ge=1, description="Number of channels, instead of beta")
    include: tuple[str, ...] = Field((), description="Layers that may change, e.g. b4.*; none for all")
    exclude: tuple[str, ...] = Field((), description="Layers that stay, e.g. b64.* to leave colours alone")
    weights: Weights | None = Field(
        None,
        description="How much of each channel: relevance as in the paper, or least-squares; none for "
        "least-squares where a table is at hand and beta is auto, relevance elsewhere",
    )
    relevance: RelevanceSource = Field(
        "table",
        description="Where relevance comes from: the table; instant for gradients of this prompt; or "
        "matched, which brings channels to where images that show the target have them, alpha being the "
        "share of the way; beyond 1.5, and up to 2.5, along gradients",
    )
    mapper: UriOrNone = Field(None, description="URI of the mapper's weights, for method mapper")
    strength: _Strength | tuple[_Strength, ...] | Column = Field(
        PUBLISHED_STRENGTH, description="Factor of the mapper's output, 0.1 as published; one or several"
    )
    optimization: Optimization | None = Field(None, description="Settings of method optimization")
    templates: TemplateSet | None = Field(
        None,
        description="Prompt templates; styleclip-79 where the two prompts are compared, as style directions "
        "and faithful optimizations do, none elsewhere",
    )

    @model_validator(mode="before")
    @classmethod
    def _unfold(cls, given: Any) -> Any:  # noqa: ANN401 - whatever somebody gives
        return unfolded(given)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:  # noqa: ANN401
        return folded(handler.resolve_ref_schema(handler(core)))

    @model_validator(mode="after")
    def _check_step(self) -> EditStep:
        if self.top_k is not None and self.beta is not None:
            raise ValueError("give beta or top_k, one of them")

        if () in (self.alpha, self.beta, self.strength):
            raise ValueError("alpha, beta and strength must hold at least one value")
        for name in ("alpha", "strength"):
            for value in _as_tuple(getattr(self, name)):
                if not abs(value) <= _STRONGEST:
                    raise ValueError(
                        f"{name} is a strength from -{_STRONGEST:g} to {_STRONGEST:g}, got {value}"
                    )
        # made for its check: a threshold beyond 0 to 1 is refused with the core's own words
        for beta in _as_tuple(self.beta):
            ChannelSelection(beta, None)

        if self.effect is not None and not self.automatic and self.method == "global":
            raise ValueError("effect is what alpha: auto or beta: auto aims at; make one of them auto")
        if self.weights == "least-squares" and self.relevance != "table":
            raise ValueError(
                f"least-squares weights need the table's rows; {self.relevance} relevance has none"
            )
        if self.relevance == "matched" and self.alpha != "auto":
            for value in _as_tuple(self.alpha):
                if not abs(value) <= FURTHEST:
                    raise ValueError(
                        f"with matched relevance alpha is a share of the way, {FURTHEST:g} at most, "
                        f"got {value:g}; give alpha 1 for the whole way, or auto"
                    )
        if self.automatic and any(isinstance(each, tuple) for each in (self.alpha, self.beta)):
            raise ValueError("beside auto, give one alpha or beta and no list of them")

        fields = EditStep.model_fields  # a form sends every field, most of them as they were
        given = [name for name in FOREIGN[self.method] if getattr(self, name) != fields[name].default]
        if given:
            raise ValueError(f"method {self.method} has no {given[0]}; leave it out")

        if self.method == "mapper" and self.mapper is None:
            raise ValueError("method mapper needs the URI of a mapper; give its best.safetensors as mapper")

        # of any generator, as this one is not known yet
        try:
            # what a column will say is not known yet
            include, exclude = (
                tuple(each for each in layers if "{" not in each) for layers in (self.include, self.exclude)
            )
            allowed_layers(layer_names(), include, exclude)
        except LayoutMismatchError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def automatic(self) -> bool:
        """Return whether alpha or beta is to be chosen."""
        return self.alpha == "auto" or self.beta == "auto"

    @property
    def choices(self) -> int:
        """Return how many variants the step stands for."""
        if self.method == "global":
            return max(1, len(_as_tuple(self.alpha))) * max(1, len(_as_tuple(self.beta)))
        return len(_as_tuple(self.strength)) if self.method == "mapper" else 1

    @property
    def chosen_weights(self) -> Weights:
        """Return the kind of weights: as given, or what suits the other settings best."""
        suits = self.beta == "auto" and self.relevance == "table"
        return self.weights or ("least-squares" if suits else "relevance")

    def drawn_by(self, chunk: int) -> EditStep:
        """Return the step with that size of a chunk, if it is an optimization that says none itself."""
        settings = self.optimization or Optimization()
        said = settings.model_dump()["chunk"]
        if self.method != "optimization" or said or settings.settings().chunk == chunk:
            return self  # eight need not be said, so that what says none keeps its name
        return self.model_copy(update={"optimization": settings.model_copy(update={"chunk": chunk})})

    def step_variants(self) -> list[StepVariant]:
        """Return the step at every alpha and beta, or every strength, it lists.

        Raises:
            SettingsError: If alpha or beta is auto and has not been chosen.
        """
        if self.automatic:
            raise SettingsError(
                f"alpha or beta towards {self.target!r} is auto; choose them first (`styleclip choose`)"
            )

        # ensembles are of prompts that are compared; what has no neutral one takes a prompt as it is
        compared = self.method == "global" or (
            self.method == "optimization" and (self.optimization or Optimization()).settings().needs_neutral
        )
        shared: dict[str, Any] = {
            "neutral": self.neutral, "target": self.target, "method": self.method,
            "templates": self.templates or ("styleclip-79" if compared else "none"),
        }  # fmt: skip

        if self.method == "mapper":
            return [
                StepVariant(**shared, mapper=self.mapper, strength=each) for each in _as_tuple(self.strength)
            ]
        if self.method == "optimization":
            return [StepVariant(**shared, optimization=self.optimization or Optimization())]

        # a step that counts its channels has no threshold
        default = (0.15,) if self.top_k is None else (None,)
        betas = default if self.beta is None else _as_tuple(self.beta)
        channels = {
            "top_k": self.top_k, "include": self.include, "exclude": self.exclude,
            "relevance": self.relevance, "reason": self.reason, "weights": self.chosen_weights,
        }  # fmt: skip
        return [
            StepVariant(**shared, **channels, alpha=alpha, beta=beta)
            for beta in betas
            for alpha in _as_tuple(self.alpha)
        ]


class Edit(EditStep):
    """One entry of an edit file: a step, and the steps that follow it."""

    name: str = Field("", description="Folder name of the edit; made from the targets if empty")
    then: tuple[EditStep, ...] = Field(
        (), description="Further edits, each of the result of the one before it"
    )
    where: str = Field(
        "", description="Which images the edit is for: a condition on columns of the data set, in SQL"
    )

    @model_validator(mode="after")
    def _check_name(self) -> Edit:
        if self.name and not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9.+-]{{0,{NAME - 1}}}", self.name):
            raise ValueError(
                f"edit name {self.name!r} must be a folder name of letters, digits, '-', '+' and '.'"
            )
        return self

    def variants(self) -> list[EditVariant]:
        """Return the edit with every combination of the choices that its steps list."""
        steps: list[EditStep] = [self, *self.then]
        name = self.name or "+".join(slug(step.target) for step in steps)[:NAME]
        return [
            EditVariant(name=name, steps=chosen)
            for chosen in product(*(step.step_variants() for step in steps))
        ]


def _as_tuple(value: float | tuple[float, ...] | str | None) -> tuple[float, ...]:
    if value is None or isinstance(value, str):
        return ()
    return value if isinstance(value, tuple) else (value,)


_WHOLE_WAY = 1.0  # of a matched edit, which takes no gradients; few of those that are chosen need more
_STANDINS = {"alpha": 3.0, "beta": 0.15, "strength": PUBLISHED_STRENGTH}


def stand_in(step: EditStep) -> EditStep:
    """Return a step with numbers where it says auto or a column, by which it can be checked early."""
    numbers = _STANDINS | ({"alpha": _WHOLE_WAY} if step.relevance == "matched" else {})
    return step.model_copy(
        update={name: value for name, value in numbers.items() if isinstance(getattr(step, name), str)}
    )


def replace_steps(edits: list[Edit], replace: Callable[[EditStep], EditStep]) -> list[Edit]:
    """Return edits with every step replaced, the first ones and those that follow."""
    found = []
    for edit in edits:
        first = replace(edit)
        # the fields of a step alone: what replaces it has no name and no further steps
        changed = {name: getattr(first, name) for name in EditStep.model_fields}
        found.append(edit.model_copy(update={**changed, "then": tuple(replace(each) for each in edit.then)}))
    return found


def all_steps(edits: list[Edit]) -> list[EditStep]:
    """Return every step of the edits, the first ones and those that follow."""
    return [step for edit in edits for step in (edit, *edit.then)]


def bare(step: EditStep) -> EditStep:
    """Return a step without what an edit adds to it: equal steps share one choice."""
    return EditStep(**{name: getattr(step, name) for name in EditStep.model_fields})


def automatic_steps(edits: list[Edit]) -> list[EditStep]:
    """Return every step whose alpha or beta is to be chosen."""
    return [step for step in all_steps(edits) if step.automatic]


def all_variants(
    edits: list[Edit], most: int = MOST_VARIANTS, *, by_image: bool = False
) -> list[EditVariant]:
    """Return every variant of a list of edits.

    Args:
        edits: What to do to every image.
        most: How many variants they may stand for.
        by_image: Whether columns of the data set made some of them, which share the name of one edit then.

    Raises:
        SettingsError: If the list is empty, stands for more, or two variants would write to one folder.
    """
    # counted before they are made: five lists of a hundred values are ten thousand million variants
    counts = [(prod(step.choices for step in (edit, *edit.then)), edit) for edit in edits]
    total = sum(count for count, _ in counts)
    if total > most:
        largest, edit = max(counts, key=lambda each: each[0])
        raise SettingsError(
            f"the edits stand for {total:,} variants of every image, {largest:,} of them by "
            f"{edit.name or edit.target!r}; list fewer values, or allow {total} (most_variants)"
        )

    variants = [variant for edit in edits for variant in edit.variants()]
    (folder, times), *_ = [*Counter(each.label for each in variants).most_common(1), ("", 1)]
    if times > 1 and not by_image:
        raise SettingsError(f"two edits write to the same folder {folder!r}; give one of them another name")
    if not variants:
        raise SettingsError("there is no edit to do; list at least one with a target prompt")
    return variants


def load_edits(uri: str, most: int = MOST_VARIANTS) -> list[Edit]:
    """Read an edit file: a YAML or JSON list, or a mapping with the list under ``edits``.

    Raises:
        SettingsError: If it is no such list; the message names the entry and the field.
    """
    edits = []
    for number, entry in enumerate(read_list(uri, "edits"), start=1):
        try:
            edits.append(Edit.model_validate(entry))
        except ValidationError as error:
            raise SettingsError(f"{uri}, edit {number}: {describe(error)}") from error

    # for its check: that two edits share a folder is best said of the file
    all_variants(replace_steps(edits, stand_in), most)
    return edits


def dump_edits(edits: list[Edit]) -> bytes:
    """Return edits as an edit file, without what is as by default."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        # YAML has no tuples
        return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value

    entries = [plain(edit.model_dump(mode="json", exclude_defaults=True)) for edit in edits]
    text: str = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=100)
    return text.encode()
