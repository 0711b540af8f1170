"""Parameters of the flows: typed, documented, refused before a run starts if they are wrong.

Each model becomes a form in Prefect's UI. Units and ranges are in the field descriptions. The edit
file of the command line and the ``edits`` parameter of the flows are the same list of ``Edit``.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from styleclip_core.editing import ChannelSelection
from styleclip_core.errors import StyleCLIPError
from styleclip_core.inversion import RefinementSettings
from styleclip_core.mapper_training import LEVELS, Level, MapperTrainingSettings
from styleclip_core.mapper_training import PRESETS as MAPPER_PRESETS
from styleclip_core.models.mapper import PUBLISHED_STRENGTH
from styleclip_core.optimization import PRESETS, OptimizationSettings
from styleclip_core.relevance import RelevanceSettings
from styleclip_core.templates import TEMPLATE_SETS
from tasks.storage import read_bytes


class SettingsError(StyleCLIPError):
    """A parameter or an edit file is wrong."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _known_templates(name: str) -> str:
    if name not in TEMPLATE_SETS:
        raise ValueError(f"unknown template set {name!r}; there are {', '.join(TEMPLATE_SETS)}")
    return name


TemplateSet = Annotated[str, AfterValidator(_known_templates)]


class Models(_Settings):
    """Which networks to use. Files may lie on any fsspec file system."""

    generator: str = Field(
        description="URI of the StyleGAN2 weights (.safetensors, NVIDIA's .pkl, rosinality's .pt)"
    )
    clip: str = Field("ViT-B/32", description="CLIP name, or URI of its weights")
    encoder: str | None = Field(
        None, description="URI of the encoder (ours, e4e or pSp); none starts at the average w"
    )
    identity: str | None = Field(
        None, description="URI of the identity network (model_ir_se50.pth); none scores no identity"
    )
    perceptual: str | None = Field(
        None,
        description="URI of AlexNet's or VGG16's published weights, for LPIPS; none measures no LPIPS",
    )


