"""Parameters of the flows: typed, documented, refused before a run starts if they are wrong.

Each class becomes a form in Prefect's UI. What the core decides stands in the core's settings dataclasses,
with default, bounds and sentence; here such a dataclass becomes a form as it is, and gets the fields that
only a pipeline has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, TypeVar

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from styleclip.tasks.settings.uris import Clip, OptionalUri, Prompt, TemplateSet, Uri, UriOrNone
from styleclip_core.errors import StyleCLIPError
from styleclip_core.options import (
    LARGEST,
    ChangesNoResult,
    NamedIfChanged,
    NamedWith,
    Says,
    annotated_fields,
    describe_excess,
    parameters,
)
from styleclip_core.settings import mapper_training, optimization
from styleclip_core.settings.choosing import ChoosingSettings
from styleclip_core.settings.features import FeatureSettings
from styleclip_core.settings.inversion import RefinementSettings
from styleclip_core.settings.mapper_training import MapperTrainingSettings
from styleclip_core.settings.optimization import OptimizationSettings
from styleclip_core.settings.pivotal import PivotalSettings
from styleclip_core.settings.relevance import RelevanceSettings

_REFUSING = ConfigDict(extra="forbid", hide_input_in_errors=True)
_T = TypeVar("_T")
_Form = TypeVar("_Form", bound="Settings")
_PRESETS: dict[type, Mapping[str, object]] = {}  # of the forms that have some


class SettingsError(StyleCLIPError):
    """A parameter or an edit file is wrong."""


class Settings(BaseModel):
    """A form: a value, and nothing else in it than its fields."""

    model_config = ConfigDict(frozen=True, **_REFUSING)

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if wanted := describe_excess(value):
                raise ValueError(f"{name} must be {wanted}, got {value}")
        return self


def fields_of(form: type) -> Mapping[str, FieldInfo]:
    """Return the fields of a form, a model or a dataclass."""
    found: Mapping[str, FieldInfo] = form.__pydantic_fields__  # type: ignore[attr-defined]
    return found


def _with_presets(presets: Mapping[str, object]) -> Callable[[type[_Form]], type[_Form]]:
    """Give a form the fields of the settings dataclass of presets, each none where the preset decides."""
    core = type(next(iter(presets.values())))

    def extend(form: type[_Form]) -> type[_Form]:
        theirs: dict[str, Any] = {
            name: (Annotated[kind | None, *metadata], None)
            for name, (kind, metadata) in annotated_fields(core).items()
        }
        made = create_model(
            form.__name__, __base__=form, __module__=form.__module__, __doc__=form.__doc__, **theirs
        )
        _PRESETS[made] = presets
        return made

    return extend


def preset_values(form: type, field: str) -> Mapping[str, object]:
    """Return what each preset of a form says of a field; nothing for fields that no preset decides."""
    presets = _PRESETS.get(form, {})
    return {name: getattr(each, field) for name, each in presets.items() if hasattr(each, field)}


def _resolved(form: Settings, preset: _T) -> _T:
    """Return a preset with what the form says instead."""
    said = {name: getattr(form, name) for name in annotated_fields(type(preset))}
    return replace(preset, **{name: value for name, value in said.items() if value is not None})  # type: ignore[type-var]


class _Naming:
    """A settings dataclass of the core as a form, which names artifacts."""

    def parameters(self) -> dict[str, Any]:
        """Return what decides a result, by the marks of the fields."""
        return parameters(self)


class Models(Settings):
    """Which networks to use. Files may lie on any fsspec file system."""

    generator: Uri = Field(
        description="URI of the StyleGAN2 weights (.safetensors, NVIDIA's .pkl, rosinality's .pt)"
    )
    clip: Clip = Field(
        "ViT-B/32",
        description="CLIP name (ViT-B/32, open_clip:ARCH/TAG, hf-hub:ORG/NAME), or URI of weights",
    )
    encoder: UriOrNone = Field(
        None, description="URI of the encoder (ours, e4e or pSp); none starts at the average w"
    )
    identity: UriOrNone = Field(
        None, description="URI of the identity network (model_ir_se50.pth); none scores no identity"
    )
    perceptual: UriOrNone = Field(
        None,
        description="URI of AlexNet's or VGG16's published weights, for LPIPS; none measures no LPIPS",
    )


class Judges(Settings):
    """The networks that evaluate edits; they need not be those that made them."""

    clip: Clip = Field("ViT-B/32", description="CLIP name, or URI of its weights; best one that made no edit")
    identity: UriOrNone = Field(
        None, description="URI of an identity network (model_ir_se50.pth); none scores no identity"
    )
    perceptual: UriOrNone = Field(
        None, description="URI of AlexNet's or VGG16's published weights, for LPIPS; none measures no LPIPS"
    )


class Comparison(Settings):
    """What an evaluation compares, and how prompts are embedded."""

    before: Literal["inversion", "photograph"] = Field(
        "inversion", description="What edited images are compared with: what the generator drew, or the file"
    )
    templates: TemplateSet = Field("styleclip-79", description="Prompt templates, for every edit the same")


class Execution(Settings):
    """How the work is run; none of it changes a result."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"], ChangesNoResult("another device only rounds differently")
    ] = Field("auto", description="auto takes a GPU if there is one")
    price_per_hour: Annotated[float, ChangesNoResult("it is multiplied with a time")] = Field(
        0.0,
        ge=0,
        le=LARGEST,
        description="What an hour of the machine costs, in your currency; 0 for no cost",
    )
    shard_size: Annotated[int, ChangesNoResult("images do not see each other")] = Field(
        32, ge=1, le=100_000, description="Images per shard, on average"
    )
    max_failed: Annotated[float, ChangesNoResult("looked at when all is written")] = Field(
        1.0, ge=0, le=1, description="Share of items that may fail; a run fails with more, and if all have"
    )
    strict: Annotated[bool, ChangesNoResult("what is refused is not made")] = Field(
        False, description="Edits whose words no style channel carries: refuse them instead of warning"
    )


