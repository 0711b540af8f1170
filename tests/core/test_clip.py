"""CLIP: preprocessing against PIL's, unit embeddings, files read safely.

Measured before normalization, over the sizes below and images of noise, hard edges and smooth color:
1.1 / 255 to PIL's two passes in the order of the published CLIP (PIL rounds to 8 bits after each). The
bar is 2 / 255. Pillow 13 turns the order round for some tall images, so those are not compared with it.
"""

import hashlib
import re
import urllib.error

import clip
import numpy as np
import pytest
import torch
from clip.clip import _transform
from PIL import Image

from styleclip_core import load_clip
from styleclip_core.errors import CheckpointError, PromptError
from styleclip_core.images import from_uint8
from styleclip_core.models import clip_openai
from styleclip_core.models.clip import fold_batch_norm, save_clip
from styleclip_core.models.clip_files import read_clip_file
from styleclip_core.models.clip_names import OPENAI_NAMES, parse_clip
from styleclip_core.models.clip_openai import AssumedActivationWarning
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


@pytest.mark.parametrize("content", ["noise", "edges"])
@pytest.mark.parametrize("size", [(64, 64), (100, 48), (48, 100), (412, 35), (20, 31), (31, 20)])
def test_preprocessing_goes_over_rows_then_columns_whatever_pillow_does(clip_model, size, content):
    height, width = size
    levels = np.random.default_rng(height).integers(0, 256, (height, width, 3))
    pixels = (levels if content == "noise" else (levels > 127) * 255).astype(np.uint8)
    short = min(size)
    target = (32, 32 * height // width) if width == short else (32 * width // height, 32)
    image = Image.fromarray(pixels)
    for step in ((target[0], height), target):  # one axis at a time leaves Pillow no choice
        image = image.resize(step, Image.Resampling.BICUBIC)
    expected = _transform(32)(image)  # only crops and normalizes now
    ours = clip_model.preprocess(from_uint8(pixels[None]))[0]
    assert ((ours - expected) * STD * 255).abs().max() < 2


def test_an_image_of_clips_size_is_not_resampled(clip_model):
    pixels = _picture(32, 32)
    ours = clip_model.preprocess(from_uint8(pixels[None]))[0]
    torch.testing.assert_close(ours, _transform(32)(Image.fromarray(pixels)), atol=1e-6, rtol=0)


def test_embeddings_are_float32_when_the_network_is_half(tiny_clip_path):
    half = load_clip(tiny_clip_path)
    clip.model.convert_weights(half.model)
    assert half.model.dtype == torch.float16
    embedded = half.embed_images(torch.zeros(1, 3, 32, 32)), half.embed_text(["a face"])
    assert all(e.dtype == torch.float32 for e in embedded)
    assert all(abs(e.norm().item() - 1) < 1e-6 for e in embedded)


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
    with pytest.raises(PromptError, match="prompt 'a b a b"):  # 80 tokens; the longer text has 26
        clip_model.embed_text(["internationalization " * 12, "a b " * 40])


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
def test_a_foreign_torchscript_archive_is_no_clip(tmp_path):
    path = tmp_path / "foreign.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(CheckpointError, match="holds no CLIP weights"):
        load_clip(path)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("half", [False, True])
def test_a_torchscript_archive_is_read_for_its_tensors_alone(any_clip_path, tmp_path, monkeypatch, half):
    model = load_clip(any_clip_path)
    side = model.input_resolution
    example = {"encode_image": torch.zeros(1, 3, side, side), "encode_text": clip.tokenize(["a"])}
    archive = torch.jit.trace_module(model.model, example)
    torch.jit.save(archive.half() if half else archive, tmp_path / "archive.pt")
    expected = {k: v.float() for k, v in torch.jit.load(tmp_path / "archive.pt").state_dict().items()}
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("its code was loaded"))
    loaded = load_clip(tmp_path / "archive.pt")
    assert loaded.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())


def test_both_towers_load_from_plain_state_dicts_and_safetensors(any_clip_path, tmp_path):
    loaded = load_clip(any_clip_path)
    width = torch.load(any_clip_path, weights_only=True)["state_dict"]["text_projection"].shape[1]
    assert loaded.embedding_dim == width == loaded.embed_text(["a"]).shape[1]
    image = torch.rand(2, 3, 40, 40) * 2 - 1
    embedded = loaded.embed_images(image)
    assert embedded.shape == (2, width)
    save_clip(loaded, tmp_path / "clip.safetensors")
    again = load_clip(tmp_path / "clip.safetensors")
    torch.testing.assert_close(again.embed_images(image), embedded, atol=5e-3, rtol=0)  # stored in float16
    torch.save({"state_dict": loaded.model.state_dict()}, tmp_path / "nested.pt")
    assert torch.equal(load_clip(tmp_path / "nested.pt").embed_images(image), embedded)