class Execution(_Settings):
    """How the work is run; none of it changes a result."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU if there is one")
    shard_size: int = Field(16, ge=1, le=100_000, description="Images per shard, on average")


class Sampling(_Settings):
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


class Relevance(_Settings):
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
    batch_size: int = Field(32, ge=2, multiple_of=2, description="Images synthesized at once")
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
        return self.model_dump(include=names | ({"minimum", "derivatives"} if self.tolerance else set()))

    def fast(self) -> Relevance:
        """Return these settings in fast mode, as measured on the embedded world."""
        return self.model_copy(update={"derivatives": 64, "tolerance": 0.15, "minimum": 4})

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


class Inversion(_Settings):
    """How photographs become latents."""

    steps: int = Field(100, ge=0, description="Refinement steps after the encoder; 0 for the encoder alone")
    learning_rate: float = Field(0.05, gt=0, description="Adam's rate at its peak")
    latent_weight: float = Field(0.0005, ge=0, description="Pull towards the encoder's code")
    patience: int = Field(20, ge=1, description="Steps without improvement before an image stops")
    batch_size: int = Field(16, ge=1, description="Images refined at once")

    def settings(self) -> RefinementSettings:
        """Return what the core needs of this."""
        return RefinementSettings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            latent_weight=self.latent_weight,
            patience=self.patience,
        )


class Optimization(_Settings):
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

    def settings(self) -> OptimizationSettings:
        """Return what the core needs of this."""
        given = self.model_dump(exclude={"preset", "reference_compat"}, exclude_none=True)
        return replace(PRESETS[self.preset], **given)


class MapperTraining(_Settings):
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
    latents: str = Field("", description="URI of a folder of latents to train on; empty to sample codes")
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


class FaceSource(_Settings):
    """Where faces come from: a detector, or landmarks that somebody has already."""

    detector: str | None = Field(None, description="URI of the face detector's weights (.safetensors)")
    landmarks: str | None = Field(
        None, description="URI of a table of landmarks by image key (.parquet, .csv or .json)"
    )
    min_score: float = Field(0.9, ge=0, le=1, description="Lowest score of a face that a detector finds")

    @model_validator(mode="after")
    def _check(self) -> FaceSource:
        if (self.detector is None) == (self.landmarks is None):
            raise ValueError("give the weights of a detector or a table of landmarks, one of them")
        return self


class Alignment(_Settings):
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


class Pasting(_Settings):
    """How edited faces are put back into photographs."""

    feather: float = Field(
        0.08, gt=0, le=0.5, description="Width of the fade at the edge of a face, as a fraction of its side"
    )


def _as_tuple(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


Method = Literal["global", "mapper", "optimization"]
_GLOBAL_ALONE = ("alpha", "beta", "top_k", "include", "exclude")


class EditVariant(_Settings):
    """One edit by one method with one set of settings; those of the other methods are empty."""

    name: str
    neutral: str
    target: str
    alpha: float | None = None
    beta: float | None = None
    top_k: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    templates: TemplateSet = "styleclip-79"
    method: Method = "global"
    mapper: str | None = None
    strength: float | None = None
    optimization: Optimization | None = None

    def selection(self) -> ChannelSelection:
        """Return what the core needs of this."""
        return ChannelSelection(self.beta, self.top_k, self.include, self.exclude)

    def parameters(self) -> dict[str, Any]:
        """Return what decides the result, as JSON values."""
        if self.method == "global":  # as they were before there were other methods
            return self.model_dump(exclude={"method", "mapper", "strength", "optimization"})
        shared = self.model_dump(include={"name", "neutral", "target", "templates", "method"})
        if self.method == "mapper":
            return shared | {"strength": self.strength}
        return shared | self.optimization_parameters()

    def optimization_parameters(self) -> dict[str, Any]:
        """Return the settings of an optimization, resolved."""
        if self.optimization is None:
            raise SettingsError(f"{self.name} is no optimization")
        resolved = self.optimization.settings()
        names = [name for name in resolved.__dataclass_fields__]
        return {
            **{name: getattr(resolved, name) for name in names},
            "reference_compat": self.optimization.reference_compat,
        }

    @property
    def label(self) -> str:
        """Return a readable folder name, e.g. ``grey-hair_a3_b0.15``."""
        if self.method == "mapper":
            return f"{self.name}_m{self.strength:g}"
        if self.method == "optimization":
            return f"{self.name}_o{self.optimization_parameters()['steps']}"
        choice = f"b{self.beta:g}" if self.beta is not None else f"k{self.top_k}"
        return f"{self.name}_a{self.alpha:g}_{choice}"

    @property
    def summary(self) -> str:
        """Return the main settings for a person, e.g. ``a 3, b 0.15``."""
        if self.method == "mapper":
            return f"mapper x {self.strength:g}"
        if self.method == "optimization":
            return f"{self.optimization_parameters()['steps']} steps"
        choice = f"b {self.beta:g}" if self.beta is not None else f"top {self.top_k}"
        return f"a {self.alpha:g}, {choice}"


class Edit(_Settings):
    """One entry of an edit file: prompts, a method, and that method's settings."""

    name: str = Field("", description="Folder name of the edit; made from the target if empty")
    neutral: str = Field("face", min_length=1, description="What the prompt is compared with")
    target: str = Field(min_length=1, description="What the image should become")
    method: Method = Field("global", description="global (style direction), mapper, or optimization")
    alpha: float | tuple[float, ...] = Field(
        3.0, description="Strength in standard deviations of the most relevant channel; one or several"
    )
    beta: float | tuple[float, ...] | None = Field(
        None, description="Threshold on |relevance|, 0 to 1; one or several (0.15 if top_k is not given)"
    )
    top_k: int | None = Field(None, ge=1, description="Number of channels, instead of beta")
    include: tuple[str, ...] = Field((), description="Layers that may change, e.g. b4.*; none for all")
    exclude: tuple[str, ...] = Field((), description="Layers that stay, e.g. b64.* to leave colours alone")
    mapper: str | None = Field(None, description="URI of the mapper's weights, for method mapper")
    strength: float | tuple[float, ...] = Field(
        PUBLISHED_STRENGTH, description="Factor of the mapper's output, 0.1 as published; one or several"
    )
    optimization: Optimization | None = Field(None, description="Settings of method optimization")
    templates: TemplateSet | None = Field(
        None, description="Prompt templates; styleclip-79 for style directions, none for the other methods"
    )

    @model_validator(mode="after")
    def _check(self) -> Edit:
        if self.name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}", self.name):
            raise ValueError(
                f"edit name {self.name!r} must be a folder name of letters, digits, '-', '+' and '.'"
            )
        if self.top_k is not None and self.beta is not None:
            raise ValueError("give beta or top_k, one of them")
        if not _as_tuple(self.alpha) or not _as_tuple(self.strength):
            raise ValueError("alpha and strength must hold at least one value")
        for beta in _as_tuple(self.beta) if self.beta is not None else ():
            ChannelSelection(beta, None)
        if (self.mapper is not None) != (self.method == "mapper"):
            raise ValueError("method mapper needs the URI of a mapper, and no other method takes one")
        foreign = {
            "global": ("strength", "optimization"),
            "mapper": (*_GLOBAL_ALONE, "optimization"),
            "optimization": (*_GLOBAL_ALONE, "strength"),
        }[self.method]
        given = [name for name in foreign if name in self.model_fields_set]
        if given:
            raise ValueError(f"method {self.method} has no {given[0]}; leave it out")
        return self

    def variants(self) -> list[EditVariant]:
        """Return the edit at every alpha and beta, or every strength, it lists."""
        name = self.name or re.sub(r"[^a-z0-9]+", "-", self.target.lower()).strip("-")[:64] or "edit"
        shared: dict[str, Any] = {
            "name": name, "neutral": self.neutral, "target": self.target, "method": self.method,
            "templates": self.templates or ("styleclip-79" if self.method == "global" else "none"),
        }  # fmt: skip
        if self.method == "mapper":
            return [
                EditVariant(**shared, mapper=self.mapper, strength=each) for each in _as_tuple(self.strength)
            ]
        if self.method == "optimization":
            return [EditVariant(**shared, optimization=self.optimization or Optimization())]
        default = (0.15,) if self.top_k is None else (None,)
        betas = default if self.beta is None else _as_tuple(self.beta)
        channels = {"top_k": self.top_k, "include": self.include, "exclude": self.exclude}
        return [
            EditVariant(**shared, **channels, alpha=alpha, beta=beta)
            for beta in betas
            for alpha in _as_tuple(self.alpha)
        ]


