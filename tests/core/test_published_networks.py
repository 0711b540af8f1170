"""The published encoders, identity network and latent mappers against golden arrays of their own code.

The golden arrays were computed on weights that ``tests/golden/fill.py`` makes of names and shapes. Every
figure is shown at the end of a run; ``make parity`` shows them alone.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill, fill_state
from published_files import state_dict_of

from styleclip_core import load_encoder, load_generator, load_identity, load_mapper
from styleclip_core.errors import CheckpointError, LayoutMismatchError
from styleclip_core.models.checkpoints import export_rosinality
from styleclip_core.models.identity import IdentityNetwork, save_identity
from styleclip_core.models.mapper import Mapper, save_mapper
from styleclip_core.models.psp import PspConfig, PspEncoder, save_psp
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from styleclip_core.style_space import StyleCode

GOLDEN = Path(__file__).parent.parent / "golden"


def _weights(name, equalized):
    shapes = {k: tuple(v) for k, v in json.loads((GOLDEN / f"{name}.keys.json").read_text()).items()}
    state = fill_state(shapes, equalized=equalized)
    return {k: torch.from_numpy(np.asarray(v)) for k, v in state.items()}


def _photograph(shape):
    return torch.from_numpy(np.tanh(fill("input.image", shape, equalized=True)))


@pytest.mark.parametrize("name", ["Encoder4Editing", "GradualStyleEncoder"])
def test_encoders_equal_the_published_ones(parity, golden_arrays, name, tmp_path):
    state = _weights(f"encoder_{name}", lambda key: "linear" in key)
    checkpoint = {
        "state_dict": state_dict_of({f"encoder.{k}": v for k, v in state.items()}),
        "latent_avg": torch.zeros(18, 512),
        "opts": {"encoder_type": name, "stylegan_size": 1024, "start_from_latent_avg": True},
    }
    torch.save(checkpoint, tmp_path / "e.pt")
    del checkpoint, state
    encoder = load_encoder(tmp_path / "e.pt")
    (tmp_path / "e.pt").unlink()
    codes = encoder.encode(_photograph((1, 3, 256, 256)))
    parity(f"{name}: codes", codes, golden_arrays(f"encoder_{name}")["codes"])


def test_identity_equals_arcface(parity, golden_arrays, tmp_path):
    torch.save(state_dict_of(_weights("arcface_ir_se50", False)), tmp_path / "model_ir_se50.pth")
    network = load_identity(tmp_path / "model_ir_se50.pth")
    embedded = network.embed(_photograph((2, 3, 256, 256)))
    parity("IR-SE50: embedding", embedded, golden_arrays("arcface_ir_se50")["embedding"])
    assert (embedded.norm(dim=1) - 1).abs().max() < 1e-6
    save_identity(network, tmp_path / "i.safetensors")
    (tmp_path / "model_ir_se50.pth").unlink()
    assert torch.equal(
        load_identity(tmp_path / "i.safetensors").embed(_photograph((2, 3, 256, 256))), embedded
    )


def test_identity_of_large_images_is_that_of_their_average(tmp_path):
    torch.manual_seed(0)
    network = IdentityNetwork().eval()
    small = torch.rand(1, 3, 256, 256) * 2 - 1
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.no_grad():
        torch.testing.assert_close(network.embed(large), network.embed(small), atol=1e-5, rtol=0)
    torch.save({"x": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: weights do not fit the IR-SE50.*give ArcFace's"):
        load_identity(tmp_path / "other.pth")


@pytest.mark.parametrize("form", ["checkpoint", "mapper alone", "safetensors"])
@pytest.mark.parametrize("name", ["LevelsMapper", "LevelsMapper_medium_only", "SingleMapper"])
def test_mappers_of_w_plus_equal_the_published_ones(parity, golden_arrays, tmp_path, name, form):
    golden = golden_arrays(f"mapper_{name}")
    mapper = _mapper(_weights(f"mapper_{name}", True), form, tmp_path)
    step = mapper.step(torch.from_numpy(golden["w_plus"]))
    parity(f"{name}: step ({form})", step, golden["delta"])
    if name == "LevelsMapper_medium_only":
        assert mapper.config.levels == ("medium",)
        assert not step[:, :4].any()
        assert not step[:, 8:].any()


@pytest.mark.parametrize("form", ["checkpoint", "safetensors"])
@pytest.mark.parametrize("name", ["WithoutToRGBStyleSpaceMapper", "FullStyleSpaceMapper"])
def test_mappers_of_style_codes_equal_the_published_ones(parity, golden_arrays, tmp_path, name, form):
    golden = golden_arrays(f"mapper_{name}")
    mapper = _mapper(_weights(f"mapper_{name}", True), form, tmp_path)
    with torch.device("meta"):
        layout = Generator(GeneratorConfig(resolution=1024)).layout
    codes = {layer.name: torch.from_numpy(golden[f"s.{i}"]) for i, layer in enumerate(layout.layers)}
    step = mapper.style_step(StyleCode(layout, codes))
    expected = np.concatenate([golden[f"delta.{i}"] for i in range(len(layout.layers))], axis=1)
    parity(f"{name}: step ({form})", step.flat(), expected)
    with torch.device("meta"):
        other = Generator(GeneratorConfig(resolution=256)).layout
    with pytest.raises(LayoutMismatchError, match="give the generator it was trained with"):
        mapper.style_step(StyleCode(other, {la.name: torch.zeros(1, la.channels) for la in other.layers}))


def _mapper(state, form, folder):
    path = folder / "mapper.pt"
    if form == "safetensors":
        save_mapper(Mapper.from_state(state), folder / "mapper.safetensors")
        return load_mapper(folder / "mapper.safetensors")
    if form == "mapper alone":
        torch.save(state_dict_of(state), path)
    else:  # as the published training writes it, generator and all
        decoder = {
            "decoder.style.1.weight": torch.zeros(2, 2),
            "decoder.input.input": torch.zeros(1, 2, 4, 4),
        }
        named = {f"mapper.{k}": v for k, v in state.items()} | decoder
        torch.save({"state_dict": state_dict_of(named), "opts": {"description": "afro"}}, path)
    return load_mapper(path)


def test_what_is_no_mapper_is_refused(tmp_path):
    torch.save({"state_dict": {"decoder.x": torch.zeros(1)}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: these weights are of no latent mapper"):
        load_mapper(tmp_path / "x.pt")
    mapper = Mapper.from_state(_weights("mapper_SingleMapper", True))
    with pytest.raises(ValueError, match=r"w_plus must be \[B, L, 512\], got \[2, 5\]"):
        mapper.step(torch.zeros(2, 5))


# ---- encoders: the forms of their checkpoints, on two heads only --------------------------------------


@pytest.fixture(scope="module")
def two_heads():
    torch.manual_seed(0)
    encoder = PspEncoder(PspConfig("e4e", 2)).eval().requires_grad_(False)
    encoder.latent_avg.normal_()
    return encoder


def _checkpoint(encoder, **changes):
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items() if k != "latent_avg"}
    opts = {"encoder_type": "Encoder4Editing", "stylegan_size": 8, "start_from_latent_avg": True}
    content = {"state_dict": state, "latent_avg": encoder.latent_avg, "opts": opts} | changes
    return {k: v for k, v in content.items() if v is not None}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"opts": argparse.Namespace(encoder_type="Encoder4Editing", stylegan_size=8)},
        {"opts": {"stylegan_size": 8, "progressive_steps": [0, 20000]}},  # before the type was stored
        {
            "global_step": 200_000,
            "best_val_loss": 0.3,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        },
    ],
    ids=["dict", "namespace", "old", "with training data"],
)
def test_forms_of_an_encoders_options(two_heads, tmp_path, changes):
    torch.save(_checkpoint(two_heads, **changes), tmp_path / "e.pt")
    loaded = load_encoder(tmp_path / "e.pt")
    assert loaded.config == two_heads.config
    assert all(torch.equal(v, two_heads.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_an_encoder_says_which_kind_it_is_or_is_asked(two_heads, tmp_path):
    torch.save(_checkpoint(two_heads, opts=None), tmp_path / "e.pt")
    with pytest.raises(CheckpointError, match="does not say whether it is e4e or pSp"):
        load_encoder(tmp_path / "e.pt")
    assert load_encoder(tmp_path / "e.pt", kind="psp").config.kind == "psp"
    torch.save(_checkpoint(two_heads, opts={"encoder_type": "BackboneEncoder"}), tmp_path / "o.pt")
    with pytest.raises(
        CheckpointError, match="an encoder of type 'BackboneEncoder'; give one of Encoder4Editing"
    ):
        load_encoder(tmp_path / "o.pt")


def test_the_average_latent_is_stored_switched_off_or_estimated(two_heads, tmp_path):
    image = torch.zeros(1, 3, 256, 256)
    offsets = two_heads.offsets(image)
    torch.save(_checkpoint(two_heads, latent_avg=two_heads.latent_avg[:1]), tmp_path / "one.pt")
    assert torch.equal(load_encoder(tmp_path / "one.pt").encode(image), offsets + two_heads.latent_avg[:1])
    options = {"encoder_type": "Encoder4Editing", "start_from_latent_avg": False}
    torch.save(_checkpoint(two_heads, opts=options), tmp_path / "off.pt")
    assert torch.equal(load_encoder(tmp_path / "off.pt").encode(image), offsets)
    torch.save(_checkpoint(two_heads, latent_avg=None), tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="neither 'latent_avg' nor the generator"):
        load_encoder(tmp_path / "none.pt")
    torch.manual_seed(5)
    generator = Generator(GeneratorConfig(resolution=8, mapping_layers=2, channel_base=64)).eval()
    export_rosinality(generator, tmp_path / "g.pt")
    decoder = {
        f"decoder.{k}": v for k, v in torch.load(tmp_path / "g.pt", weights_only=True)["g_ema"].items()
    }
    whole = _checkpoint(two_heads, latent_avg=None)
    whole["state_dict"] |= decoder
    torch.save(whole, tmp_path / "with.pt")
    estimated = load_encoder(tmp_path / "with.pt").latent_avg
    with torch.no_grad():
        expected = generator.mapping(torch.randn(20_000, 512)).mean(dim=0)
    assert (estimated - expected).abs().max() < 0.05
    assert load_generator(tmp_path / "with.pt").resolution == 8


def test_cars_and_other_sizes_are_resized(two_heads, tmp_path):
    options = {"encoder_type": "Encoder4Editing", "dataset_type": "cars_encode"}
    torch.save(_checkpoint(two_heads, opts=options), tmp_path / "cars.pt")
    loaded = load_encoder(tmp_path / "cars.pt")
    assert (loaded.config.height, loaded.config.width) == (192, 256)
    large, small = (torch.full((1, 3, side, side), 0.5) for side in (1024, 256))
    torch.testing.assert_close(two_heads.encode(large), two_heads.encode(small), atol=1e-4, rtol=0)


def test_encoders_of_sketches_are_refused(two_heads, tmp_path):
    content = _checkpoint(two_heads)
    content["state_dict"]["encoder.input_layer.0.weight"] = torch.zeros(64, 19, 3, 3)
    torch.save(content, tmp_path / "s.pt")
    with pytest.raises(CheckpointError, match="reads 19 input channels"):
        load_encoder(tmp_path / "s.pt")


def test_published_encoders_come_back_from_safetensors(two_heads, tmp_path):
    save_psp(two_heads, tmp_path / "e.safetensors")
    loaded = load_encoder(tmp_path / "e.safetensors")
    assert loaded.config == two_heads.config
    assert all(torch.equal(v, two_heads.state_dict()[k]) for k, v in loaded.state_dict().items())
