"""Every form of a StyleGAN2 generator: NVIDIA's two pickles, rosinality's files, conversions between all.

Evidence: files of the original programs' structure, with golden images of the published code where they
exist, and the same image from every form of one network.
"""

import argparse
import pickle

import pytest
import torch
import torch.nn.functional as F
from published_files import Persistent, pretend_modules, state_dict_of, write_nvidia, write_tensorflow
from safetensors.torch import save_file
from torch import nn

from styleclip_core import load_generator, save_generator
from styleclip_core.convert import convert
from styleclip_core.errors import CheckpointError
from styleclip_core.models.checkpoints import check_published_class, export_rosinality
from styleclip_core.models.rosinality import from_nvidia
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig

SMALL = {"z_dim": 16, "w_dim": 16, "channel_max": 24}


def _network(**settings):
    config = GeneratorConfig(
        **{"resolution": 16, "mapping_layers": 2, "channel_base": 256} | SMALL | settings
    )
    torch.manual_seed(1)
    generator = Generator(config)
    with torch.no_grad():
        generator.mapping.w_avg.normal_(std=0.1)
        for name, parameter in generator.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.05)
            elif name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return generator.eval().requires_grad_(False)


def _image(generator, label=None):
    z = torch.randn(2, generator.config.z_dim, generator=torch.Generator().manual_seed(3))
    return generator.synthesize(generator.styles(generator.map(z, label, truncation_psi=0.7)))


CONFIGS = {
    "mapping of 8": {"mapping_layers": 8},
    "mapping of 2": {"mapping_layers": 2},
    "narrow": {"channel_base": 128, "channel_max": 16},
    "clamped": {"conv_clamp": 256.0},
    "conditional": {"c_dim": 5},
    "half as wide": {"const_width": 2},
    "wider mapping lr": {"mapping_lr": 0.1},
    "128 px": {"resolution": 128, "channel_base": 1024},
}


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_nvidia_pickles_give_the_network_that_was_written(tmp_path, name, wrapped):
    network = _network(**CONFIGS[name])
    path, canary = tmp_path / "network.pkl", tmp_path / "canary"
    write_nvidia(
        path,
        network.state_dict(),
        network.config,
        canary=canary,
        wrapped=wrapped,
        lr=network.config.mapping_lr,
    )
    loaded = load_generator(path)
    assert loaded.config == network.config
    label = torch.eye(5)[:2] if network.config.c_dim else None
    assert torch.equal(_image(loaded, label), _image(network, label))
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(tmp_path, protocol):
    network = _network()
    write_nvidia(
        tmp_path / "n.pkl", network.state_dict(), network.config, canary=tmp_path / "c", protocol=protocol
    )
    assert torch.equal(_image(load_generator(tmp_path / "n.pkl")), _image(network))
    write_tensorflow(tmp_path / "t.pkl", network.state_dict(), network.config, protocol=protocol)
    assert torch.equal(_image(load_generator(tmp_path / "t.pkl")), _image(network))


@pytest.mark.parametrize(
    "name", [name for name in CONFIGS if name not in ("half as wide", "wider mapping lr")]
)
def test_tensorflow_pickles_give_the_network_that_was_written(tmp_path, name):
    network = _network(**CONFIGS[name])
    write_tensorflow(
        tmp_path / "t.pkl", network.state_dict(), network.config, conv_clamp=network.config.conv_clamp
    )
    loaded = load_generator(tmp_path / "t.pkl")
    assert loaded.config == network.config
    label = torch.eye(5)[:2] if network.config.c_dim else None
    torch.testing.assert_close(_image(loaded, label), _image(network, label), atol=1e-5, rtol=0)


def test_the_moving_average_is_preferred_and_the_plain_generator_accepted(tmp_path):
    network = _network()
    state = network.state_dict()
    write_nvidia(tmp_path / "both.pkl", state, network.config, canary=tmp_path / "c")
    write_nvidia(tmp_path / "plain.pkl", state, network.config, canary=tmp_path / "c", keys=())
    assert torch.equal(_image(load_generator(tmp_path / "both.pkl")), _image(network))
    assert not torch.equal(_image(load_generator(tmp_path / "plain.pkl")), _image(network))


def test_a_conditional_generator_asks_for_its_label(tmp_path):
    network = _network(c_dim=5)
    write_nvidia(tmp_path / "n.pkl", network.state_dict(), network.config, canary=tmp_path / "c")
    with pytest.raises(ValueError, match=r"conditional: give a one-hot label of shape \[2, 5\], got None"):
        _image(load_generator(tmp_path / "n.pkl"))


