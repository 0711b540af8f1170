"""CLIPs of open_clip and transformers: compared with those packages' own models, transforms and tokenizers.

Networks are small forms of the published architectures, of the same classes, with generated weights.
"""

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub.constants as hub
import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from open_clip import factory, pretrained
from open_clip.transform import image_transform
from PIL import Image

from styleclip_core import load_clip
from styleclip_core.errors import CheckpointError, PromptError
from styleclip_core.images import from_uint8
from styleclip_core.models.clip import save_clip
from styleclip_core.models.clip_preprocessing import Preprocessing
from tests.core.generated_clips import (
    ARCHITECTURES,
    ENGLISH,
    LANGUAGES,
    PREPROCESSING,
    generated,
    write_open_clip,
    write_transformers,
)

FAMILIES = list(ARCHITECTURES)
MOST, RESIZED = 1 - 1e-5, 1 - 1e-4  # of a cosine to the package's own embedding


def picture(height, width):
    """Return an image with smooth color, a few edges and some noise, ``[H, W, 3]`` uint8."""
    source = np.random.default_rng(height * 1000 + width)
    coarse = Image.fromarray(source.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    smooth[height // 3 :, width // 2 :] //= 2
    return (smooth + source.integers(-8, 9, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    """Make the small architectures known to open_clip, by its own mechanism."""
    folder = tmp_path_factory.mktemp("architectures")
    for name, config in ARCHITECTURES.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield
    factory._MODEL_CONFIG_PATHS.remove(folder)
    for name in ARCHITECTURES:
        del factory._MODEL_CONFIGS[name]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    return {name: write_open_clip(root / name, name) for name in FAMILIES}


def reference(folder):
    """Return open_clip's own model, transform and tokenizer of a folder."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{folder}")


def cosines(ours, theirs):
    return torch.nn.functional.cosine_similarity(ours.double(), theirs.double()).min().item()


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_are_those_of_open_clips_own_model_transform_and_tokenizer(folders, name):
    model, transform, tokenizer = reference(folders[name])
    ours = load_clip(folders[name])
    side = ours.input_resolution
    with torch.no_grad():
        # a larger one is rounded by Pillow after each of its two passes, which the network sees
        for size, least in (((side, side), MOST), ((3 * side, 3 * side), RESIZED)):
            pixels = picture(*size)
            theirs = model.encode_image(transform(Image.fromarray(pixels))[None])
            assert cosines(ours.embed_images(from_uint8(pixels[None])), theirs) >= least
        assert cosines(ours.embed_text(ENGLISH), model.encode_text(tokenizer(ENGLISH))) >= MOST
    embedded = ours.embed_text(ENGLISH)
    assert embedded.shape == (3, ours.embedding_dim) == (3, ARCHITECTURES[name]["embed_dim"])
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    assert 1 - cosines(embedded[:1], embedded[1:2]) > 1e-3  # other texts are told apart
    assert ours.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (20, 20), (48, 100), (33, 31), (31, 70)])
def test_preprocessing_is_open_clips_to_two_levels_of_eight_bits(mode, interpolation, size):
    statistics = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # which add nothing to a comparison
    theirs = image_transform(
        32, is_train=False, resize_mode=mode, interpolation=interpolation, fill_color=90, **statistics
    )
    pixels = picture(*size)
    expected = theirs(Image.fromarray(pixels))
    wanted = Preprocessing(32, interpolation=interpolation, resize_mode=mode, fill=90)
    ours = wanted.resized((from_uint8(pixels[None]) + 1) / 2)[0]
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() * 255 < 2


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_flow_back_to_the_image(folders, name):
    clip = load_clip(folders[name])
    image = (torch.rand(1, 3, 80, 80) * 2 - 1).requires_grad_(True)
    clip.embed_images(image)[0, 0].backward()
    assert image.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
def test_embeddings_are_those_of_transformers_own_model(tmp_path, kind, activation):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = write_transformers(tmp_path / kind, kind, activation)
    model, ours = AutoModel.from_pretrained(folder).eval(), load_clip(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    for size in ((32, 32), (96, 96), (40, 90)):
        pixels = picture(*size)
        made = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(ours.preprocess(from_uint8(pixels[None])), made, atol=0.04, rtol=0)
    with torch.no_grad():
        theirs = model.get_image_features(
            pixel_values=ours.preprocess(from_uint8(pixels[None]))
        ).pooler_output
        assert cosines(ours.embed_images(from_uint8(pixels[None])), theirs) >= MOST
        if kind == "siglip":
            given = AutoTokenizer.from_pretrained(folder)(
                ENGLISH, padding="max_length", max_length=64, return_tensors="pt"
            )
            theirs = model.get_text_features(input_ids=given["input_ids"]).pooler_output
            assert cosines(ours.embed_text(ENGLISH), theirs) >= MOST
    assert ours.activation == activation.replace("_", "")


def test_a_checkpoint_of_a_training_loads_beside_the_name_of_its_architecture(tmp_path, folders):
    state = generated(ARCHITECTURES["tiny-ViT"]).state_dict()
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": {"state": {}}}, tmp_path / "epoch.pt"
    )
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = load_clip(folders["tiny-ViT"])
    loaded = load_clip(f"open_clip:tiny-ViT@{tmp_path / 'epoch.pt'}")
    assert torch.equal(loaded.embed_images(image), expected.embed_images(image))
    assert loaded.activation == "gelu"


def test_openais_path_and_open_clip_agree_on_weights_of_that_shape(tmp_path):
    module = generated(ARCHITECTURES["tiny-ViT-quickgelu"])
    torch.save(module.state_dict(), tmp_path / "clip.pt")
    image = torch.rand(2, 3, 50, 50) * 2 - 1
    for said, architecture in (("quickgelu", "tiny-ViT-quickgelu"), ("gelu", "tiny-ViT")):
        plain = load_clip(f"{said}@{tmp_path / 'clip.pt'}")
        other = load_clip(f"open_clip:{architecture}@{tmp_path / 'clip.pt'}")
        assert plain.activation == other.activation == said
        assert cosines(plain.embed_images(image), other.embed_images(image)) >= MOST
        assert cosines(plain.embed_text(ENGLISH), other.embed_text(ENGLISH)) >= MOST


def test_fingerprints_differ_where_what_is_computed_differs(tmp_path, folders):
    weights = folders["tiny-ViT"] / "open_clip_model.safetensors"
    squashed = tmp_path / "squashed"
    squashed.mkdir()
    config = json.loads((folders["tiny-ViT"] / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"resize_mode": "squash"}
    (squashed / "open_clip_config.json").write_text(json.dumps(config))
    (squashed / "open_clip_model.safetensors").symlink_to(weights)
    named = [
        folders["tiny-ViT"], squashed, f"open_clip:tiny-ViT-quickgelu@{weights}", f"quickgelu@{weights}",
        f"gelu@{weights}",
    ]  # fmt: skip
    found = [load_clip(each).fingerprint for each in named]
    assert len(set(found)) == len(found)
    assert load_clip(f"open_clip:tiny-ViT@{weights}").fingerprint == found[0]  # however it was named


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Return what puts a folder where the hub's client keeps a repository; the network is not asked."""
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    logging.getLogger("transformers").setLevel(logging.ERROR)

    def keep(name, folder):
        place = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        (place / "snapshots").mkdir()
        (place / "snapshots" / ("0" * 40)).symlink_to(folder)

    return keep


@pytest.mark.parametrize("name", ["tiny-RN", "tiny-SigLIP"])
def test_a_repository_of_the_hub_is_the_same_clip_as_its_folder(hub_cache, folders, name):
    hub_cache("own/clip", folders[name])
    loaded, expected = load_clip("hf-hub:own/clip"), load_clip(folders[name])
    assert loaded.fingerprint == expected.fingerprint
    assert torch.equal(loaded.embed_text(ENGLISH), expected.embed_text(ENGLISH))


def test_a_repository_of_transformers_loads_too(hub_cache, tmp_path):
    hub_cache("own/siglip", write_transformers(tmp_path / "siglip", "siglip"))
    loaded = load_clip("hf-hub:own/siglip@main")
    assert loaded.fingerprint == load_clip(tmp_path / "siglip").fingerprint


@pytest.mark.parametrize("quick", [False, True])
def test_a_tag_of_open_clip_decides_activation_and_preprocessing(hub_cache, folders, monkeypatch, quick):
    published = pretrained._pcfg(hf_hub="own/clip/", quick_gelu=quick, mean=(0.3, 0.3, 0.3))
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-ViT", {"laion2b_s1": published})
    hub_cache("own/clip", folders["tiny-ViT"])
    loaded = load_clip("open_clip:tiny-ViT/laion2b_s1")
    assert loaded.activation == ("quickgelu" if quick else "gelu")
    assert loaded.network.preprocessing.mean == (0.3, 0.3, 0.3)


@pytest.mark.parametrize("name", ["open_clip:ViT-B-32/laion2b_s34b_b79k", "hf-hub:laion/not-there"])
def test_what_cannot_be_downloaded_says_what_to_do(hub_cache, name):
    with pytest.raises(CheckpointError, match=f"{name} cannot be downloaded .*check the .*network"):
        load_clip(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-32/laion2b", r"no weights 'laion2b' of ViT-B-32; did you mean .*/laion2b_"),
        ("open_clip:ViT-B32/laion2b_s34b_b79k", "no architecture 'ViT-B32'; did you mean .*ViT-B-32"),
        ("open_clip:ViT-B-32", r"names no weights; write open_clip:ARCHITECTURE/TAG"),
        ("hf-hub:laion", "names no repository; write hf-hub:ORGANIZATION/NAME"),
        ("ViT-B32", r"neither a file nor a CLIP name; .*did you mean ViT-B/32"),
        ("ViT-L-14-336", r"did you mean .*ViT-L/14@336px"),
    ],
)  # fmt: skip
def test_near_names_are_suggested(name, message):
    with pytest.raises(CheckpointError, match=message):
        load_clip(name)


def test_a_text_that_would_be_cut_off_is_refused(folders):
    with pytest.raises(PromptError, match=r"'word word.*longer than CLIP's context of 77 tokens"):
        load_clip(folders["tiny-ViT"]).embed_text(["a face", "word " * 100])
    with pytest.raises(PromptError, match="context of 64 tokens"):
        load_clip(folders["tiny-SigLIP"]).embed_text(["a face with a hat " * 20])


@pytest.mark.parametrize("form", ["open_clip", "transformers"])
def test_threads_that_share_a_clip_get_their_own_tokens(folders, tmp_path, form):
    other = write_transformers(tmp_path / "clip", "siglip")
    network = load_clip(folders["tiny-SigLIP"] if form == "open_clip" else other).network
    texts = [ENGLISH[:1], ENGLISH[1:], LANGUAGES]
    expected = [network.tokenize(each) for each in texts]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(network.tokenize, texts * 40))
    assert all(torch.equal(each, expected[index % 3]) for index, each in enumerate(found))


def test_a_clip_of_many_languages_is_told_by_its_vocabulary(folders, monkeypatch):
    english = load_clip(folders["tiny-SigLIP"])
    assert not english.multilingual
    assert not load_clip(folders["tiny-ViT"]).multilingual
    monkeypatch.setattr("styleclip_core.models.clip_open_clip.MANY_LANGUAGES", 300)  # of 400 pieces here
    many = load_clip(folders["tiny-SigLIP"])
    assert many.multilingual
    embedded = many.embed_text(LANGUAGES)
    assert (embedded @ embedded.T).fill_diagonal_(0).max() < 1 - 1e-3  # no script is one unknown piece


def edited_config(folder, source, change):
    folder.mkdir()
    config = json.loads((source / "open_clip_config.json").read_text())
    change(config["model_cfg"])
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    for each in source.iterdir():
        if each.name != "open_clip_config.json":
            (folder / each.name).symlink_to(each)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["vision_cfg"].update(timm_model_name="hf-hub:evil/a"), "has a tower 'hf-hub:evil/a'"),
        (lambda c: c["text_cfg"].update(hf_model_name="evil/model"), "has a tower 'evil/model'"),
        (lambda c: c["text_cfg"].update(tokenizer_kwargs={"trust_remote_code": 1}), "trust_remote_code, wh"),
        (lambda c: c["text_cfg"].update(hf_tokenizer_name="/tmp/e"), "'/tmp/e', which can run"),
        (lambda c: c.pop("vision_cfg"), "describes no CLIP: vision_cfg or text_cfg is missing"),
        (lambda c: c["text_cfg"].update(width=96), "open_clip_model.safetensors is no .*shape"),
        (lambda c: c["text_cfg"].update(layers=30), "open_clip_model.safetensors is no .*missing"),
        (lambda c: c.update(nonsense=1), "cannot be built .*nonsense"),
    ],
)  # fmt: skip
def test_a_hostile_or_wrong_configuration_is_refused(tmp_path, folders, change, message):
    with pytest.raises(CheckpointError, match=message):
        load_clip(edited_config(tmp_path / "clip", folders["tiny-SigLIP"], change))


