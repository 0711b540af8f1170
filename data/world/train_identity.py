"""Train the embedded world's identity network: portraits to unit vectors that tell people apart.

Who somebody is, in this world, is the shape of the face under everything that an edit or a photographer
may change. Identity are the three fixed shape factors of the renderer:

    face_width   proportions of the face
    eye_size     size of the eyes
    brow_thick   thickness of the brows

Nose and neck are the same in all portraits. Nuisances are all other factors: skin, hair (its colours,
dye, length and volume), expression (smile, mouth_open), make-up and eye colour (lip_red, eye_blue), what
is worn or grown (glasses, beard, hat), pose (shift_x, shift_y, tilt), background and light. Skin and
eye colour are among them because the world's edits change them: identity is to say whether an edit kept
the person, not whether it did nothing.

The loss is supervised contrastive (Khosla et al. 2020, equation 2) over people drawn anew in every step,
so there is no list of people to remember: of all portraits in the batch, those of the same person with
other nuisances are to be the nearest. People come in families that differ in one shape alone, and a
linear head beside the embedding's reads the shapes off the same features (it is thrown away): without
them, the easiest shape would do for most comparisons and the others would fade. Portraits are blurred,
tinted and made noisy as a soft generator would, since the network is to judge images of the generator.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from styleclip.data.world.renderer import INDEX, NUM_FACTORS, render
from styleclip.data.world.training import Draw, Run, Schedule, blur_and_noise, device, mixed_precision
from styleclip_core.models.identity import CompactIdentity, IdentityConfig, save_identity

IDENTITY: tuple[str, ...] = ("face_width", "eye_size", "brow_thick")
SHAPES = [INDEX[name] for name in IDENTITY]
SEED = 51
SCHEDULE = Schedule(steps=1200, learning_rate=2e-3)
FAMILIES, PORTRAITS = 8, 4  # in a batch; portraits of each person
MIN_DIFFERENCE = 0.2  # of the shape in which a relative differs
TEMPERATURE = 0.1


def portraits_of(people: Tensor, nuisances: Tensor) -> Tensor:
    """Return the factors of portraits, ``[B, K]``: shapes of ``people``, everything else of ``nuisances``.

    Args:
        people: Shape factors in the order of ``IDENTITY``, ``[B, 3]`` in 0..1.
        nuisances: Factors, ``[B, K]`` in 0..1, whose shapes are ignored.
    """
    factors = nuisances.clone()
    factors[:, SHAPES] = people
    return factors


def supervised_contrastive(embedded: Tensor, person: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the supervised contrastive loss, a scalar (Khosla et al. 2020, equation 2).

    Args:
        embedded: Unit rows, ``[B, D]``.
        person: Number of the person on each portrait, ``[B]``; everyone is there at least twice.
        temperature: Of the softmax over cosines.
    """
    itself = torch.eye(len(embedded), dtype=torch.bool, device=embedded.device)
    same = (person[:, None] == person) & ~itself
    log_share = F.log_softmax((embedded @ embedded.t() / temperature).masked_fill(itself, -torch.inf), dim=1)
    return -(log_share.masked_fill(~same, 0).sum(dim=1) / same.sum(dim=1)).mean()


def families(step: Draw) -> Tensor:
    """Return the shapes of people: in each family one, and one for every shape that differs, ``[F 4, 3]``."""
    shapes = len(IDENTITY)
    first = step.uniform(FAMILIES, 1, shapes).expand(-1, shapes + 1, -1).clone()
    shift = MIN_DIFFERENCE + (1 - 2 * MIN_DIFFERENCE) * step.uniform(FAMILIES, shapes)
    for index in range(shapes):  # around the circle 0..1, so that every shape stays uniform
        first[:, index + 1, index] = (first[:, index + 1, index] + shift[:, index]) % 1
    return first.flatten(0, 1)


def batch(step: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Return portraits ``[B, 3, 64, 64]``, who is on each ``[B]``, and their shapes ``[B, 3]``."""
    people = families(step)
    person = torch.arange(len(people)).repeat_interleave(PORTRAITS)
    factors = portraits_of(people[person], step.uniform(len(person), NUM_FACTORS))
    return blur_and_noise(render(factors), step), person, people[person]


def train(build: Path) -> Path:
    """Train or resume, and write ``identity.safetensors``; returns its path."""
    where = device()
    torch.manual_seed(SEED)
    network = CompactIdentity(IdentityConfig()).to(where).train()
    reader = nn.Linear(network.config.hidden, len(IDENTITY)).to(where)
    optimizer = torch.optim.AdamW([*network.parameters(), *reader.parameters()], weight_decay=0.02)
    run = Run(
        "identity", build / "identity.checkpoint.pt",
        {"identity": network, "reader": reader, "optimizer": optimizer},
    )  # fmt: skip
    run.resume()
    for step in run.steps(SCHEDULE, seed=SEED):
        images, person, shapes = batch(step)
        with mixed_precision(where):
            features = network.features(images.to(where))
            embedded, reading = network.head(features), reader(features)
        loss = supervised_contrastive(F.normalize(embedded.float(), dim=1), person.to(where))
        error = (reading.float() - shapes.to(where)).square().mean(dim=0)
        loss = loss + 12 * error.sum()  # in variances of a number in 0..1
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        run.loss = loss.item()
    path = build / "identity.safetensors"
    save_identity(network.cpu().eval(), path)
    return path
