"""Weights files: rosinality's against its published implementation, ours as a round trip, bad ones refused.

Measured for rosinality: w_plus 1.1e-8, styles 1.2e-7, images 1.0e-5 of a range of 6.0.
"""

import pickle

import numpy as np
import pytest
import torch

from styleclip_core import load_generator, save_generator
from styleclip_core.errors import CheckpointError
from styleclip_core.models.checkpoints import file_sha256


@pytest.fixture(scope="module")
def rosinality(golden_state, golden_arrays, tmp_path_factory):
    arrays = golden_arrays("rosinality_generator_64")
    state = golden_state("rosinality_generator_64", ("kernel",))
    average = torch.from_numpy(arrays["latent_avg"])
    path = tmp_path_factory.mktemp("rosinality") / "g.pt"
    torch.save({"g_ema": state, "latent_avg": average}, path)
    return path, arrays, state


def test_rosinality_generator_equals_the_published_one(rosinality):
    path, golden, _ = rosinality
    generator = load_generator(path)
    assert generator.resolution == 64
    assert generator.config.mapping_layers == 8
    w_plus = generator.map(torch.from_numpy(golden["z"]), truncation_psi=0.7)
    np.testing.assert_allclose(w_plus.numpy(), golden["w_plus"], atol=1e-6)
    styles = generator.styles(w_plus)
    for index, layer in enumerate(generator.layout.layers):
        np.testing.assert_allclose(styles[layer.name].numpy(), golden[f"style.{index}"], atol=1e-5)
    tolerance = 1e-4 * np.ptp(golden["image"])
    np.testing.assert_allclose(generator.synthesize(styles).numpy(), golden["image"], atol=tolerance)
    moved = styles["b8.conv1"].clone()
    moved[:, 5] += 3
    edited = generator.synthesize(styles.replace("b8.conv1", moved))
    np.testing.assert_allclose(edited.numpy(), golden["image_edited"], atol=tolerance)


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
    ("name", "message"),
    [
        ("missing.safetensors", "no weights file at"),
        ("network.pkl", "NVIDIA's .pkl must be exported"),
        ("network", "no suffix is neither"),
    ],
)
def test_files_of_another_kind_say_what_to_do(tmp_path, name, message):
    with pytest.raises(CheckpointError, match=message):
        load_generator(tmp_path / name)


def test_a_state_dict_that_is_no_generator_is_refused(tmp_path):
    torch.save({"g": {}, "d": {}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"no 'g_ema' weights \(it holds: g, d\)"):
        load_generator(tmp_path / "x.pt")
    torch.save({"g_ema": {"style.1.weight": torch.zeros(4, 4)}}, tmp_path / "y.pt")
    with pytest.raises(CheckpointError, match="no rosinality StyleGAN2"):
        load_generator(tmp_path / "y.pt")
