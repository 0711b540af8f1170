"""The generator against NVIDIA's published implementation (golden arrays), and by laws.

Measured: mapping 2e-9, styles 1.2e-7, images 2.7e-6 of a range of 4.9 at 64 px and 1.1e-5 of 6.3 at
1024 px (compared after 16 x 16 averaging, as the reference was stored). The bar is 1e-4 of the range.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from styleclip_core.errors import CheckpointError, LayoutMismatchError
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig

NVIDIA = {
    "nvidia_generator_64": GeneratorConfig(
        resolution=64, z_dim=32, w_dim=32, channel_base=2048, channel_max=64
    ),
    "nvidia_generator_1024": GeneratorConfig(resolution=1024),
}


@pytest.fixture(params=NVIDIA)
def nvidia(request, golden_state, golden_arrays):
    config = NVIDIA[request.param]
    own_kernels = {k: v for k, v in Generator(config).state_dict().items() if "resample_filter" in k}
    state = golden_state(request.param, ("resample_filter",)) | own_kernels
    return Generator.from_state(config, state), golden_arrays(request.param)


def _stored(image: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(image, image.shape[-1] // 64)


def test_generator_equals_nvidias(nvidia, parity):
    generator, golden = nvidia
    w_plus = generator.map(torch.from_numpy(golden["z"]), truncation_psi=0.7, truncation_cutoff=8)
    size = f"NVIDIA {generator.resolution} px"
    parity(f"{size}: w_plus", w_plus, golden["w_truncated"])
    styles = generator.styles(w_plus)
    for layer in generator.layout.layers:
        block, part = layer.name.split(".")
        name = f"style.{part.replace('torgb', 'toRGB')}_resolution_{block[1:]}"
        np.testing.assert_allclose(styles[layer.name].numpy(), golden[name], atol=1e-5)
    parity(f"{size}: image", _stored(generator.synthesize(styles)), golden["image"])
    up, down = styles["b16.conv1"].clone(), styles["b32.conv0"].clone()
    up[:, 5] += 3
    down[:, 7] -= 2
    edited = generator.synthesize(styles.replace("b16.conv1", up).replace("b32.conv0", down))
    parity(f"{size}: edited image", _stored(edited), golden["image_edited"])


@pytest.mark.parametrize(
    ("resolution", "base", "layers", "num_ws", "total", "editable"),
    [
        (1024, 32768, 26, 18, 9088, 6048),
        (512, 32768, 23, 16, 8960, 5952),
        (256, 32768, 20, 14, 8704, 5760),
        (256, 16384, 20, 14, 7424, 4928),
        (128, 16384, 17, 12, 7168, 4736),
    ],
)
def test_layout_has_the_published_totals(resolution, base, layers, num_ws, total, editable):
    with torch.device("meta"):
        generator = Generator(GeneratorConfig(resolution=resolution, channel_base=base))
    layout = generator.layout
    assert (len(layout.layers), generator.num_ws) == (layers, num_ws)
    assert (layout.num_channels, layout.num_editable) == (total, editable)
    assert layout.layers[-1].ws_index == num_ws - 1


@given(st.lists(st.integers(0, 2), min_size=1, max_size=4))
def test_an_image_does_not_depend_on_its_batch(generator, rows):
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    whole = generator.synthesize(generator.styles(generator.map(z)))
    part = generator.synthesize(generator.styles(generator.map(z[rows])))
    torch.testing.assert_close(part, whole[rows], atol=1e-5, rtol=1e-4)


def test_a_synthesis_resumed_at_any_layer_is_the_same(generator, codes):
    whole = generator.synthesize(codes)
    for stop in range(len(generator.layout.layers)):
        state = generator.advance(generator.begin(codes.batch_size), codes, stop)
        torch.testing.assert_close(generator.resume(state, codes), whole)


def test_no_truncation_is_the_mapping_itself_and_full_truncation_the_average(generator):
    z = torch.randn(2, 8)
    torch.testing.assert_close(generator.map(z)[:, 0], generator.mapping(z))
    average = generator.map(z, truncation_psi=0.0)
    torch.testing.assert_close(average, generator.mapping.w_avg.expand_as(average))
    half = generator.map(z, truncation_psi=0.0, truncation_cutoff=2)
    torch.testing.assert_close(half[:, 2:], generator.map(z)[:, 2:])


def test_noise_const_is_deterministic_and_random_noise_is_not(generator, codes):
    assert torch.equal(generator.synthesize(codes), generator.synthesize(codes))
    first, second = (generator.synthesize(codes, noise="random") for _ in range(2))
    assert not torch.equal(first, second)


def test_conditional_generator_without_a_label_says_what_to_give():
    conditional = Generator(GeneratorConfig(resolution=8, z_dim=4, w_dim=4, c_dim=3, channel_max=4))
    with pytest.raises(ValueError, match=r"one-hot label of shape \[2, 3\], got None"):
        conditional.map(torch.randn(2, 4))
    assert conditional.map(torch.randn(2, 4), torch.eye(3)[:2]).shape == (2, 4, 4)


def test_wrong_weights_are_refused_with_their_names(generator):
    state = generator.state_dict()
    del state["mapping.w_avg"]
    state["synthesis.b4.const"] = torch.zeros(1, 4, 4)
    with pytest.raises(
        CheckpointError, match=r"missing mapping.w_avg; shape synthesis.b4.const: \[1, 4, 4\]"
    ):
        Generator.from_state(generator.config, state)


def test_codes_of_another_generator_are_refused(generator):
    other = Generator(GeneratorConfig(resolution=8, z_dim=4, w_dim=4, channel_max=4)).eval()
    foreign = other.styles(other.map(torch.randn(1, 4)))
    with pytest.raises(LayoutMismatchError, match="style codes have"):
        generator.synthesize(foreign)
