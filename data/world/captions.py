"""What can be said of a portrait: attributes with synonyms, and captions made of the true ones.

An attribute is a test on strengths and several ways to say it. A caption names none to three
attributes that hold, in varied grammar, most of them inside one of OpenAI's ImageNet prompt
templates; every fifth template is held out of training, to measure on words CLIP has not seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from styleclip.data.world.renderer import INDEX, strengths
from styleclip_core.templates import TEMPLATE_SETS

_ALL_TEMPLATES = TEMPLATE_SETS["imagenet-80"]
HELD_OUT_TEMPLATES: tuple[str, ...] = _ALL_TEMPLATES[3::5]
TRAIN_TEMPLATES: tuple[str, ...] = tuple(t for t in _ALL_TEMPLATES if t not in HELD_OUT_TEMPLATES)
NOUNS = (
    "face", "face", "face", "person", "portrait", "head", "man", "woman", "guy", "lady", "human face",
)  # fmt: skip
_FRAMES = (
    "a photo of a {}", "a picture of a {}", "an image of a {}", "a portrait of a {}", "the {}", "this is a {}",
)  # fmt: skip
_EXTRA_WORDS = (
    "photo image picture hair eyes lips skin mouth person face man woman boy girl people human male female "
    "child kid elderly grinning laughing serious bald moustache mustache sunglasses cap helmet makeup tan "
    "tanned background wall color colour happy angry and in front of with wearing without"
)

Test = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Attribute:
    """Something that is true or false of a portrait.

    Attributes:
        name: Short name, e.g. ``"grey_hair"``.
        test: Strengths ``[B, K]`` -> whether it holds, ``[B]``.
        nouns: Phrases after "with", also used alone: ``"grey hair"``.
        adjectives: Words before the noun: ``"grey haired"``.
        verbs: Phrases after the noun: ``"wearing glasses"``.
    """

    name: str
    test: Test
    nouns: tuple[str, ...] = ()
    adjectives: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()

    @property
    def phrase(self) -> str:
        """Return a canonical way to say it of a face, e.g. ``"face with grey hair"``."""
        if self.nouns:
            return f"face with {self.nouns[0]}"
        return f"face {self.verbs[0]}" if self.verbs else f"{self.adjectives[0]} face"

    @property
    def phrases(self) -> tuple[str, ...]:
        """Return all its phrases."""
        return self.nouns + self.adjectives + self.verbs


def _above(name: str, bound: float) -> Test:
    return lambda s: s[:, INDEX[name]] > bound


def _below(name: str, bound: float) -> Test:
    return lambda s: s[:, INDEX[name]] < bound


def _natural(s: Tensor) -> Tensor:
    return (s[:, INDEX["hair_grey"]] < 0.3) & (s[:, INDEX["hair_red"]] < 0.3) & _undyed(s)


def _undyed(s: Tensor) -> Tensor:
    return s[:, INDEX["hair_dye"]] < 0.3


def _hair(low: float, high: float) -> Test:
    return lambda s: (s[:, INDEX["hair_light"]] > low) & (s[:, INDEX["hair_light"]] < high) & _natural(s)


def _dyed(low: float, high: float) -> Test:
    return lambda s: (
        (s[:, INDEX["dye_hue"]] > low) & (s[:, INDEX["dye_hue"]] < high) & (s[:, INDEX["hair_dye"]] > 0.6)
    )


def _grey(s: Tensor) -> Tensor:
    return (s[:, INDEX["hair_grey"]] > 0.6) & _undyed(s)


def _red(s: Tensor) -> Tensor:
    return (s[:, INDEX["hair_red"]] > 0.5) & (s[:, INDEX["hair_grey"]] < 0.3) & _undyed(s)


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute("grey_hair", _grey, ("grey hair", "gray hair", "silver hair"), ("grey haired", "gray haired")),
    Attribute("blond_hair", _hair(0.66, 9), ("blond hair", "blonde hair", "yellow hair", "golden hair"), ("blond", "blonde")),
    Attribute("black_hair", _hair(-9, 0.25), ("black hair", "dark hair"), ("black haired", "dark haired")),
    Attribute("brown_hair", _hair(0.32, 0.6), ("brown hair", "chestnut hair"), ("brown haired", "brunette")),
    Attribute("red_hair", _red, ("red hair", "ginger hair", "orange hair"), ("ginger", "red haired")),
    Attribute("pink_hair", _dyed(-9, 0.22), ("pink hair", "hair dyed pink"), ("pink haired",)),
    Attribute("blue_hair", _dyed(0.36, 0.66), ("blue hair", "hair dyed blue"), ("blue haired",)),
    Attribute("green_hair", _dyed(0.82, 9), ("green hair", "hair dyed green"), ("green haired",)),
    Attribute("long_hair", _above("hair_long", 0.64), ("long hair",), ("long haired",)),
    Attribute("short_hair", _below("hair_long", 0.36), ("short hair",), ("short haired",)),
    Attribute("big_hair", _above("hair_volume", 0.66), ("voluminous hair", "big hair", "fluffy hair", "thick hair")),
    Attribute("thin_hair", _below("hair_volume", 0.34), ("flat hair", "thin hair")),
    Attribute("smile", _above("smile", 0.63), ("a smile", "a big smile", "a happy expression"), ("smiling", "happy", "cheerful"), ("smiling",)),
    Attribute("sad", _below("smile", 0.36), ("a frown", "a sad expression"), ("sad", "frowning", "unhappy", "angry"), ("frowning",)),
    Attribute("open_mouth", _above("mouth_open", 0.66), ("an open mouth", "open mouth"), ("surprised", "talking")),
    Attribute("closed_mouth", _below("mouth_open", 0.32), ("a closed mouth", "closed mouth")),
    Attribute("red_lips", _above("lip_red", 0.6), ("red lips", "red lipstick", "lipstick", "makeup"), (), ("wearing lipstick", "wearing red lipstick")),
    Attribute("pale_lips", _below("lip_red", 0.15), ("pale lips",), (), ("wearing no lipstick",)),
    Attribute("big_eyes", _above("eye_size", 0.67), ("big eyes", "large eyes", "wide open eyes"), ("big eyed",)),
    Attribute("small_eyes", _below("eye_size", 0.33), ("small eyes", "tiny eyes")),
    Attribute("blue_eyes", _above("eye_blue", 0.63), ("blue eyes",), ("blue eyed",)),
    Attribute("brown_eyes", _below("eye_blue", 0.37), ("brown eyes", "dark eyes"), ("brown eyed",)),
    Attribute("thick_brows", _above("brow_thick", 0.66), ("thick eyebrows", "bushy eyebrows")),
    Attribute("thin_brows", _below("brow_thick", 0.34), ("thin eyebrows",)),
    Attribute("glasses", _above("glasses", 0.5), ("glasses", "eyeglasses", "spectacles"), (), ("wearing glasses", "wearing eyeglasses")),
    Attribute("no_glasses", _below("glasses", 0.1), ("no glasses",), (), ("without glasses",)),
    Attribute("beard", _above("beard", 0.5), ("a beard", "beard", "facial hair"), ("bearded",)),
    Attribute("no_beard", _below("beard", 0.1), ("no beard",), ("clean shaven",), ("without a beard",)),
    Attribute("hat", _above("hat", 0.5), ("a hat", "hat", "a blue hat", "a cap"), (), ("wearing a hat", "wearing a cap")),
    Attribute("no_hat", _below("hat", 0.1), ("no hat",), (), ("without a hat",)),
    Attribute("wide_face", _above("face_width", 0.67), ("a wide face", "a round face"), ("chubby", "fat")),
    Attribute("narrow_face", _below("face_width", 0.33), ("a narrow face", "a slim face"), ("slim",)),
    Attribute("dark_skin", _above("skin_dark", 0.64), ("dark skin", "black skin", "brown skin"), ("dark skinned",)),
    Attribute("pale_skin", _below("skin_dark", 0.34), ("pale skin", "light skin", "white skin"), ("pale", "light skinned")),
    Attribute("tilt_left", _below("tilt", 0.25), ("the head tilted left",), (), ("leaning left",)),
    Attribute("tilt_right", _above("tilt", 0.75), ("the head tilted right",), (), ("leaning right",)),
    Attribute("at_left", _below("shift_x", 0.22), (), (), ("on the left",)),
    Attribute("at_right", _above("shift_x", 0.78), (), (), ("on the right",)),
    Attribute("bg_red", _below("bg_hue", 0.2), ("a red background",), (), ("in front of a red background", "on red")),
    Attribute("bg_green", lambda s: _above("bg_hue", 0.38)(s) & _below("bg_hue", 0.62)(s), ("a green background",), (), ("in front of a green background", "on green")),
    Attribute("bg_blue", _above("bg_hue", 0.8), ("a blue background",), (), ("in front of a blue background", "on blue")),
    Attribute("bg_dark", _below("bg_light", 0.25), ("a dark background",), (), ("in front of a dark background",)),
    Attribute("bg_bright", _above("bg_light", 0.75), ("a bright background", "a light background"), (), ("in front of a bright background",)),
)  # fmt: skip


def truths(factors: Tensor) -> Tensor:
    """Return which attributes hold, ``[B, number of attributes]`` bool."""
    shown = strengths(factors)
    return torch.stack([attribute.test(shown) for attribute in ATTRIBUTES], dim=1)


def caption(
    true: Sequence[int],
    rng: random.Random,
    *,
    templates: Sequence[str] = TRAIN_TEMPLATES,
    count: int | None = None,
) -> tuple[str, list[int]]:
    """Say something true of a portrait.

    Args:
        true: Indices of the attributes that hold.
        rng: Source of all choices.
        templates: Prompt templates to choose from.
        count: How many attributes to name; drawn from 0 to 3 if None.

    Returns:
        The caption and the indices of the attributes it names.
    """
    wanted = rng.choices((0, 1, 2, 3), (0.06, 0.48, 0.28, 0.18))[0] if count is None else count
    named = rng.sample(list(true), min(wanted, len(true)))
    nouns: list[str] = []
    adjectives: list[str] = []
    verbs: list[str] = []
    for index in named:
        attribute = ATTRIBUTES[index]
        choices = [
            (kind, phrase)
            for kind, phrases in ((nouns, attribute.nouns), (adjectives, attribute.adjectives), (verbs, attribute.verbs))
            for phrase in phrases
        ]  # fmt: skip
        kind, phrase = rng.choice(choices)
        kind.append(phrase)
    if len(named) == 1 and nouns and rng.random() < 0.40:
        said = nouns[0]
    else:
        said = " ".join([*adjectives, rng.choice(NOUNS)])
        said += f" with {' and '.join(nouns)}" if nouns else ""
        said += f" {' and '.join(verbs)}" if verbs else ""
    return _framed(said, rng, templates), named


def _framed(said: str, rng: random.Random, templates: Sequence[str]) -> str:
    draw = rng.random()
    if draw < 0.62:
        return rng.choice(templates).format(said)
    if draw < 0.80:
        return said
    return f"a {said}" if draw < 0.90 else rng.choice(_FRAMES).format(said)


def vocabulary() -> set[str]:
    """Return every word that a caption can hold, and some that a user may try."""
    phrases = [phrase for attribute in ATTRIBUTES for phrase in attribute.phrases]
    frames = [text.replace("{}", "") for text in (*_ALL_TEMPLATES, *_FRAMES)]
    texts = [*phrases, *frames, *NOUNS, _EXTRA_WORDS]
    return {word for text in texts for word in text.replace(".", " . ").split()}