class Sampling(Settings):
    """Style codes to sample and the statistics of style space."""

    seed: int = Field(5, ge=0, description="Seed; sample i of a seed is the same on every machine")
    truncation_psi: float = Field(0.7, gt=0, le=1, description="Pull towards the average w; 1 for none")
    truncation_cutoff: int | None = Field(
        None, ge=1, description="Rows of w_plus that are truncated; none for all"
    )
    label: int | None = Field(
        None, ge=0, description="Class of a conditional generator; none for unconditional ones"
    )
    statistics: int = Field(100_000, ge=2, description="Codes behind mean and deviation")
    codes: int = Field(100, ge=1, description="Codes stored for the relevance table")
    looked_at: int = Field(
        2000, ge=100, description="Codes that CLIP looks at, once for all prompts, where edits are matched"
    )


@dataclass(frozen=True, config=_REFUSING)
class Relevance(RelevanceSettings, _Naming):
    """How the relevance table is measured."""

    samples: Annotated[int, Ge(1), Says("Style codes per channel; the most that one gets")] = 100
    first_sample: Annotated[int, Ge(0), Says("Number of the first style code")] = 0
    derivatives: Annotated[
        int, Ge(0), NamedWith("tolerance"),
        Says(
            "Fast mode: directions of the embedding along which derivatives say what moves will show, so "
            "that a tolerance needs fewer moves; 0 for none"
        ),
    ] = 0  # fmt: skip
    reference_compat: Annotated[
        bool, Says("Measure as the published script does, with its slip; for comparison only")
    ] = False
    channels_per_shard: Annotated[
        int, Ge(0),
        Says(
            "Style channels measured by one task; 0 for a minute of a core's work, 16 at least, or whole "
            "layers on a GPU"
        ),
        ChangesNoResult("channels do not see each other; only rounding may differ, with a tolerance no bit"),
    ] = 0  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.derivatives and not self.tolerance:
            raise ValueError("derivatives save work only where a tolerance lets moves be left out; give one")
        if self.derivatives and self.centre == "mean":
            raise ValueError("derivatives are taken at the code's own values; use centre 'sample'")

        decided = ("centre", "precision", "eight_bit", "eight_bit_by", "tolerance")
        changed = [name for name in decided if getattr(self, name) != fields_of(Relevance)[name].default]
        if self.reference_compat and changed:
            raise ValueError(f"reference_compat decides {', '.join(changed)} itself; leave it out")

    def parameters(self) -> dict[str, Any]:
        """Return what decides the numbers in a row, but for the style codes behind it."""
        return {k: v for k, v in super().parameters().items() if k not in ("samples", "first_sample")}


def fast_relevance(said: Mapping[str, Any]) -> Relevance:
    """Return settings in fast mode: what is not said is as measured on the embedded world.

    Raises:
        ValidationError: If something is said that fast mode cannot do.
    """
    return Relevance(**({"derivatives": 64, "tolerance": 0.15, "minimum": 4} | dict(said)))


class Instant(Settings):
    """How the relevance of one prompt is taken from gradients, without a table."""

    codes: int = Field(16, ge=1, description="Style codes to average over; the first ones sampled")
    probes: int = Field(
        16, ge=1, description="Random directions that estimate how much a channel does at all"
    )
    seed: int = Field(0, ge=0, description="Seed of the probes")


