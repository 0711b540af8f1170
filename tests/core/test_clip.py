"""CLIP: preprocessing against PIL's, unit embeddings, files read safely.

Measured: the largest difference to CLIP's own PIL preprocessing over the sizes below is under
2 / 255 before normalization (PIL rounds to 8 bits after each of its two passes).
"""

import numpy as np
import pytest
import torch
from clip.clip import _transform
from PIL import Image

from styleclip_core import load_clip
from styleclip_core.errors import CheckpointError, PromptError
from styleclip_core.images import from_uint8
from styleclip_core.prompts import embed_prompt, text_direction
from styleclip_core.templates import TEMPLATE_SETS

STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def _picture(height, width):
    source = np.random.default_rng(height * 1000 + width)
    coarse = source.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = source.integers(-25, 26, (height, width, 3))
    return (np.asarray(smooth).astype(int) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (20, 20), (1024, 1024), (48, 100), (100, 48), (33, 31)])
def test_preprocessing_equals_clips_own(clip_model, size):
    pixels = _picture(*size)
    expected = _transform(32)(Image.fromarray(pixels))
    ours = clip_model.preprocess(from_uint8(pixels[None]))[0]
    assert ours.shape == expected.shape
    difference = ((ours - expected) * STD * 255).abs()
    assert difference.max() < 2
    assert difference.mean() < 0.5


def test_embeddings_are_unit_rows_and_differentiable(clip_model):
    images = torch.rand(3, 3, 40, 40).mul(2).sub(1).requires_grad_(True)
    embedded = clip_model.embed_images(images)
    assert embedded.shape == (3, clip_model.embedding_dim) == (3, 16)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    embedded[:, 0].sum().backward()
    assert images.grad.abs().sum() > 0
    texts = clip_model.embed_text(["a face", "grey hair"])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    assert texts.dtype == torch.float32


def test_a_prompt_that_is_too_long_is_named(clip_model):
    with pytest.raises(PromptError, match=r"'word word.*longer than CLIP's context of 77 tokens"):
        clip_model.embed_text(["word " * 100])


def test_the_published_template_sets():
    assert len(TEMPLATE_SETS["imagenet-80"]) == 80
    missing = set(TEMPLATE_SETS["imagenet-80"]) - set(TEMPLATE_SETS["styleclip-79"])
    assert missing == {"a photo of many {}."}
    assert all("{}" in template for templates in TEMPLATE_SETS.values() for template in templates)


def test_ensembles_average_and_normalize(clip_model):
    embedded = embed_prompt(clip_model, "face", "styleclip-79")
    each = clip_model.embed_text([t.replace("{}", "face") for t in TEMPLATE_SETS["styleclip-79"]])
    torch.testing.assert_close(embedded, torch.nn.functional.normalize(each.mean(dim=0), dim=0))
    assert embed_prompt(clip_model, "a {curly} face", "none").shape == (16,)


def test_swapped_prompts_negate_the_text_direction(clip_model):
    there = text_direction(clip_model, neutral="face", target="grey hair", templates="none")
    back = text_direction(clip_model, neutral="grey hair", target="face", templates="none")
    torch.testing.assert_close(there.direction, -back.direction)
    assert there.norm == pytest.approx(back.norm)


def test_prompts_that_name_no_direction_are_refused(clip_model):
    with pytest.raises(PromptError, match="cannot tell 'face' from 'face'"):
        text_direction(clip_model, neutral="face", target="face", templates="none")
    with pytest.raises(PromptError, match="prompt is empty"):
        embed_prompt(clip_model, " ")
    with pytest.raises(ValueError, match="unknown template set 'x'; there are imagenet-80"):
        embed_prompt(clip_model, "face", "x")


def test_loading_says_what_is_wrong(tmp_path, tiny_clip_path):
    with pytest.raises(CheckpointError, match=r"neither a file nor a CLIP name; the names are RN50"):
        load_clip("ViT-B/33")
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_clip(tmp_path / "text.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="'text_projection' is missing"):
        load_clip(tmp_path / "other.pt")
    assert len(load_clip(tiny_clip_path).fingerprint) == 64


@pytest.mark.filterwarnings("ignore::FutureWarning")  # writing TorchScript is deprecated, reading it is not
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_foreign_torchscript_archive_is_not_run(tmp_path):
    path = tmp_path / "foreign.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_clip(path)
