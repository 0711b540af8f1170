"""Parameters of the flows: typed, documented, refused before a run starts if they are wrong.

Each model becomes a form in Prefect's UI. Units and ranges are in the field descriptions.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from datetime import date, datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from styleclip_core.choosing import ChoosingSettings
from styleclip_core.errors import StyleCLIPError
from styleclip_core.inversion import RefinementSettings
from styleclip_core.mapper_training import LEVELS, Level, MapperTrainingSettings
from styleclip_core.mapper_training import PRESETS as MAPPER_PRESETS
from styleclip_core.optimization import PRESETS, OptimizationSettings
from styleclip_core.pivotal import PivotalSettings
from styleclip_core.relevance import RelevanceSettings
from styleclip_core.templates import TEMPLATE_SETS
from styleclip_core.tuned import MAX_RANK

PIVOTAL = PivotalSettings()
CHOOSING = ChoosingSettings()


class SettingsError(StyleCLIPError):
    """A parameter or an edit file is wrong."""


class Settings(BaseModel):
    """A form: a value, and nothing else in it than its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


# A URI with a user's name and password, or an S3 one with keys where its bucket should be.
_CREDENTIALS = r"[A-Za-z0-9+.-]+://[^/]*:[^/]*@|[sS]3[aA]?://(?!arn:)[^/]*[:@]"


def _without_credentials(uri: str) -> str:
    if re.match(_CREDENTIALS, uri):
        raise ValueError("the URI holds credentials; give them in the environment, never in a parameter")
    return uri


# What the server checks before there is a run that would store the value. An empty one passes: it is what a
# deployment has whose variables were not set, and a run that needs it says so.
_URI_SCHEMA = WithJsonSchema({"type": "string", "pattern": f"^(?!{_CREDENTIALS})"})
Prompt = Annotated[str, Field(min_length=1)]
OptionalUri = Annotated[str, AfterValidator(_without_credentials), _URI_SCHEMA]
UriOrNone = Annotated[OptionalUri | None, BeforeValidator(lambda given: given or None)]  # a form sends ""
Uri = Annotated[str, Field(min_length=1), AfterValidator(_without_credentials), _URI_SCHEMA]


def _known_templates(name: str) -> str:
    if name not in TEMPLATE_SETS:
        raise ValueError(f"unknown template set {name!r}; there are {', '.join(TEMPLATE_SETS)}")
    return name


TemplateSet = Annotated[
    str, AfterValidator(_known_templates), WithJsonSchema({"type": "string", "enum": list(TEMPLATE_SETS)})
]


def _known_time_zone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError(f"unknown time zone {name!r}; give one such as Europe/Berlin or UTC")
    return name


TimeZone = Annotated[
    str,
    AfterValidator(_known_time_zone),
    WithJsonSchema({"type": "string", "enum": sorted(available_timezones())}),
]


