"""The perceptual distance against the published package, on generated weights."""

import warnings

import pytest
import torch
from torchvision.models import alexnet, vgg16

from styleclip_core.convert import convert, identify
from styleclip_core.errors import CheckpointError
from styleclip_core.models.lpips import load_perceptual

BACKBONES = {"alex": alexnet, "vgg": vgg16}


@pytest.fixture(scope="module", params=["alex", "vgg"])
def backbone(request, tmp_path_factory):
    """A weights file as torchvision publishes them, with random weights; its classifier is cut short."""
    with torch.device("meta"):
        shapes = BACKBONES[request.param](weights=None).features.state_dict(prefix="features.")
    random = torch.Generator().manual_seed(7)
    state = {
        name: torch.randn(value.shape, generator=random) * (2 / value[0].numel()) ** 0.5
        for name, value in shapes.items()
    }
    path = tmp_path_factory.mktemp("lpips") / f"{request.param}.pth"
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, path)
    return request.param, path


@pytest.fixture(scope="module")
def published(backbone):
    """The package's own network with the weights of that file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, of how the package calls it
        import lpips

        network = lpips.LPIPS(net=backbone[0], pnet_rand=True, verbose=False)
    state = load_perceptual(backbone[1]).state_dict()
    for name, weight in network.net.state_dict().items():
        weight.copy_(state[f"features.{name.split('.', 1)[1]}"])  # slice2.3.weight is features.3.weight
    return network


def _images(count, *size):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(8)) * 2 - 1


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_distance_equals_the_published_package(backbone, published, size):
    ours = load_perceptual(backbone[1])
    first, second = _images(4, *size).chunk(2)
    first.requires_grad_(True)
    expected, found = published(first, second).flatten(), ours.distance(first, second)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.min() > 0
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), first)[0], torch.autograd.grad(expected.sum(), first)[0],
        atol=1e-6, rtol=1e-4,
    )  # fmt: skip


def test_equal_images_have_no_distance_and_a_finite_gradient(backbone):
    network = load_perceptual(backbone[1])
    image = _images(2, 40, 40).requires_grad_(True)
    distance = network.distance(image, image.detach())
    assert distance.tolist() == [0, 0]
    assert torch.autograd.grad(distance.sum(), image)[0].abs().max() == 0
    black = torch.zeros_like(image).requires_grad_(True)
    (gradient,) = torch.autograd.grad(network.distance(black, image.detach()).sum(), black)
    assert gradient.isfinite().all()


def test_images_too_small_for_the_backbone_are_enlarged(backbone):
    variant, path = backbone
    network, side = load_perceptual(path), {"alex": 31, "vgg": 16}[variant]
    first, second = _images(2, 8, 70).chunk(2)
    enlarged = [
        torch.nn.functional.interpolate(image, (side, 70), mode="bilinear") for image in (first, second)
    ]
    torch.testing.assert_close(network.distance(first, second), network.distance(*enlarged))
    with pytest.raises(ValueError, match=r"differ in shape: \[1, 3, 8, 70\] and \[1, 3, 8, 8\]"):
        network.distance(first, second[..., :8])


def test_convert_keeps_backbone_and_heads(backbone, tmp_path):
    variant, path = backbone
    assert identify(path) == "perceptual"
    done = convert(path, tmp_path / "p.safetensors")
    assert (done.kind, done.description) == ("perceptual", {"variant": variant})
    again = load_perceptual(tmp_path / "p.safetensors")
    assert again.fingerprint == done.sha256
    assert identify(tmp_path / "p.safetensors") == "perceptual"
    first, second = _images(2, 40, 40).chunk(2)
    assert torch.equal(again.distance(first, second), load_perceptual(path).distance(first, second))


def test_other_networks_are_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(
        CheckpointError, match=r"other\.pth is neither torchvision's AlexNet.*; give torchvis"
    ):
        load_perceptual(tmp_path / "other.pth")
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "cut.pth")
    with pytest.raises(
        CheckpointError, match=r"cut\.pth: weights do not fit.*missing features.*; give torchv"
    ):
        load_perceptual(tmp_path / "cut.pth")
