"""Weights files: rosinality's against its published implementation, ours as a round trip, bad ones refused.

Measured for rosinality: w_plus 1.1e-8, styles 1.2e-7, images 1.0e-5 of a range of 6.0.
"""

import json
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from styleclip_core import load_generator, save_generator
from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import file_sha256, open_checkpoint, read_state
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig


@pytest.fixture(scope="module")
def rosinality(golden_state, golden_arrays, tmp_path_factory):
    arrays = golden_arrays("rosinality_generator_64")
    state = golden_state("rosinality_generator_64", ("kernel",))
    average = torch.from_numpy(arrays["latent_avg"])
    path = tmp_path_factory.mktemp("rosinality") / "g.pt"
    torch.save({"g_ema": state, "latent_avg": average}, path)
    return path, arrays, state


def test_rosinality_generator_equals_the_published_one(rosinality, parity):
    path, golden, _ = rosinality
    generator = load_generator(path)
    assert generator.resolution == 64
    assert generator.config.mapping_layers == 8
    w_plus = generator.map(torch.from_numpy(golden["z"]), truncation_psi=0.7)
    parity("rosinality 64 px: w_plus", w_plus, golden["w_plus"])
    styles = generator.styles(w_plus)
    for index, layer in enumerate(generator.layout.layers):
        np.testing.assert_allclose(styles[layer.name].numpy(), golden[f"style.{index}"], atol=1e-5)
    parity("rosinality 64 px: image", generator.synthesize(styles), golden["image"])
    moved = styles["b8.conv1"].clone()
    moved[:, 5] += 3
    edited = generator.synthesize(styles.replace("b8.conv1", moved))
    parity("rosinality 64 px: edited image", edited, golden["image_edited"])


def test_missing_latent_avg_is_estimated(rosinality, tmp_path):
    _, _, state = rosinality
    path = tmp_path / "snapshot.pt"
    trained = {k: v * 100 if k.startswith("style.") else v for k, v in state.items()}
    torch.save({"g_ema": trained, "args": None}, path)
    generator = load_generator(path)
    z = torch.randn(4000, 512, generator=torch.Generator().manual_seed(9))
    expected = generator.mapping(z).mean(dim=0)
    spread = generator.mapping(z).std(dim=0).mean()
    assert (generator.mapping.w_avg - expected).abs().mean() < 0.05 * spread


def test_every_form_draws_the_same_image(rosinality, tmp_path):
    path, golden, _ = rosinality
    first = load_generator(path)
    save_generator(first, tmp_path / "g.safetensors")
    second = load_generator(tmp_path / "g.safetensors")
    styles = first.styles(torch.from_numpy(golden["w_plus"]))
    assert second.config == first.config
    assert torch.equal(first.synthesize(styles), second.synthesize(styles))