def test_code_beside_a_tokenizer_is_not_run(tmp_path, folders):
    folder = edited_config(tmp_path / "clip", folders["tiny-SigLIP"], lambda _: None)
    (folder / "tokenizer_config.json").unlink()
    described = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(CheckpointError, match=r"tokenizer .* cannot be loaded"):
        load_clip(folder)
    assert not (tmp_path / "ran").exists()


def test_weights_that_run_code_are_not_loaded(tmp_path, folders):
    folder = edited_config(tmp_path / "clip", folders["tiny-ViT"], lambda _: None)
    (folder / "open_clip_model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Evil()}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"open_clip_pytorch_model\.bin"):
        load_clip(folder)
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_another_model_says_what_it_holds(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="no weights file"):
        load_clip(tmp_path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"a model of the kind 'bert'; .*clip and siglip"):
        load_clip(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no open_clip_config\.json or config"):
        load_clip(tmp_path)


def test_a_clip_of_another_architecture_is_not_converted(tmp_path, folders):
    with pytest.raises(CheckpointError, match="no CLIP of OpenAI's architecture"):
        save_clip(load_clip(folders["tiny-SigLIP"]), tmp_path / "clip.safetensors")


def test_without_the_extra_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['open_clip'] = None\n"
        "from styleclip_core import load_clip\n"
        "try: load_clip('open_clip:ViT-B-32/laion2b_s34b_b79k')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print('transformers' in sys.modules, 'timm' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    line, imported = done.stdout.splitlines()
    assert line.startswith("CheckpointError open_clip:ViT-B-32/laion2b_s34b_b79k needs open_clip")
    assert "pip install 'styleclip-pipeline[openclip]'" in line
    assert imported == "False False"


def test_what_published_weights_want_is_known_of_every_small_family():
    assert set(PREPROCESSING) < set(ARCHITECTURES)