def test_float32_weights_stay_float32(tiny_clip_path):
    state = torch.load(tiny_clip_path, weights_only=True)["state_dict"]
    loaded = load_clip(tiny_clip_path).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_all_nine_published_names_are_known():
    assert set(clip.available_models()) == {
        "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px",
    }  # fmt: skip
    assert set(OPENAI_NAMES) == set(clip.available_models())


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), RuntimeError("SHA256 checksum does not not match")]
)
def test_a_download_that_fails_says_what_to_do(monkeypatch, error):
    def fail(url, root):
        raise error

    monkeypatch.setattr(clip.clip, "_download", fail)
    with pytest.raises(CheckpointError, match=re.escape("'ViT-B/32' cannot be downloaded")):
        load_clip("ViT-B/32")


@pytest.mark.parametrize("change", [{"logit_bias": torch.zeros(1)}, {"text_projection": torch.tensor(1.0)}])
def test_weights_of_another_architecture_are_refused(tmp_path, tiny_clip_path, change):
    state = torch.load(tiny_clip_path, weights_only=True)["state_dict"]
    torch.save(state | change, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"odd\.pt is no CLIP of OpenAI's architecture"):
        load_clip(tmp_path / "odd.pt")


def test_folding_batch_norm_leaves_the_embedding(any_clip_path):
    tower = load_clip(any_clip_path).model.visual
    source = torch.Generator().manual_seed(5)
    for module in tower.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=source) / 5)
            module.running_var.copy_(torch.rand(module.num_features, generator=source) + 0.5)
            module.weight.copy_(torch.rand(module.num_features, generator=source) + 0.5)
    side = tower.input_resolution
    pixels = torch.randn(3, 3, side, side, generator=source)
    folded = fold_batch_norm(tower)
    torch.testing.assert_close(folded(pixels), tower(pixels), atol=1e-5, rtol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


@pytest.fixture
def bare(tiny_clip_path, tmp_path):
    """A state dict of OpenAI's shape that says nothing of its activation."""
    state = torch.load(tiny_clip_path, weights_only=True)["state_dict"]
    torch.save(state, tmp_path / "bare.pt")
    return tmp_path / "bare.pt"


def test_an_activation_that_a_file_does_not_state_is_assumed_with_a_warning_or_refused(bare, tiny_clip_path):
    with pytest.warns(AssumedActivationWarning, match=r"bare\.pt does not say .*; quickgelu is assumed"):
        assumed = load_clip(bare)
    with pytest.raises(
        CheckpointError, match=r"bare\.pt does not say .*LAION's and DataComp's with GELU.*quickgelu@PATH"
    ):
        load_clip(bare, assume=None)
    texts = ["a face", "a hat"]
    said = load_clip(f"quickgelu@{bare}", assume=None)
    assert torch.equal(said.embed_text(texts), assumed.embed_text(texts))
    assert torch.equal(said.embed_text(texts), load_clip(tiny_clip_path, assume=None).embed_text(texts))
    assert not torch.allclose(said.embed_text(texts), load_clip(f"gelu@{bare}").embed_text(texts), atol=1e-3)


def test_only_openais_way_of_computing_is_named_by_the_file_alone(bare):
    digest = hashlib.sha256(bare.read_bytes()).hexdigest()
    assert load_clip(f"quickgelu@{bare}").fingerprint == digest
    other = load_clip(f"gelu@{bare}").fingerprint
    assert other != digest
    assert len(other) == 64


def test_what_a_file_states_is_kept_and_not_contradicted(bare, tmp_path):
    save_clip(load_clip(f"gelu@{bare}"), tmp_path / "gelu.safetensors")
    loaded = load_clip(tmp_path / "gelu.safetensors", assume=None)
    assert loaded.activation == "gelu"
    with pytest.raises(CheckpointError, match="was trained with gelu, as it says itself, not with quickgelu"):
        load_clip(f"quickgelu@{tmp_path / 'gelu.safetensors'}")
    torch.save(
        {"state_dict": torch.load(bare, weights_only=True), "activation": "relu"}, tmp_path / "relu.pt"
    )
    with pytest.raises(
        CheckpointError, match="states the activation 'relu', which is none of quickgelu, gelu"
    ):
        load_clip(tmp_path / "relu.pt")


def test_openais_own_files_are_known_by_their_hash(bare, monkeypatch):
    digest = hashlib.sha256(bare.read_bytes()).hexdigest()
    monkeypatch.setitem(
        clip.clip._MODELS, "ViT-B/32", f"https://openai.invalid/clip/models/{digest}/ViT-B-32.pt"
    )
    assert load_clip(bare, assume=None).activation == "quickgelu"
    with pytest.raises(CheckpointError, match="was trained with quickgelu"):
        load_clip(f"gelu@{bare}")


def test_the_hashes_of_all_nine_are_read_off_their_addresses():
    published = clip_openai._published_hashes() - clip_openai._KNOWN
    assert len(published) == 9
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in published)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("activation", ["quickgelu", "gelu"])
def test_the_classes_of_an_archive_say_its_activation(bare, tmp_path, activation):
    model = load_clip(f"{activation}@{bare}")
    example = {"encode_image": torch.zeros(1, 3, 32, 32), "encode_text": clip.tokenize(["a"])}
    torch.jit.save(torch.jit.trace_module(model.model, example), tmp_path / "archive.pt")
    loaded = load_clip(tmp_path / "archive.pt", assume=None)
    assert loaded.activation == activation
    assert torch.equal(loaded.embed_text(["a face"]), model.embed_text(["a face"]))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": {f"module.{name}": each for name, each in state.items()}, "epoch": 1},
        lambda state: {"model": {f"module.{name}": each for name, each in state.items()}},
        lambda state: {"epoch": 2, "model": {"state_dict": state}},
        lambda state: {f"_orig_mod.module.{name}": each for name, each in state.items()},
        lambda state: {"model_state_dict": {f"clip_model.{name}": each for name, each in state.items()}},
    ],
)  # fmt: skip
def test_checkpoints_of_trainings_are_unwrapped(bare, tmp_path, wrap):
    state = torch.load(bare, weights_only=True)
    torch.save(wrap(state), tmp_path / "training.pt")
    found = read_clip_file(tmp_path / "training.pt").state
    assert all(torch.equal(found[name], each) for name, each in state.items())
    assert set(found) == set(state)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["visual.trunk.a", "text.b", "logit_bias"], "it is a SigLIP; .*open_clip:ARCHITECTURE@"),
        (["vision_model.a", "text_model.b", "logit_bias"], "a SigLIP as transformers stores it"),
        (["vision_model.a", "text_model.b"], "a CLIP as transformers stores it; give the folder with its"),
        (["image_encoder.model.a", "text_encoder.b"], "a MobileCLIP .*; write open_clip:MobileCLIP"),
        (["visual.conv1.weight", "visual.proj"], "an image tower alone; give a file of both towers"),
        (["token_embedding.weight", "positional_embedding"], "a text tower alone"),
        (["visual.a", "text.transformer.embeddings.b"], "a CLIP with a text tower of its own"),
        (["visual.a", "text.b", "text_decoder.c"], "a model that writes captions"),
    ],
)  # fmt: skip
def test_what_a_file_is_and_what_takes_it_is_said(tmp_path, names, message):
    torch.save({name: torch.zeros(2, 2) for name in names}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=rf"other\.pt is no CLIP of OpenAI's architecture: .*{message}"):
        load_clip(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "Git LFS pointer; fetch the file it names",
        ),
        (b"<!DOCTYPE html><html>", "a web page, as download sites send instead of a file"),
    ],
)
def test_what_is_no_file_of_weights_is_said(tmp_path, content, message):
    (tmp_path / "clip.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_clip(tmp_path / "clip.pt")


def test_heads_and_contexts_that_openais_do_not_have_are_refused(bare, tmp_path):
    state = torch.load(bare, weights_only=True)
    torch.save(state | {"visual.conv1.weight": torch.zeros(1280, 3, 14, 14)}, tmp_path / "huge.pt")
    with pytest.raises(CheckpointError, match=r"a ViT-H-14, whose heads .*open_clip:ViT-H-14-quickgelu@"):
        load_clip(f"quickgelu@{tmp_path / 'huge.pt'}")
    torch.save(state | {"positional_embedding": torch.zeros(248, 64)}, tmp_path / "long.pt")
    with pytest.raises(CheckpointError, match=r"reads texts of 248 tokens, OpenAI's CLIPs read 77"):
        load_clip(f"quickgelu@{tmp_path / 'long.pt'}")


def test_spellings_keep_their_parts_when_weights_move():
    chosen = parse_clip("open_clip:ViT-B-32@s3://models/own@2.pt")
    assert (chosen.architecture, chosen.place) == ("ViT-B-32", "s3://models/own@2.pt")
    assert chosen.at("/cache/1.pt").given == "open_clip:ViT-B-32@/cache/1.pt"
    assert parse_clip("gelu@./a.pt").activation == "gelu"
    hub = parse_clip("hf-hub:timm/ViT-B-16-SigLIP@main")
    assert (hub.repository, hub.revision) == ("timm/ViT-B-16-SigLIP", "main")
