"""Latents say how alike photograph and inversion are, where there are networks that can tell."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from styleclip.flows.invert_images import invert_images
from styleclip.tasks.artifacts import fingerprint
from styleclip.tasks.photographs import inversion
from styleclip.tasks.running.run import ModelHashes, Networks, Run
from styleclip.tasks.settings import Inversion, Models
from styleclip.tasks.settings.edits import Edit
from styleclip_core import load_generator, load_identity, load_perceptual
from styleclip_core.images import decode_image, fit
from tests.pipeline.test_flows import manifest_of, run
from tests.small_networks import write_small_judges

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def judges(tmp_path_factory) -> dict[str, str]:
    """An identity network and AlexNet's backbone, with random weights."""
    return write_small_judges(tmp_path_factory.mktemp("judges"))


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


def _rows(models, photos, workspace):
    latents = invert_images(models, str(photos), str(workspace), Inversion(steps=3)).latents
    (part,) = Path(latents).glob("*.attempt-*.parquet")
    return pq.read_table(part).to_pylist()


def test_latents_hold_perceptual_distance_and_identity(network_files, judges, photos, tmp_path):
    generator = load_generator(network_files["generator"])
    network, perceptual = load_identity(judges["identity"]), load_perceptual(judges["perceptual"])
    rows = _rows(Models(**network_files, **judges), photos, tmp_path)
    for row in rows:
        target = fit(decode_image((photos / row["image_key"]).read_bytes()), 16, 16)[None]
        w_plus = torch.tensor(row["w_plus"]).view(1, generator.num_ws, -1)
        image = generator.synthesize(generator.styles(w_plus)).clamp(-1, 1)
        assert row["lpips"] == pytest.approx(perceptual.distance(image, target).item(), abs=1e-5)
        assert row["identity"] == pytest.approx(
            (network.embed(image) @ network.embed(target).T).item(), abs=1e-5
        )
        assert row["lpips"] > 0
    without = _rows(Models(**network_files), photos, tmp_path)
    assert [(row["lpips"], row["identity"]) for row in without] == [(None, None)] * 2
    assert without[0]["w_plus"] != rows[0]["w_plus"]  # the distance took part in the refinement


def test_networks_count_in_a_fingerprint_only_where_they_are_used(network_files):
    def print_of(**hashes):
        made = ModelHashes(generator="g", encoder="e", **hashes)
        run = Run(models=Networks(**network_files), hashes=made, workspace="work")
        return inversion.plan(run, "photos", Inversion()).fingerprint

    parameters = {"photos": "photos", **Inversion().parameters()}
    inputs = {"generator": "g", "encoder": "e"}
    assert print_of() == fingerprint(inversion.STEP, inversion.VERSION, parameters, inputs)
    assert len({print_of(), print_of(perceptual="p"), print_of(identity="i"), print_of(clip="c")}) == 3


def test_the_manifest_holds_them_for_every_edit(network_files, judges, photos, tmp_path):
    models = Models(**network_files, **judges)
    edits = [Edit(name="none", target="hat", alpha=0.0, beta=0.0), Edit(name="hat", target="hat", beta=0.0)]
    result = run(models, photos, tmp_path / "out", edits)
    rows = manifest_of(result).set_index("edit")
    assert rows.loc["none"].lpips.to_numpy() == pytest.approx(0, abs=1e-6)
    assert rows.loc["none"].identity.to_numpy() == pytest.approx(1, abs=1e-5)
    assert (rows.loc["hat"].lpips > 1e-4).all()
    assert (rows.loc["hat"].identity < 1 - 1e-5).all()
