"""What is drawn of latents is looked at once: the edits find it, and without it they write the same."""

from types import SimpleNamespace

import pytest
import torch

from styleclip.flows.edit_images import edit_images
from styleclip.tasks.photographs.seen import MEMORY, Memory
from styleclip.tasks.settings import Execution, Instant, Inversion, Models, Sampling
from styleclip.tasks.settings.edits import Edit
from styleclip_core.models.stylegan2 import Generator
from tests.left import files_of
from tests.pipeline.test_flows import six_portraits


class Flat:
    """Embeds an image as its mean."""

    def embed_whole(self, image):
        return image.mean(dim=(1, 2, 3))[:, None]


def run_of(**changes):
    hashes = SimpleNamespace(**({"generator": "g", "clip": "c", "identity": ""} | changes))
    return SimpleNamespace(hashes=hashes, clip=Flat(), identity=None, perceptual=None, device="cpu")


def batch(value: float, size: int = 2):
    return torch.full((size, 3, 4), value), torch.full((size, 3, 8, 8), value)


def test_a_batch_is_found_once_by_its_very_latents_and_networks():
    memory, (w_plus, image) = Memory(), batch(0.5)
    memory.keep(run_of(), w_plus, image)
    assert memory.take(run_of(), w_plus + 1e-6) is None
    assert memory.take(run_of(), w_plus[:1]) is None
    assert memory.take(run_of(clip="another"), w_plus) is None
    assert memory.take(run_of(), w_plus.clone()).clip.tolist() == [[0.5], [0.5]]
    assert memory.take(run_of(), w_plus) is None


def test_the_oldest_is_forgotten_first_and_a_batch_counts_once():
    memory = Memory(most=4)
    for value in (1.0, 1.0, 2.0, 3.0):
        memory.keep(run_of(), *batch(value))
    found = [memory.take(run_of(), batch(value)[0]) for value in (1.0, 2.0, 3.0)]
    assert [each is None for each in found] == [True, False, False]


def test_images_that_a_perceptual_network_would_need_are_not_kept():
    memory, run = Memory(), run_of()
    run.perceptual = object()
    memory.keep(run, *batch(1.0))
    assert memory.take(run, batch(1.0)[0]) is None


def test_a_run_with_a_perceptual_network_takes_nothing_that_an_earlier_one_without_left_behind():
    memory, run = Memory(), run_of()
    memory.keep(run, *batch(1.0))
    run.perceptual = object()
    assert memory.take(run, batch(1.0)[0]) is None


@pytest.mark.usefixtures("prefect_server")
def test_edits_draw_no_inversion_again_and_write_what_they_would_if_they_did(
    network_files, tmp_path, monkeypatch
):
    drawn: list[int] = []
    draw = Generator.synthesize

    def counted(generator, styles, *given, **options):
        drawn.append(styles.batch_size)
        return draw(generator, styles, *given, **options)

    monkeypatch.setattr(Generator, "synthesize", counted)
    monkeypatch.setenv("STYLECLIP_WORKERS", "1")  # it decides how torch adds up
    photos = six_portraits(tmp_path / "photos")
    edits = [
        Edit(name=name, target=f"face with a {name}", top_k=5, templates="none", relevance="instant")
        for name in ("hat", "beard")
    ]

    def left(out: str, most: int) -> tuple[int, dict[str, bytes]]:
        """Return how many images a run with such a memory drew, and what it left."""
        monkeypatch.setattr(MEMORY, "_most", most)
        drawn.clear()
        edit_images(
            Models(**network_files), str(photos), str(tmp_path / "out"), edits,
            inversion=Inversion(steps=0), execution=Execution(shard_size=3, device="cpu"),
            sampling=Sampling(statistics=20, codes=2), instant=Instant(codes=2, probes=2),
        )  # fmt: skip
        found = {name: data for name, data in files_of(tmp_path / "out").items() if "timings" not in name}
        (tmp_path / "out").rename(tmp_path / out)
        return sum(drawn), found

    with_memory, without = left("one", 100), left("two", 0)
    assert without[0] - with_memory[0] == 6
    assert with_memory[1] == without[1]
