"""Prompts in a language that CLIP was not trained on are told from English ones, by signs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from styleclip_core.prompts import foreign_language, language_warnings


@pytest.mark.parametrize(
    "prompt",
    [
        "grey hair", "face with a hat", "café", "a man in a café", "Beyoncé", "jalapeño green hair",
        "face with red lipstick", "a person with tanned skin", "goatee", "disgruntled", "curly hair", "Pixar",
        "a bespectacled elderly gentleman", "hi-top fade", "Na'vi from Avatar", "Modigliani painting",
        "Gandalf", "Taylor Swift", "Frida Kahlo", "Dalí moustache", "El Niño",
        "a photo of a face with heterochromia", "1980s", "?!", "",
    ],
)  # fmt: skip
def test_english_passes_with_names_accents_and_rare_words(prompt):
    assert foreign_language(prompt) == ""


@pytest.mark.parametrize(
    "prompt",
    [
        "graue Haare", "Gesicht mit Hut", "ein Gesicht mit Brille", "lächelndes Gesicht", "grüne Augen",
        "Frau mit blonden Haaren", "schwarze Haare", "cheveux gris", "visage avec des lunettes",
        "capelli biondi",
    ],
)  # fmt: skip
def test_german_and_others_show_by_their_pieces(prompt):
    assert "pieces" in foreign_language(prompt)


@pytest.mark.parametrize(
    "prompt", ["白髪", "眼鏡をかけた顔", "седые волосы", "борода", "γκρίζα μαλλιά", "회색 머리"]
)
def test_other_scripts_show_by_their_letters_even_in_one_word(prompt):
    assert "another script" in foreign_language(prompt)


def test_a_prompt_is_warned_of_once_with_the_remedy():
    (line,) = language_warnings(["face", "graue Haare", "graue Haare", ""])
    assert line == (
        "'graue Haare' seems to be in another language than English, which OpenAI's CLIP was trained on "
        "(CLIP reads its 2 words as 4 pieces): it may do little, or something else; say it in English"
    )


@given(st.text(max_size=30))
def test_any_text_has_an_answer(prompt):
    assert isinstance(foreign_language(prompt), str)