class Models(Settings):
    """Which networks to use. Files may lie on any fsspec file system."""

    generator: Uri = Field(
        description="URI of the StyleGAN2 weights (.safetensors, NVIDIA's .pkl, rosinality's .pt)"
    )
    clip: OptionalUri = Field("ViT-B/32", description="CLIP name, or URI of its weights")
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

    clip: str = Field("ViT-B/32", description="CLIP name, or URI of its weights; best one that made no edit")
    identity: str | None = Field(
        None, description="URI of an identity network (model_ir_se50.pth); none scores no identity"
    )
    perceptual: str | None = Field(
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

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU if there is one")
    shard_size: int = Field(16, ge=1, le=100_000, description="Images per shard, on average")


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


class Relevance(Settings):
    """How the relevance table is measured."""

    samples: int = Field(100, ge=1, description="Style codes per channel; the most that one gets")
    first_sample: int = Field(0, ge=0, description="Number of the first style code")
    strength: float = Field(5.0, gt=0, description="Size of the move in standard deviations of the channel")
    centre: Literal["sample", "mean"] = Field(
        "sample", description="Move around the code's own value or the mean"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Number format of the networks"
    )
    eight_bit: bool = Field(
        False, description="Round images to 8 bits before CLIP, as the published code does"
    )
    tolerance: float = Field(
        0.0,
        ge=0,
        description="Fast mode: a channel gets no more codes once its direction has a standard error of at "
        "most this angle, in radians; 0 for all codes",
    )
    minimum: int = Field(8, ge=2, description="Style codes of a channel before that is first decided")
    derivatives: int = Field(
        0,
        ge=0,
        description="Fast mode: directions of the embedding along which derivatives say what moves will "
        "show, so that a tolerance needs fewer moves; 0 for none",
    )
    reference_compat: bool = Field(
        False,
        description="Measure as the published script does, with its slip; for comparison only",
    )
    batch_size: int = Field(
        32, ge=2, multiple_of=2, description="Images synthesized at once, at most; fewer if memory is short"
    )
    channels_per_shard: int = Field(24, ge=1, description="Style channels measured by one task")

    def settings(self) -> RelevanceSettings:
        """Return what the core needs of this."""
        return RelevanceSettings(
            self.strength, self.centre, self.precision, self.batch_size, self.eight_bit, self.tolerance,
            self.minimum,
        )  # fmt: skip

    def parameters(self) -> dict[str, float | str | bool]:
        """Return what decides the numbers in a row, but for the style codes behind it."""
        names = {"strength", "centre", "precision", "eight_bit", "tolerance", "reference_compat"}
        names |= {"minimum", "derivatives"} if self.tolerance else set()
        return self.model_dump(include=names)

    def fast(self) -> Relevance:
        """Return these settings in fast mode: what they leave open is as measured on the embedded world.

        Raises:
            ValidationError: If they say something that fast mode cannot do.
        """
        ours = {"derivatives": 64, "tolerance": 0.15, "minimum": 4}
        return type(self).model_validate(ours | self.model_dump(exclude_unset=True))

    @model_validator(mode="after")
    def _check(self) -> Relevance:
        if self.derivatives and not self.tolerance:
            raise ValueError("derivatives save work only where a tolerance lets moves be left out; give one")
        if self.derivatives and self.centre == "mean":
            raise ValueError("derivatives are taken at the code's own values; use centre 'sample'")
        others = ("centre", "precision", "eight_bit", "tolerance")
        changed = [name for name in others if getattr(self, name) != type(self).model_fields[name].default]
        if self.reference_compat and changed:
            raise ValueError(f"reference_compat decides {', '.join(changed)} itself; leave it out")
        return self


class Nightly(Settings):
    """What each night of a scheduled build does: start the table, or add samples to the last night's."""

    samples: int = Field(100, ge=1, description="Style codes per channel that a night adds")
    most: int = Field(1000, ge=1, description="Style codes per channel from which on nights add nothing")
    time_zone: TimeZone = Field("UTC", description="Where the date of a night is read")
    night: str = Field(
        "",
        pattern=r"^(\d{4}-\d{2}-\d{2})?$",
        description="Date of the night, as 2031-05-17; empty for the date on which the run was due",
    )

    def date_of(self, due: datetime) -> str:
        """Return the date of the night that a run which was due then belongs to."""
        return self.night or due.astimezone(ZoneInfo(self.time_zone)).date().isoformat()

    @model_validator(mode="after")
    def _check(self) -> Nightly:
        if self.night:
            date.fromisoformat(self.night)
        return self


class Instant(Settings):
    """How the relevance of one prompt is taken from gradients, without a table."""

    codes: int = Field(16, ge=1, description="Style codes to average over; the first ones sampled")
    probes: int = Field(
        16, ge=1, description="Random directions that estimate how much a channel does at all"
    )
    seed: int = Field(0, ge=0, description="Seed of the probes")


class Choosing(Settings):
    """How alpha and beta are chosen where an edit says auto."""

    images: int = Field(
        24, ge=1, description="Inverted photographs, or sampled codes, that the choice is made on; at most"
    )
    effect: float = Field(
        CHOOSING.effect,
        gt=0,
        lt=1,
        description="Wanted effect: CLIP's mean probability of the target against the neutral prompt",
    )
    thresholds: int = Field(
        CHOOSING.thresholds, ge=1, description="Betas tried at first; two more follow around the best"
    )
    strengths: int = Field(CHOOSING.strengths, ge=2, description="Alphas tried for a beta, at most")
    keep: tuple[str, ...] = Field(
        (), description="Prompts of what should stay, e.g. face with a hat; none for all that CLIP sees"
    )
    batch_size: int = Field(32, ge=1, description="Images drawn at once, at most")

    def settings(self, effect: float | None) -> ChoosingSettings:
        """Return what the core needs of this, for an edit that may want another effect."""
        return ChoosingSettings(effect or self.effect, self.thresholds, self.strengths)


class PivotalTuning(Settings):
    """How the generator is tuned to each photograph, once its latent is found (PTI)."""

    steps: int = Field(PIVOTAL.steps, ge=1, description="Gradient steps at most")
    learning_rate: float = Field(
        PIVOTAL.learning_rate, gt=0, description="Adam's rate at its peak, in units of a tuning's numbers"
    )
    rank: int = Field(
        PIVOTAL.rank,
        ge=1,
        le=MAX_RANK,
        description="Outer products per layer; KB per image are nearly proportional",
    )
    patience: int = Field(
        PIVOTAL.patience, ge=1, description="Steps without improvement before an image stops"
    )
    locality_weight: float = Field(
        PIVOTAL.locality_weight,
        ge=0,
        description="Weight of what holds the generator still away from the latent; 0 for none",
    )
    locality_distance: float = Field(
        PIVOTAL.locality_distance,
        gt=0,
        description="How far away that is, in mean distances of a random w from the average w",
    )
    locality_codes: int = Field(PIVOTAL.locality_codes, ge=1, description="Random codes per image and step")
    seed: int = Field(PIVOTAL.seed, ge=0, description="Seed of the first numbers and of the random codes")

    def settings(self) -> PivotalSettings:
        """Return what the core needs of this."""
        return PivotalSettings(**self.model_dump())


class Inversion(Settings):
    """How photographs become latents."""

    steps: int = Field(100, ge=0, description="Refinement steps after the encoder; 0 for the encoder alone")
    learning_rate: float = Field(0.05, gt=0, description="Adam's rate at its peak")
    latent_weight: float = Field(0.0005, ge=0, description="Pull towards the encoder's code")
    patience: int = Field(20, ge=1, description="Steps without improvement before an image stops")
    batch_size: int = Field(16, ge=1, description="Images refined at once")
    pivotal: PivotalTuning | None = Field(
        None, description="Tune the generator to each photograph, a few KB for each; none leaves it as it is"
    )

    def parameters(self) -> dict[str, Any]:
        """Return what decides the latents; tuning only where there is some."""
        left_out = {"batch_size"} if self.pivotal else {"batch_size", "pivotal"}
        return self.model_dump(exclude=left_out)

    def settings(self) -> RefinementSettings:
        """Return what the core needs of this."""
        return RefinementSettings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            latent_weight=self.latent_weight,
            patience=self.patience,
        )