@pytest.mark.parametrize("architecture", ["resnet", "orig"])
def test_other_architectures_are_refused(tmp_path, architecture):
    network = _network()
    state = network.state_dict()
    write_nvidia(tmp_path / "n.pkl", state, network.config, canary=tmp_path / "c", architecture=architecture)
    with pytest.raises(CheckpointError, match=f"architecture '{architecture}'.*'skip'"):
        load_generator(tmp_path / "n.pkl")
    write_tensorflow(tmp_path / "t.pkl", state, network.config, architecture=architecture)
    with pytest.raises(CheckpointError, match=f"TensorFlow StyleGAN2 of architecture '{architecture}'"):
        load_generator(tmp_path / "t.pkl")


def test_another_generator_of_the_same_training_code_is_called_what_it_is(tmp_path):
    """As Projected GAN writes its FastGAN."""
    root = Persistent("Generator", "source", z_dim=256, c_dim=0, img_resolution=256)
    synthesis = Persistent("FastganSynthesis", "source", img_resolution=256)
    synthesis.add_module("feat_8", Persistent("UpBlockBig", "source"))
    synthesis._modules["feat_8"].register_parameter("weight", nn.Parameter(torch.randn(4, 4, 3, 3)))
    root.add_module("synthesis", synthesis)
    with pretend_modules():
        (tmp_path / "f.pkl").write_bytes(pickle.dumps({"G": root, "G_ema": root}))
    with pytest.raises(CheckpointError, match=r"draws with a 'FastganSynthesis', which is no StyleGAN2"):
        load_generator(tmp_path / "f.pkl")


def test_stylegan3_is_refused(tmp_path):
    network = _network()
    state = network.state_dict() | {"synthesis.input.freqs": torch.zeros(4, 2)}
    write_nvidia(tmp_path / "3.pkl", state, network.config, canary=tmp_path / "c")
    with pytest.raises(CheckpointError, match="StyleGAN3"):
        load_generator(tmp_path / "3.pkl")


@pytest.mark.parametrize("channels", [1, 4])
def test_a_generator_of_other_channels_is_told_what_it_is_and_not_to_be_fetched_again(tmp_path, channels):
    network = _network()
    state = network.state_dict()
    colours = [name for name in state if name.endswith(("torgb.weight", "torgb.bias"))]
    gray = state | {name: torch.cat([state[name]] * 2)[:channels].clone() for name in colours}
    write_nvidia(tmp_path / "g.pkl", gray, network.config, canary=tmp_path / "c")
    torch.save({"g_ema": gray}, tmp_path / "g.pt")
    torch.save(gray, tmp_path / "bare.pt")
    torch.save({"g_ema": from_nvidia(gray)}, tmp_path / "rosinality.pt")
    save_file(gray, tmp_path / "g.safetensors")
    kind = "a grey-scale generator, of 1 channel" if channels == 1 else "a generator of 4 channels"
    for name in ("g.pkl", "g.pt", "bare.pt", "rosinality.pt", "g.safetensors"):
        with pytest.raises(CheckpointError, match=rf"{name} is {kind}; 3 are needed") as caught:
            load_generator(tmp_path / name)
        assert "fetch it again" not in str(caught.value)


def test_models_trained_without_noise_load(tmp_path):
    network = _network()
    state = {k: v for k, v in network.state_dict().items() if "noise" not in k}
    write_nvidia(tmp_path / "n.pkl", state, network.config, canary=tmp_path / "c")
    z = torch.zeros(1, 16)
    expected = network.synthesize(network.styles(network.map(z)), noise="none")
    loaded = load_generator(tmp_path / "n.pkl")
    assert torch.equal(loaded.synthesize(loaded.styles(loaded.map(z))), expected)


@pytest.mark.parametrize("resolution", [64, 1024])
def test_a_pickle_of_the_golden_weights_draws_the_golden_image(
    golden_state, golden_arrays, tmp_path, parity, resolution
):
    name = f"nvidia_generator_{resolution}"
    arrays, state = golden_arrays(name), golden_state(name, ("resample_filter",))
    small = {"z_dim": 32, "w_dim": 32, "channel_base": 2048, "channel_max": 64} if resolution == 64 else {}
    config = GeneratorConfig(resolution=resolution, **small)
    write_nvidia(tmp_path / "n.pkl", state, config, canary=tmp_path / "c", wrapped=False)
    write_tensorflow(tmp_path / "t.pkl", state, config)
    for path, form in ((tmp_path / "n.pkl", "PyTorch"), (tmp_path / "t.pkl", "TensorFlow")):
        loaded = load_generator(path)
        path.unlink()
        assert loaded.config == config
        image = loaded.synthesize(loaded.styles(torch.from_numpy(arrays["w_truncated"])))
        stored = F.avg_pool2d(image, resolution // 64)
        parity(f"NVIDIA {resolution} px from a {form} pickle: image", stored, arrays["image"])


def test_all_forms_are_round_trips(tmp_path):
    network = _network(mapping_layers=8)
    expected = _image(network)
    write_nvidia(tmp_path / "0.pkl", network.state_dict(), network.config, canary=tmp_path / "c")
    save_generator(load_generator(tmp_path / "0.pkl"), tmp_path / "1.safetensors")
    export_rosinality(load_generator(tmp_path / "1.safetensors"), tmp_path / "2.pt")
    save_generator(load_generator(tmp_path / "2.pt"), tmp_path / "3.safetensors")
    write_tensorflow(
        tmp_path / "4.pkl", load_generator(tmp_path / "3.safetensors").state_dict(), network.config
    )
    save_generator(load_generator(tmp_path / "4.pkl"), tmp_path / "5.safetensors")
    for path in sorted(tmp_path.glob("[0-9]*")):
        assert torch.equal(_image(load_generator(path)), expected), path.name
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "3.safetensors").read_bytes()


