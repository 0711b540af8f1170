"""Training of a latent mapper for one prompt (StyleCLIP, section 5).

For codes w the mapper M is trained to make w_hat = w + strength M(w) show the prompt t:

    clip (1 - cos(E_I(G(w_hat)), E_T(t))) + id (1 - <R(G(w_hat)), R(G(w))>) + l2 mean((w_hat - w)^2)

each a mean over the batch; in style space the L2 term is summed over the layers that move. Where an effect is
wanted, the CLIP term is how many logits are missing, as in ``styleclip_core.optimization``. A mapper of
relevant channels begins at the way of a matched edit, as long as images need it to show the effect, and its
L2 term is of what the networks add. The published optimizer is Ranger; for short trainings at high rates
there is its rectified part alone, RAdam.

A training is a value that can be stored between any two steps: weights, the best weights, moments, step,
curve. Which codes a step sees is a function of (seed, step), and so is the learning rate. So a
training that was stopped anywhere goes on as if it had not been, to the same bits on a CPU.

Shapes: n codes, B batch, L rows of w_plus, W w_dim, M style channels, D width of the CLIP embedding.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from styleclip_core.decisions import improves
from styleclip_core.descent import cosine_fall
from styleclip_core.editing import EditedLatents
from styleclip_core.errors import ArtifactConflictError, CheckpointError, TrainingDivergedError
from styleclip_core.models.mapper import Mapper, MapperConfig
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.ranger import BETAS, EPS, Ranger
from styleclip_core.relevant import RelevantChannels, logit, parts_of, shares_of_the_way
from styleclip_core.settings.mapper_training import LEVELS
from styleclip_core.settings.mapper_training import PRESETS as PRESETS
from styleclip_core.settings.mapper_training import MapperTrainingSettings as MapperTrainingSettings
from styleclip_core.style_space import StyleCode
from styleclip_core.tuned import AnyGenerator

Embedding = Callable[[Tensor], Tensor]  # images [B, 3, H, H] in -1..1 -> unit rows
CURVE_COLUMNS = ("step", "validation", "clip", "identity", "l2", "loss", "learning_rate")
_FORMAT, _HEADER = "styleclip-mapper-training-1", "styleclip"
_PUBLISHED_NAMES = {"coarse": "course"}  # sic, in every published checkpoint
_TRIED_ON = 32  # validation codes at most, by which the length of the way is chosen
_FIRST_ROW = {"coarse": 0, "medium": 4, "fine": 8}


@dataclass(frozen=True, slots=True)
class Losses:
    """Terms of the objective, unweighted, and their weighted sum."""

    clip: float
    identity: float
    l2: float
    total: float


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """State after a step.

    Attributes:
        step: Number of steps done.
        losses: Of the step's batch.
        validation: Of all validation codes, where this step ends with a validation.
        best: Lowest validation loss so far.
        improved: Whether it is this step's.
        finished: Whether the training ends here.
    """

    step: int
    losses: Losses
    validation: Losses | None
    best: float
    improved: bool
    finished: bool


class MapperTraining:
    """One training: ``run`` does its steps, ``to_bytes`` stores it, ``restore`` takes up a stored one.

    Attributes:
        mapper: What is trained.
        best: The mapper at its lowest validation loss; the first weights before any validation.
        step: Steps done.
        curve: A row per step and per validation, columns ``CURVE_COLUMNS``.
    """

    def __init__(
        self,
        generator: Generator,
        embed_images: Embedding,
        text: Tensor,
        codes: Tensor,
        validation: Tensor,
        settings: MapperTrainingSettings,
        *,
        embed_identity: Embedding | None = None,
        neutral: Tensor | None = None,
        scale: float = 100.0,
        channels: RelevantChannels | None = None,
    ) -> None:
        """Prepare a training.

        Args:
            generator: Draws the images; its weights stay as they are.
            embed_images: CLIP's image tower.
            text: Unit embedding of the prompt, ``[D]``.
            codes: w_plus to train on, ``[n, L, W]``.
            validation: w_plus to choose the best weights by, ``[n, L, W]``.
            settings: Losses, steps, rates.
            embed_identity: Identity network; needed if ``identity_weight`` is positive.
            neutral: Unit embedding of the neutral prompt, ``[D]``; needed for an effect.
            scale: What CLIP multiplies cosines by before a softmax, 100 for OpenAI's; for an effect.
            channels: What a mapper of kind ``style-relevant`` moves.

        Raises:
            ValueError: If codes have another shape than the generator's, or a term lacks its network,
                prompt or channels, or a level has no rows in this generator.
        """
        rows = (generator.num_ws, generator.config.w_dim)
        for name, each in (("codes", codes), ("validation", validation)):
            if each.ndim != 3 or not len(each) or each.shape[1:] != rows:
                raise ValueError(f"{name} must be [n, {rows[0]}, {rows[1]}], got {list(each.shape)}")
        if settings.identity_weight > 0 and embed_identity is None:
            raise ValueError(
                f"identity_weight is {settings.identity_weight:g}, but there is no identity network; "
                "give one (load_identity) or set the weight to 0"
            )

        if settings.needs_neutral and neutral is None:
            raise ValueError("an effect is seen from a neutral prompt; give its embedding")
        if settings.kind == "style-relevant" and channels is None:
            raise ValueError("kind is style-relevant, but no channels are given (relevant_channels)")

        self.generator, self.settings, self._scale = generator, settings, scale
        self._difference = text - neutral if neutral is not None and settings.needs_neutral else None
        self._embed_images, self._embed_identity = embed_images, embed_identity
        self._text, self._codes, self._validation = text, codes, validation
        self.mapper = new_mapper(generator, settings).to(generator.device)
        if channels is not None and settings.kind == "style-relevant":
            self._lay(channels)
        self.best = copy.deepcopy(self.mapper)

        # all that changes from here on is stored by ``to_bytes``
        weights, rate = self.mapper.parameters(), settings.learning_rate
        ranger = settings.optimizer == "ranger"
        self._optimizer: torch.optim.Optimizer = (
            Ranger(weights, rate) if ranger else torch.optim.RAdam(weights, rate, BETAS, EPS)
        )
        self.step, self.best_loss, self._stale = 0, math.inf, 0
        self.curve: list[tuple[float, ...]] = []

    @property
    def finished(self) -> bool:
        """Return whether there is no step left to do."""
        patience = self.settings.patience
        return self.step >= self.settings.steps or (patience is not None and self._stale >= patience)

    def run(self) -> Iterator[TrainingStep]:
        """Do the remaining steps and yield after each; between two of them the training can be stored.

        Raises:
            TrainingDivergedError: If a loss is no finite number; the weights are those before.
        """
        while not self.finished:
            rate = self._learning_rate()
            for group in self._optimizer.param_groups:
                group["lr"] = rate

            # looked at before the step is taken, so that the weights of before are kept
            loss, losses = self._losses(self.mapper, self._codes[self._batch()])
            if not math.isfinite(losses.total):
                raise TrainingDivergedError(
                    f"the loss of step {self.step + 1} is {losses.total} (CLIP {losses.clip:.3g}, L2 "
                    f"{losses.l2:.3g}); lower the learning rate, now {self.settings.learning_rate:g}"
                )

            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            self.step += 1
            self._note(losses, rate, validation=False)
            found, improved = None, False
            if self.step % self.settings.validate_every == 0 or self.step == self.settings.steps:
                found = self.validate()
                self._note(found, rate, validation=True)
                improved = bool(improves(found.total, self.best_loss))
                self._stale = 0 if improved else self._stale + 1
                if improved:
                    self.best_loss = found.total
                    self.best.load_state_dict(self.mapper.state_dict())
            yield TrainingStep(self.step, losses, found, self.best_loss, improved, self.finished)

    @torch.no_grad()
    def validate(self) -> Losses:
        """Return the losses of the current weights over all validation codes."""
        parts = self._validation.split(max(self.settings.batch_size, 16))
        found = [self._losses(self.mapper, part)[1] for part in parts]
        total = len(self._validation)
        return Losses(**{
            name: sum(getattr(losses, name) * len(part) for losses, part in zip(found, parts, strict=True))
            / total
            for name in ("clip", "identity", "l2", "total")
        })  # fmt: skip

    # ---- storing -----------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Return the whole training as the content of a safetensors file."""
        tensors = {f"mapper.{name}": tensor for name, tensor in self.mapper.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.state_dict().items()}
        for number, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        tensors["curve"] = torch.tensor(self.curve, dtype=torch.float64).view(-1, len(CURVE_COLUMNS))
        header = {
            "format": _FORMAT, "settings": asdict(self.settings), "step": self.step, "stale": self._stale,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "data": self._fingerprint(),
        }  # fmt: skip
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content: bytes = safetensors.torch.save(plain, {_HEADER: json.dumps(header, sort_keys=True)})
        return content

    def restore(self, content: bytes) -> None:
        """Take up a training that ``to_bytes`` stored, at its step.

        Raises:
            CheckpointError: If the content is damaged or no such training.
            ArtifactConflictError: If it was another training: other settings, codes or prompt.
        """
        tensors, header = _read(content)
        mine = json.loads(json.dumps(asdict(self.settings)))
        # more steps are no other training, and what there was no setting for was as it is by default
        usual = json.loads(json.dumps(asdict(MapperTrainingSettings())))
        other = {**usual, **header["settings"], "steps": mine["steps"]}
        if other != mine or header["data"] != self._fingerprint():
            changed = sorted(name for name in mine if other.get(name) != mine[name]) or ["codes or prompt"]
            raise ArtifactConflictError(
                f"the stored training has another {', '.join(changed)}; delete it to begin anew, or restore "
                "what it was begun with"
            )

        # weights, moments and the count of steps: with all three it goes on bit for bit
        try:
            for name, module in (("mapper.", self.mapper), ("best.", self.best)):
                module.load_state_dict(_under(tensors, name))
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _under(tensors, "optimizer.").items():
                number, _, part = name.partition(".")
                moments.setdefault(int(number), {})[part] = tensor
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
            self.curve = [tuple(row) for row in tensors["curve"].tolist()]
            self.step, self._stale = int(header["step"]), int(header["stale"])
            self.best_loss = math.inf if header["best_loss"] is None else float(header["best_loss"])
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"a stored training is damaged ({error}); delete it to begin anew"
            ) from error

    def _fingerprint(self) -> str:
        """Return numbers that tell one set of codes and prompt from another."""
        # a neutral prompt where it decides anything, so that older trainings go on
        known = [self._text, self._codes, self._validation]
        known += [self._difference] if self._difference is not None else []
        sums = [tensor.detach().double().cpu() for tensor in known]
        return ",".join(f"{len(each)}:{each.sum():.9e}:{each.square().sum():.9e}" for each in sums)

    # ---- one step ----------------------------------------------------------------------------------

    def _batch(self) -> Tensor:
        """Return the codes of this step: each once per epoch, in an order of (seed, epoch)."""
        size, total = self.settings.batch_size, len(self._codes)
        places = torch.arange(self.step * size, (self.step + 1) * size)
        orders = {int(epoch): self._order(int(epoch)) for epoch in (places // total).unique()}
        return torch.stack([orders[int(place) // total][int(place) % total] for place in places])

    def _order(self, epoch: int) -> Tensor:
        mixed = (self.settings.seed * 1_000_003 + epoch + 1) % (2**63)
        return torch.randperm(len(self._codes), generator=torch.Generator().manual_seed(mixed))

    def _learning_rate(self) -> float:
        settings = self.settings
        if settings.decay == 0:
            return settings.learning_rate
        return settings.learning_rate * cosine_fall(self.step / settings.steps, settings.decay)

    def _losses(self, mapper: Mapper, w_plus: Tensor) -> tuple[Tensor, Losses]:
        settings = self.settings
        before = self.generator.styles(w_plus)
        after, l2 = _moved(mapper, self.generator, w_plus, before, settings.strength)
        device = self.generator.device.type
        with torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            image = self.generator.synthesize(after)
            embedded = self._embed_images(image)
        clip = self._clip(embedded.float())
        identity = torch.zeros_like(clip)
        if self._embed_identity is not None and settings.identity_weight > 0:
            with torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                with torch.no_grad():
                    known = self._embed_identity(self.generator.synthesize(before))
                found = self._embed_identity(image)
            identity = (1 - (found.float() * known.float()).sum(dim=1)).mean()
        loss = settings.clip_weight * clip + settings.identity_weight * identity + settings.l2_weight * l2
        # together, so that the device is waited for once
        return loss, Losses(*torch.stack([clip, identity, l2, loss]).detach().tolist())

    def _clip(self, embedded: Tensor) -> Tensor:
        """Return the mean CLIP term of moved images."""
        effect, difference = self.settings.effect, self._difference
        if effect is None or difference is None:
            return (1 - embedded @ self._text.float()).mean()
        return (logit(effect) - self._scale * (embedded @ difference.float())).clamp(min=0).mean()

    @torch.no_grad()
    def _lay(self, channels: RelevantChannels) -> None:
        """Give the mapper its way, as long as validation codes need it to be on average."""
        codes = self.generator.styles(self._validation[:_TRIED_ON])
        known, difference = channels.to(self._text.float()), self._difference
        if difference is None:
            raise ValueError("relevant channels begin at an effect, and there is no prompt to see it by")
        styles = codes.editable()

        def seen(share: float) -> Tensor:
            moved = codes.add(known.width * known.begin(styles, share))
            return self._scale * (self._embed_images(self.generator.synthesize(moved)).float() @ difference)

        wanted = logit(self.settings.effect or 0.5)
        shares = shares_of_the_way(seen(0.0), seen, wanted, known.shares)
        first, rest = (part.mean().item() for part in parts_of(shares))

        # a step is multiplied by the strength when it is taken
        strength, laid = self.settings.strength, self.mapper.way
        laid.delta.copy_((first * known.delta + rest * known.further) / strength)
        laid.pull.copy_(first * known.pull / strength)
        laid.centre.copy_(known.centre)
        laid.width.copy_(known.width / strength)
        # the networks begin with no step of their own
        for index, _ in self.mapper.config.widths:
            last = getattr(self.mapper, f"mapper_{index}").mapping[-1]
            for parameter in last.parameters():
                parameter.zero_()

    def _note(self, losses: Losses, rate: float, *, validation: bool) -> None:
        self.curve.append((
            float(self.step), float(validation), losses.clip, losses.identity, losses.l2, losses.total, rate
        ))  # fmt: skip


def stored_step(content: bytes) -> int:
    """Return how many steps a training had done that ``to_bytes`` stored.

    Raises:
        CheckpointError: If the content is damaged or no such training.
    """
    _, header = _read(content)
    return int(header["step"])


def new_mapper(generator: Generator, settings: MapperTrainingSettings) -> Mapper:
    """Build a mapper for a generator with first weights of ``settings.seed``, as published: normal, no bias.

    Raises:
        ValueError: If a level has no rows in this generator.
    """
    without = [name for name in settings.levels if _FIRST_ROW[name] >= generator.num_ws]
    if settings.kind == "levels" and without:
        raise ValueError(
            f"this generator has {generator.num_ws} rows of w_plus, none of them {without[0]}; "
            f"leave that level out"
        )
    mapper = Mapper(_config(generator, settings))
    source = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        for name, parameter in sorted(mapper.named_parameters()):
            if name.endswith("weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=source) / 0.01)
            else:
                parameter.zero_()
    return mapper


def apply_mapper(
    mapper: Mapper, generator: AnyGenerator, source: EditedLatents, strength: float
) -> EditedLatents:
    """Return latents moved by ``strength`` times the mapper's step.

    Args:
        mapper: Trained, of W+ or of style space.
        generator: The one it was trained with.
        source: Latents to edit, and what earlier edits added to them.
        strength: 0.1 for the published edit; 0 leaves the latents alone.

    Raises:
        ValueError: If the mapper moves codes of another shape.
        LayoutMismatchError: If it was made for other style layers.
    """
    if mapper.in_style_space:
        return source.add(strength * mapper.style_step(source.codes(generator)).flat())
    return source.at(source.w_plus + strength * mapper.step(source.w_plus))


def _moved(
    mapper: Mapper, generator: Generator, w_plus: Tensor, codes: StyleCode, strength: float
) -> tuple[StyleCode, Tensor]:
    """Return the moved style codes, and the L2 term of the move."""
    if not mapper.in_style_space:
        step = strength * mapper.step(w_plus)
        return generator.styles(w_plus + step), step.square().mean()
    if mapper.config.kind == "style-relevant":
        added = mapper.added(codes)
        step = torch.zeros_like(codes.flat()).index_copy(
            1, codes.layout.editable_index.to(added.device), strength * mapper.way(codes.editable(), added)
        )
        l2 = torch.where(mapper.way.width > 0, added, 0.0).square().sum(dim=1).mean()
        return StyleCode.from_flat(codes.layout, codes.flat() + step), l2
    steps = mapper.style_step(codes)
    moved = StyleCode(codes.layout, {name: codes[name] + strength * steps[name] for name in codes})
    return moved, torch.stack([(strength * steps[name]).square().mean() for name in codes]).sum()


def _config(generator: Generator, settings: MapperTrainingSettings) -> MapperConfig:
    w_dim = generator.config.w_dim
    if settings.kind == "levels":
        chosen = [name for name in LEVELS if name in settings.levels]
        return MapperConfig("levels", tuple(_PUBLISHED_NAMES.get(name, name) for name in chosen), w_dim=w_dim)
    if settings.kind == "single":
        return MapperConfig("single", w_dim=w_dim)
    widths = tuple(
        (index, layer.channels)
        for index, layer in enumerate(generator.layout.layers)
        if settings.kind == "style-full" or not layer.is_torgb
    )
    return MapperConfig(settings.kind, widths=widths)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_HEADER])
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"a stored training is damaged ({error}); delete it to begin anew") from error
    if header.get("format") != _FORMAT:
        raise CheckpointError(
            f"this is no stored training (format {header.get('format')!r}, expected {_FORMAT!r}); "
            "give the bytes of to_bytes"
        )
    return tensors, header
