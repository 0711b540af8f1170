"""Instant directions: from stored style codes, without a table, stored and found again."""

import pytest
import torch
from torch.testing import assert_close

from styleclip.flows.sample_styles import sample_styles
from styleclip.tasks.artifacts import read_provenance, read_table
from styleclip.tasks.directions.instant import compute_instant_direction
from styleclip.tasks.directions.sampling import read_codes
from styleclip.tasks.directions.style_directions import read_deviations, read_direction
from styleclip.tasks.running.run import run_here
from styleclip.tasks.settings import Instant, Models, Sampling
from styleclip.tasks.settings.edits import StepVariant
from styleclip.tasks.storage import read_bytes
from styleclip_core import load_clip, load_generator
from styleclip_core.editing import ChannelSelection, select_channels
from styleclip_core.errors import ArtifactConflictError, NoRelevantChannelError
from styleclip_core.instant import instant_relevance
from styleclip_core.prompts import text_direction

pytestmark = pytest.mark.usefixtures("prefect_server")
VARIANT = StepVariant(neutral="hair", target="grey hair", alpha=2.0, top_k=5)


@pytest.fixture(scope="module")
def models(network_files) -> Models:
    return Models(**network_files)


@pytest.fixture(scope="module")
def sampled(models, tmp_path_factory, prefect_server):
    folder = str(tmp_path_factory.mktemp("instant"))
    return sample_styles(models, folder, Sampling(statistics=40, codes=6)).styles


def prepare(models, sampled, workspace, variant=VARIANT, **settings):
    given = Instant(**{"codes": 4, "probes": 3, **settings})
    return compute_instant_direction.fn(run_here(models, str(workspace)), variant, sampled, given)


def test_a_direction_is_that_of_the_core_and_is_found_again(models, sampled, tmp_path):
    made = prepare(models, sampled, tmp_path)
    generator, clip = load_generator(models.generator), load_clip(models.clip)
    text = text_direction(clip, neutral="hair", target="grey hair")
    std = read_deviations(sampled.statistics, generator.layout)
    codes = read_codes(sampled.codes, generator.layout, 0, 4)
    relevance = instant_relevance(generator, clip.embed_whole, codes, text.direction, std, probes=3)
    expected = select_channels(generator.layout, relevance, std, ChannelSelection(top_k=5))
    assert_close(read_direction(made.uri, made.fingerprint).delta, expected.delta)
    assert_close(torch.tensor(read_table(made.uri)["text_direction"][0].as_py()), text.direction)
    assert (made.channels, made.layers) == (5, list(expected.layers))
    assert made.text_norm == pytest.approx(text.norm)
    about = read_provenance(made.uri)
    assert about.inputs["styles"] == sampled.fingerprint
    assert (about.parameters["codes"], about.parameters["probes"]) == (4, 3)
    before = read_bytes(made.uri)
    assert prepare(models, sampled, tmp_path) == made
    assert read_bytes(made.uri) == before
    # alpha is the edit's, not the direction's; codes and prompts are
    again = prepare(models, sampled, tmp_path, VARIANT.model_copy(update={"alpha": 3.0}))
    assert again.uri == made.uri
    assert prepare(models, sampled, tmp_path, codes=5).uri != made.uri


def test_probes_beyond_the_embedding_are_all_there_are(models, sampled, tmp_path):
    width = load_clip(models.clip).embedding_dim
    many, all_ = (prepare(models, sampled, tmp_path, probes=probes) for probes in (1000, width))
    assert torch.equal(*(read_direction(each.uri, each.fingerprint).delta for each in (many, all_)))


def test_what_cannot_work_is_refused(models, sampled, tmp_path):
    with pytest.raises(ArtifactConflictError, match="holds 6 style codes, 6 of the 7 from 0"):
        prepare(models, sampled, tmp_path, codes=7)
    strict = VARIANT.model_copy(update={"top_k": None, "beta": 1.0, "include": ("b4.*",)})
    with pytest.raises(NoRelevantChannelError, match="no style channel reaches beta=1"):
        prepare(models, sampled, tmp_path, strict)
    assert not list((tmp_path / "directions").glob("*"))