def test_what_rosinality_cannot_draw_is_not_exported(tmp_path):
    with pytest.raises(CheckpointError, match="clamps its activations at 256"):
        export_rosinality(_network(conv_clamp=256.0), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="conditional generator has no counterpart"):
        export_rosinality(_network(c_dim=3), tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ({}, ""),
        ({"channel_base": 16384}, ""),  # what NVIDIA trains at 256 px
        ({"resolution": 32, "channel_base": 65536}, ""),
        ({"channel_base": 8192}, "its blocks have 512, 512, 512, 256, 128, 64, 32 channels"),
        ({"channel_max": 256}, "its blocks have 256, 256"),
        ({"z_dim": 64}, "z is 64 wide and w 512"),
        ({"const_width": 2}, "its images are not square"),
    ],
)
def test_what_no_class_of_rosinality_s_takes_is_not_converted(sizes, why):
    config = GeneratorConfig(**{"resolution": 256} | sizes)
    if not why:
        check_published_class(config)
        return
    with pytest.raises(CheckpointError, match=f"no class of rosinality's code takes .*{why}.*safetensors"):
        check_published_class(config)


def test_a_conversion_asks_whether_a_class_takes_it(tmp_path):
    save_generator(_network(), tmp_path / "g.safetensors")
    with pytest.raises(CheckpointError, match="no class of rosinality's code takes"):
        convert(tmp_path / "g.safetensors", tmp_path / "g.pt")
    assert not (tmp_path / "g.pt").exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("form", ["snapshot", "converted", "bare", "encoder", "nvidia names"])
def test_every_file_that_holds_rosinalitys_generator_loads(tmp_path, form, legacy):
    network = _network(mapping_layers=8)
    export_rosinality(network, tmp_path / "exported.pt")
    content = torch.load(tmp_path / "exported.pt", weights_only=True)
    state, average = state_dict_of(content["g_ema"]), content["latent_avg"]
    optimizer = {
        "state": {0: {"step": 3, "exp_avg": torch.zeros(4)}},
        "param_groups": [{"lr": 0.002, "betas": (0, 0.99)}],
    }
    contents = {
        "snapshot": {
            "g": state, "d": {"x": torch.zeros(2)}, "g_ema": state, "g_optim": optimizer,
            "d_optim": optimizer, "args": argparse.Namespace(size=16, lr=0.002), "ada_aug_p": 0,
        },
        "converted": {"g_ema": state, "latent_avg": average},
        "bare": state,
        "encoder": {
            "state_dict": {f"decoder.{k}": v for k, v in state.items()} | {"encoder.body": torch.zeros(1)},
            "latent_avg": average.repeat(network.num_ws, 1), "opts": {"stylegan_size": 16},
        },
        "nvidia names": network.state_dict(),
    }  # fmt: skip
    torch.save(contents[form], tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    loaded = load_generator(tmp_path / "x.pt")
    z = torch.randn(1, 16, generator=torch.Generator().manual_seed(3))
    expected = network.synthesize(network.styles(network.map(z)))
    torch.testing.assert_close(loaded.synthesize(loaded.styles(loaded.map(z))), expected)
    if form in ("converted", "encoder", "nvidia names"):
        assert torch.equal(loaded.mapping.w_avg, network.mapping.w_avg)


@pytest.mark.parametrize("base", [16384, 32768])
@pytest.mark.parametrize("resolution", [128, 256, 512, 1024])
def test_published_sizes_are_inferred_from_shapes_alone(resolution, base):
    from styleclip_core.models.checkpoints import _infer_config

    config = GeneratorConfig(
        resolution=resolution, channel_base=base, mapping_layers=2 if base == 16384 else 8
    )
    with torch.device("meta"):
        state = Generator(config).state_dict()
    assert _infer_config(state, {}) == config


def test_stylegan_human_is_twice_as_high_as_wide(tmp_path):
    network = _network(const_width=2)
    assert network.image_size == (16, 8)
    assert _image(network).shape == (2, 3, 16, 8)
    export_rosinality(network, tmp_path / "x.pt")
    loaded = load_generator(tmp_path / "x.pt")
    assert loaded.config == network.config
    assert torch.equal(_image(loaded), _image(network))
