"""The few lines of a notebook do what the core's own calls do."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from styleclip import data
from styleclip_core import Studio
from styleclip_core.editing import ChannelSelection, select_channels
from styleclip_core.errors import ImageDecodeError, NoRelevantChannelError
from styleclip_core.images import decode_image, fit
from styleclip_core.instant import instant_relevance
from styleclip_core.prompts import text_direction
from styleclip_core.settings.inversion import RefinementSettings

ROOT = Path(__file__).parents[2]
PHOTO = sorted(data.PHOTOGRAPHS.glob("*.png"))[0]
QUICK = RefinementSettings(steps=2)


@pytest.fixture(scope="module")
def studio() -> Studio:
    """The embedded world."""
    return Studio.load(data.GENERATOR, clip=data.CLIP, encoder=data.ENCODER, device="cpu")


def test_six_lines_edit_a_photograph(tmp_path):
    studio = Studio.load(data.GENERATOR, clip=data.CLIP, encoder=data.ENCODER)
    portrait = studio.invert(PHOTO, QUICK)
    edited = studio.edit(portrait, "person with glasses", neutral="person", alpha=4, beta=0.1)
    edited.image().save(tmp_path / "glasses.png")

    before, after = (studio.clip.embed_images(each.tensor()) for each in (portrait, edited))
    text = text_direction(studio.clip, neutral="person", target="person with glasses").direction
    assert ((after - before) @ text).item() > 0.05
    with Image.open(tmp_path / "glasses.png") as saved:
        assert saved.size == studio.generator.image_size[::-1]


def test_an_edit_is_the_core_s_own(studio):
    portrait = studio.sample(2, seed=1)
    edited = studio.edit(portrait, "smiling person", neutral="person", alpha=2.5, beta=0.1)
    text = text_direction(studio.clip, neutral="person", target="smiling person").direction
    codes, std = studio._codes(16), studio._std()
    relevance = instant_relevance(studio.generator, studio.clip.embed_whole, codes, text, std, probes=16)
    delta = select_channels(studio.generator.layout, relevance, std, ChannelSelection(0.1)).delta
    styles = studio.generator.styles(portrait.latents.w_plus).add(2.5 * delta)
    assert torch.allclose(edited.tensor(), studio.generator.synthesize(styles), atol=1e-5)
    assert torch.equal(portrait.tensor(), studio.sample(2, seed=1).tensor())  # a value, never changed


def test_photographs_may_be_paths_pictures_and_tensors(studio):
    picture = decode_image(PHOTO.read_bytes())
    tensor = fit(picture, *studio.generator.image_size)
    several = studio.invert([PHOTO, picture, tensor], QUICK).tensor()
    assert len(several) == 3
    assert torch.allclose(several[0], several[1], atol=1e-5)
    assert torch.allclose(several[0], several[2], atol=1e-5)


def test_without_an_encoder_inversion_starts_at_the_average(studio):
    bare = Studio(studio.generator, studio.clip)
    first = bare.invert(PHOTO, RefinementSettings(steps=0))
    assert torch.equal(first.latents.w_plus[0, 0], studio.generator.mapping.w_avg)


def test_a_notebook_shows_images_side_by_side(studio):
    shown = Image.open(io.BytesIO(studio.sample(3)._repr_png_()))
    assert shown.size == (3 * studio.generator.image_size[1], studio.generator.image_size[0])


def test_what_cannot_be_edited_says_so(studio, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(ImageDecodeError):
        studio.invert(tmp_path / "x.png")
    with pytest.raises(NoRelevantChannelError, match="give beta <="):
        studio.edit(studio.sample(), "person with glasses", neutral="person", beta=1.0)


def test_the_readme_s_lines_run(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text()
    (block,) = [part for part in text.split("\n\n") if "Studio.load(" in part]
    monkeypatch.chdir(ROOT)
    lines = "\n".join(line.removeprefix("    ") for line in block.splitlines())
    exec(lines.replace("grey.png", str(tmp_path / "grey.png")), {})
    with Image.open(tmp_path / "grey.png") as saved:
        assert saved.size == (64, 64)