class Optimization(Settings):
    """How a latent is optimized; what is left out comes from the preset."""

    preset: Literal["published", "gentle"] = Field(
        "published", description="Named defaults: published, or gentle for small generators"
    )
    space: Literal["w_plus", "s"] | None = Field(None, description="What moves: w_plus, or style space")
    mode: Literal["edit", "free_generation"] | None = Field(
        None, description="free_generation has the CLIP term alone"
    )
    steps: int | None = Field(None, ge=1, description="Evaluations of the loss, at most")
    learning_rate: float | None = Field(None, gt=0, description="Adam's rate at its peak")
    l2_weight: float | None = Field(None, ge=0, description="Pull to the source, per squared unit, summed")
    identity_weight: float | None = Field(None, ge=0, description="Weight of the identity term")
    patience: int | None = Field(None, ge=1, description="Steps without a gain of 0.1 % before a pair ends")
    chunk: int | None = Field(None, ge=1, description="Pairs drawn at once, always exactly so many")
    reference_compat: bool = Field(
        False, description="Show CLIP what the published losses do: box-filtered pixels, not normalized"
    )
    frames: int = Field(0, ge=0, le=1000, description="Frames of a video of each image's way; 0 for none")

    def settings(self) -> OptimizationSettings:
        """Return what the core needs of this."""
        given = self.model_dump(exclude={"preset", "reference_compat", "frames"}, exclude_none=True)
        return replace(PRESETS[self.preset], **given)