def test_saving_is_deterministic_and_names_the_file_by_content(generator, tmp_path):
    save_generator(generator, tmp_path / "a.safetensors")
    save_generator(generator, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert load_generator(tmp_path / "a.safetensors").fingerprint == file_sha256(tmp_path / "b.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_files_are_refused(generator, tmp_path, suffix, fraction):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    if suffix == ".pt":
        torch.save({"g_ema": generator.state_dict()}, whole)
    else:
        save_generator(generator, whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(CheckpointError, match=r"cut.*fetch it again"):
        load_generator(cut)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_never_runs(tmp_path):
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    path = tmp_path / "hostile.pt"
    torch.save({"g_ema": Hostile()}, path)
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_generator(path)
    path.write_bytes(pickle.dumps({"g_ema": Hostile()}))
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_generator(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no weights file at"),
        (b"<!DOCTYPE html><html>Google Drive - Virus scan warning", "it is a web page"),
        (b"\x93NUMPY\x01\x00", "it is a numpy array"),
        (b"\x1f\x8b\x08", "it is gzip-compressed"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (b"", "it is of no known kind"),
    ],
)
def test_files_of_another_kind_say_what_to_do(tmp_path, content, message):
    if content is not None:
        (tmp_path / "g.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_generator(tmp_path / "g.pkl")


def test_a_state_dict_that_is_no_generator_is_refused(tmp_path):
    torch.save({"g": {}, "d": {}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"no 'g_ema' weights \(it holds: d, g\)"):
        load_generator(tmp_path / "x.pt")
    torch.save({"g_ema": {"style.1.weight": torch.zeros(4, 4)}}, tmp_path / "y.pt")
    with pytest.raises(CheckpointError, match="no rosinality StyleGAN2"):
        load_generator(tmp_path / "y.pt")


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("noises.noise_3", "'noises.noise_3' is missing"),
        ("convs.2.activate.bias", "'convs.2.activate.bias' is missing"),
        ("style.8.weight", "style.8.bias belongs to no layer"),  # not a mapping network of 7 layers
        ("to_rgbs.3.conv.weight", "belongs to no layer"),  # not a generator of 32 pixels
    ],
)
def test_a_rosinality_file_that_lost_a_tensor_is_no_smaller_generator(rosinality, tmp_path, lost, message):
    _, _, state = rosinality
    torch.save({"g_ema": {k: v for k, v in state.items() if k != lost}}, tmp_path / "lost.pt")
    with pytest.raises(CheckpointError, match=rf"lost\.pt: 'g_ema'.*{message}.*fetch it again"):
        load_generator(tmp_path / "lost.pt")


@pytest.mark.parametrize(
    "change", [{"latent_avg": [0.0]}, {"latent_avg": torch.zeros(7)}, {"g_ema": {"input.input": "text"}}]
)
def test_values_that_are_no_weights_are_refused(rosinality, tmp_path, change):
    _, _, state = rosinality
    content = {"g_ema": state | change.get("g_ema", {}), "latent_avg": change.get("latent_avg")}
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"odd\.pt.*fetch it again"):
        load_generator(tmp_path / "odd.pt")


def test_channel_multiplier_one_is_told_from_the_shapes(rosinality, tmp_path):
    # rosinality's table with multiplier 1: 256 channels at 64 px instead of 512
    _, _, state = rosinality
    narrow = dict(state)
    for name in ("convs.6.conv.weight", "convs.7.conv.weight"):
        narrow[name] = narrow[name][:, :256]
    for name in ("convs.7.conv.weight", "to_rgbs.3.conv.weight"):
        narrow[name] = narrow[name][:, :, :256]
    for name in ("convs.7.conv.modulation", "to_rgbs.3.conv.modulation"):
        narrow[f"{name}.weight"], narrow[f"{name}.bias"] = (
            narrow[f"{name}.weight"][:256],
            narrow[f"{name}.bias"][:256],
        )
    for name in ("convs.6.activate.bias", "convs.7.activate.bias"):
        narrow[name] = narrow[name][:256]
    torch.save({"g_ema": narrow, "latent_avg": torch.zeros(512)}, tmp_path / "narrow.pt")
    generator = load_generator(tmp_path / "narrow.pt")
    assert generator.config.channel_base == 16384
    assert [generator.layout.layer(f"b64.{part}").channels for part in ("conv0", "conv1", "torgb")] == [
        512, 256, 256,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 24}, "power of two from 8, got 24"),
        ({"resolution": 32}, "missing synthesis.b32"),
        ({"channel_base": 0}, "cannot be built"),
        ({"z_dim": -1}, "cannot be built"),
        ({"stray": 1}, "unexpected keyword argument 'stray'"),
    ],
)
def test_a_header_that_does_not_fit_its_weights_is_refused(generator, tmp_path, change, message):
    path = tmp_path / "odd.safetensors"
    config = json.dumps(generator.config.to_dict() | change)
    header = {"styleclip": json.dumps({"format": "styleclip-generator-1", "config": config})}
    safetensors.torch.save_file(generator.state_dict(), path, header)
    with pytest.raises(CheckpointError, match=rf"odd\.safetensors.*{message}.*fetch it again"):
        load_generator(path)
    safetensors.torch.save_file(generator.state_dict(), path, {"styleclip": "[]"})
    with pytest.raises(CheckpointError, match=r"its header is \[\], not an object"):
        load_generator(path)


def test_weights_begin_at_a_multiple_of_64_bytes_in_every_form(tmp_path):
    """A matrix product rounds by where its weights begin, which must not be the file's doing."""
    generator = Generator(GeneratorConfig(8, 6, 6, mapping_layers=2, channel_base=16, channel_max=5)).eval()
    save_generator(generator, tmp_path / "g.safetensors")
    torch.save(generator.state_dict(), tmp_path / "state.pt")
    stored, _ = read_state(tmp_path / "g.safetensors")
    with open_checkpoint(tmp_path / "state.pt") as file:
        pickled = file.state(file.weights)
    for state in (stored, pickled):
        assert len(state) == len(generator.state_dict())
        assert {tensor.data_ptr() % 64 for tensor in state.values() if tensor.numel()} == {0}
        assert all(torch.equal(tensor, generator.state_dict()[name]) for name, tensor in state.items())
