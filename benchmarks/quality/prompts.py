"""Forty prompts with a known truth, and which of them methods may be tuned on.

Of the 43 attributes that the world's captions name, these are the ones that one factor measures in one
direction. Left out: brown hair and a green background, which lie in the middle of their factor, and blue
hair, whose hue reads as undyed hair does. The split is by factor, so that nothing tuned on "smiling" is
judged on "sad": every third factor tunes, the others judge.
"""

from __future__ import annotations

from styleclip.data.world.captions import ATTRIBUTES
from styleclip.data.world.quality import Prompt
from styleclip.data.world.renderer import FACTORS

_HAIR = ("hair_light", "hair_red", "hair_grey", "hair_dye", "dye_hue")
_RELATED = {**dict.fromkeys(_HAIR, _HAIR), "hat": ("hair_volume",)}
_FACTORS = {
    "grey_hair": ("hair_grey", 1), "blond_hair": ("hair_light", 1), "black_hair": ("hair_light", -1),
    "red_hair": ("hair_red", 1), "pink_hair": ("dye_hue", -1), "green_hair": ("dye_hue", 1),
    "long_hair": ("hair_long", 1), "short_hair": ("hair_long", -1), "big_hair": ("hair_volume", 1),
    "thin_hair": ("hair_volume", -1), "smile": ("smile", 1), "sad": ("smile", -1),
    "open_mouth": ("mouth_open", 1), "closed_mouth": ("mouth_open", -1), "red_lips": ("lip_red", 1),
    "pale_lips": ("lip_red", -1), "big_eyes": ("eye_size", 1), "small_eyes": ("eye_size", -1),
    "blue_eyes": ("eye_blue", 1), "brown_eyes": ("eye_blue", -1), "thick_brows": ("brow_thick", 1),
    "thin_brows": ("brow_thick", -1), "glasses": ("glasses", 1), "no_glasses": ("glasses", -1),
    "beard": ("beard", 1), "no_beard": ("beard", -1), "hat": ("hat", 1), "no_hat": ("hat", -1),
    "wide_face": ("face_width", 1), "narrow_face": ("face_width", -1), "dark_skin": ("skin_dark", 1),
    "pale_skin": ("skin_dark", -1), "tilt_left": ("tilt", -1), "tilt_right": ("tilt", 1),
    "at_left": ("shift_x", -1), "at_right": ("shift_x", 1), "bg_red": ("bg_hue", -1),
    "bg_blue": ("bg_hue", 1), "bg_dark": ("bg_light", -1), "bg_bright": ("bg_light", 1),
}  # fmt: skip
_NAMED = [name for name in FACTORS if any(name == factor for factor, _ in _FACTORS.values())]
_TUNED = frozenset(_NAMED[1::3])

PROMPTS: tuple[Prompt, ...] = tuple(
    Prompt(each.name, "face", each.phrase, factor, sign, _RELATED.get(factor, ()))
    for each in ATTRIBUTES
    if each.name in _FACTORS
    for factor, sign in [_FACTORS[each.name]]
)


def tunes(prompt: Prompt) -> bool:
    """Return whether methods may be tuned on a prompt; the others judge."""
    return prompt.factor in _TUNED
