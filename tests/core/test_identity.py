"""The compact identity network: what it computes, and that its file holds all of it."""

import json

import pytest
import torch

from styleclip_core import load_identity
from styleclip_core.convert import convert, identify
from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import read_state, write_state
from styleclip_core.models.identity import CompactIdentity, IdentityConfig, save_identity

CONFIG = IdentityConfig(resolution=16, widths=(4, 6), hidden=10, embedding_dim=5)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return CompactIdentity(CONFIG).eval()


def _images(*size):
    return torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_rows_are_unit_and_gradients_reach_the_image(network):
    image = _images(16, 16).requires_grad_(True)
    embedded = network.embed(image)
    assert embedded.shape == (3, network.embedding_dim)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    (gradient,) = torch.autograd.grad((embedded[0] * embedded[1].detach()).sum(), image)
    assert gradient[0].abs().max() > 0
    assert gradient[1:].abs().max() == 0


def test_identity_of_other_sizes_is_that_of_their_average(network):
    small = _images(16, 16)
    large = small.repeat_interleave(3, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(network.embed(large), network.embed(small))


def test_a_file_holds_weights_and_sizes(network, tmp_path):
    save_identity(network, tmp_path / "i.safetensors")
    again = load_identity(tmp_path / "i.safetensors")
    assert isinstance(again, CompactIdentity)
    assert again.config == CONFIG
    assert not any(parameter.requires_grad for parameter in again.parameters())
    torch.testing.assert_close(
        again.embed(_images(16, 16)), network.embed(_images(16, 16)), atol=2e-3, rtol=0
    )
    assert identify(tmp_path / "i.safetensors") == "identity"
    done = convert(tmp_path / "i.safetensors", tmp_path / "j.safetensors")
    assert done.description == {"embedding_dim": 5}
    assert done.sha256 == again.fingerprint  # float16 already: nothing is lost a second time


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architecture": "transformer"}, "its architecture 'transformer' is neither ir-se50 nor compact"),
        ({"hidden": 11}, "weights do not fit the compact identity network: shape"),
        ({"hidden": 10**12}, "of sizes .* cannot be built"),
        ({"resolution": 18}, "reads multiples of 4 pixels"),
        ({"widths": [4] * 40}, "cannot be built"),
        ({"depth": 3}, "unexpected keyword argument 'depth'"),
    ],
)
def test_a_damaged_configuration_is_refused(network, tmp_path, change, reason):
    save_identity(network, tmp_path / "i.safetensors")
    state, metadata = read_state(tmp_path / "i.safetensors")
    config = json.loads(metadata["config"]) | change
    write_state(tmp_path / "broken.safetensors", state, metadata | {"config": json.dumps(config)})
    with pytest.raises(CheckpointError, match=rf"broken\.safetensors holds no usable identity.*{reason}"):
        load_identity(tmp_path / "broken.safetensors")