class MapperTraining(Settings):
    """How a latent mapper is trained; what is left out comes from the preset."""

    preset: Literal["published", "small"] = Field(
        "published", description="Named defaults: published, or small for small generators"
    )
    kind: Literal["levels", "single", "style", "style-full"] | None = Field(
        None, description="Networks: one per level of W+, one for all rows, or one per style layer"
    )
    levels: tuple[Level, ...] = Field(
        LEVELS, description="For levels: those that move, of coarse, medium, fine"
    )
    steps: int | None = Field(None, ge=1, description="Optimizer steps, at most")
    batch_size: int | None = Field(None, ge=1, description="Codes per step")
    learning_rate: float | None = Field(
        None, gt=0, description="RAdam's rate; the effective one is a hundredth"
    )
    decay: float | None = Field(
        None, ge=0, le=1, description="Fraction of the steps over which the rate falls to 0"
    )
    clip_weight: float | None = Field(None, ge=0, description="Weight of the CLIP term")
    identity_weight: float | None = Field(None, ge=0, description="Weight of the identity term")
    l2_weight: float | None = Field(None, ge=0, description="Weight of the mean squared move")
    validate_every: int | None = Field(
        None, ge=1, description="Steps between validations, which also store all"
    )
    patience: int | None = Field(None, ge=1, description="Validations without a gain before it ends")
    seed: int = Field(0, ge=0, description="Seed of first weights, order and sampled codes")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16 for mixed precision on a GPU"
    )
    templates: TemplateSet = Field("none", description="Prompt templates; the published training has none")
    latents: OptionalUri = Field(
        "", description="URI of a folder of latents to train on; empty to sample codes"
    )
    codes: int = Field(5000, ge=2, description="Codes to sample, if no latents are given")
    truncation_psi: float = Field(0.7, gt=0, le=1, description="Truncation of sampled codes; 1 for none")
    validation: int = Field(100, ge=1, description="Of all codes, the last ones, kept for validation")

    def settings(self) -> MapperTrainingSettings:
        """Return what the core needs of this."""
        ours = {"preset", "templates", "latents", "codes", "truncation_psi", "validation"}
        return replace(MAPPER_PRESETS[self.preset], **self.model_dump(exclude=ours, exclude_none=True))

    def parameters(self) -> dict[str, Any]:
        """Return all that decides a mapper, with the preset filled in: equal settings, equal parameters."""
        resolved = asdict(self.settings())
        given = self.model_dump(mode="json", exclude={"preset"})
        return {name: resolved.get(name) if value is None else value for name, value in given.items()}


class FaceSource(Settings):
    """Where faces come from: a detector, or landmarks that somebody has already."""

    detector: UriOrNone = Field(None, description="URI of the face detector's weights (.safetensors)")
    landmarks: UriOrNone = Field(
        None, description="URI of a table of landmarks by image key (.parquet, .csv or .json)"
    )
    min_score: float = Field(0.9, ge=0, le=1, description="Lowest score of a face that a detector finds")

    @model_validator(mode="after")
    def _check(self) -> FaceSource:
        if (self.detector is None) == (self.landmarks is None):
            raise ValueError("give the weights of a detector or a table of landmarks, one of them")
        return self


class Alignment(Settings):
    """How faces are cut out of photographs."""

    output_size: int = Field(
        256, ge=16, le=4096, description="Side of an aligned face in pixels: 256 for e4e, 1024 as FFHQ"
    )
    transform_size: int | None = Field(
        None, ge=16, le=8192, description="Side at which it is sampled, 4096 in FFHQ; none for the output's"
    )
    min_size: int = Field(
        32, ge=0, description="Smallest face, in pixels of the photograph; smaller ones are left as they are"
    )
    max_faces: int | None = Field(
        None, ge=1, description="Faces per photograph, the largest first; none for all"
    )


class Pasting(Settings):
    """How edited faces are put back into photographs."""

    feather: float = Field(
        0.08, gt=0, le=0.5, description="Width of the fade at the edge of a face, as a fraction of its side"
    )


def describe(error: ValidationError) -> str:
    """Return a validation error as one line: field, problem, value."""
    problems = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"]) or "settings"
        problems.append(f"{field}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(problems)