def all_variants(edits: list[Edit]) -> list[EditVariant]:
    """Return every variant of a list of edits.

    Raises:
        SettingsError: If the list is empty, or two variants would write to one folder.
    """
    variants = [variant for edit in edits for variant in edit.variants()]
    labels = [variant.label for variant in variants]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise SettingsError(f"two edits write to the same folder {twice[0]!r}; give one of them another name")
    if not variants:
        raise SettingsError("there is no edit to do; list at least one with a target prompt")
    return variants


def load_edits(uri: str) -> list[Edit]:
    """Read an edit file: a YAML or JSON list, or a mapping with the list under ``edits``.

    Raises:
        SettingsError: If it is no such list; the message names the entry and the field.
    """
    try:
        content = yaml.safe_load(read_bytes(uri))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{uri} is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    entries = content.get("edits") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise SettingsError(f"{uri} must hold a list of edits, or a mapping with the list under 'edits'")
    edits = []
    for number, entry in enumerate(entries, start=1):
        try:
            edits.append(Edit.model_validate(entry))
        except ValidationError as error:
            raise SettingsError(f"{uri}, edit {number}: {describe(error)}") from error
    all_variants(edits)
    return edits


def describe(error: ValidationError) -> str:
    """Return a validation error as one line: field, problem, value."""
    problems = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"]) or "settings"
        problems.append(f"{field}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(problems)