@dataclass(frozen=True, config=_REFUSING)
class Choosing(ChoosingSettings, _Naming):
    """How alpha and beta are chosen where an edit says auto."""

    images: Annotated[
        int, Ge(1),
        Says("Inverted photographs, or sampled codes, that the choice is made on; at most"),
    ] = 24  # fmt: skip
    keep: Annotated[
        tuple[Prompt, ...],
        Says("Prompts of what should stay, e.g. face with a hat; none for all that CLIP sees"),
    ] = ()
    batch_size: Annotated[
        int, Ge(1), Says("Images drawn at once, at most"),
        ChangesNoResult("images do not see each other; only rounding may differ"),
    ] = 32  # fmt: skip

    def aiming_at(self, effect: float | None) -> Choosing:
        """Return these settings for an edit that may want another effect."""
        return replace(self, effect=effect) if effect else self


@dataclass(frozen=True, config=_REFUSING)
class PivotalTuning(PivotalSettings):
    """How the generator is tuned to each photograph, once its latent is found (PTI)."""


@dataclass(frozen=True, config=_REFUSING)
class FeatureInversion(FeatureSettings):
    """What of each photograph's features its latent does not say, once that is found."""


@dataclass(frozen=True, config=_REFUSING)
class Inversion(RefinementSettings, _Naming):
    """How photographs become latents."""

    batch_size: Annotated[
        int, Ge(1), Says("Images refined at once"),
        ChangesNoResult("every image is refined apart, in chunks of one size; only rounding may differ"),
    ] = 16  # fmt: skip
    pivotal: Annotated[
        PivotalTuning | None, NamedIfChanged(),
        Says("Tune the generator to each photograph, a few KB for each; none leaves it as it is"),
    ] = None  # fmt: skip
    features: Annotated[
        FeatureInversion | None, NamedIfChanged(),
        Says("Keep what a photograph's features have beside its latent, some KB for each; none does not"),
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pivotal and self.features:
            raise ValueError("a photograph has a tuning (pivotal) or a residual (features), not both")

    @property
    def own(self) -> PivotalTuning | FeatureInversion | None:
        """Return how is found what each image has beside its latent; None where it has nothing."""
        return self.pivotal or self.features


@_with_presets(optimization.PRESETS)
class Optimization(Settings):
    """How a latent is optimized; what is left out comes from the preset."""

    preset: Literal["published", "gentle", "faithful"] = Field(
        "published",
        description="Named defaults: published, gentle for small generators, or faithful to keep the person",
    )
    reference_compat: bool = Field(
        False, description="Show CLIP what the published losses do: box-filtered pixels, not normalized"
    )
    frames: int = Field(0, ge=0, le=1000, description="Frames of a video of each image's way; 0 for none")

    def settings(self) -> OptimizationSettings:
        """Return what the core needs of this; the size of a chunk is a number, as no batch may decide it."""
        found = _resolved(self, optimization.PRESETS[self.preset])
        return replace(found, chunk=found.chunk or optimization.AT_ONCE)


@_with_presets(mapper_training.PRESETS)
class MapperTraining(Settings):
    """How a latent mapper is trained; what is left out comes from the preset."""

    preset: Literal["published", "small", "faithful"] = Field(
        "published",
        description="Named defaults: published, small for small generators, or faithful to keep the person",
    )
    neutral: Prompt = Field("face", description="What the prompt is compared with, where an effect is wanted")
    templates: TemplateSet | None = Field(
        None, description="Prompt templates; styleclip-79 where prompts are compared, none elsewhere"
    )
    latents: OptionalUri = Field(
        "", description="URI of a folder of latents to train on; empty to sample codes"
    )
    codes: int = Field(5000, ge=2, description="Codes to sample, if no latents are given")
    truncation_psi: float = Field(0.7, gt=0, le=1, description="Truncation of sampled codes; 1 for none")
    validation: int = Field(100, ge=1, description="Of all codes, the last ones, kept for validation")

    def settings(self) -> MapperTrainingSettings:
        """Return what the core needs of this."""
        return _resolved(self, mapper_training.PRESETS[self.preset])

    def parameters(self) -> dict[str, Any]:
        """Return all that decides a mapper, with the preset filled in: equal settings, equal parameters."""
        theirs = annotated_fields(MapperTrainingSettings)
        # a neutral prompt names a mapper only where it decides anything
        idle = set() if self.settings().needs_neutral else {"neutral"}
        mine = self.model_dump(exclude={"preset", *idle, *theirs})
        return parameters(self.settings()) | mine | {"templates": self.chosen_templates}

    @property
    def chosen_templates(self) -> TemplateSet:
        """Return the prompt templates: as given, or what suits the other settings."""
        return self.templates or ("styleclip-79" if self.settings().needs_neutral else "none")


def describe(error: ValidationError) -> str:
    """Return a validation error as one line: field, problem, value."""
    problems = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"]) or "settings"
        # pydantic says before our own complaints that they are some
        problems.append(f"{field}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(problems)
