"""CLIPs of every family in runs: what names their results, what is refused, and judges of another family."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from styleclip.flows.evaluate import evaluate_edits
from styleclip.flows.score_images import score_images
from styleclip.tasks.artifacts.outcomes import OK
from styleclip.tasks.evaluation.labels import LabelPrompt
from styleclip.tasks.exchange.published_files import convert_weights
from styleclip.tasks.running import networks
from styleclip.tasks.running.networks import Wanted, current
from styleclip.tasks.running.run import run_here
from styleclip.tasks.settings import Execution, Judges, Models
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import copy_from_local, read_bytes, write_bytes_atomic
from styleclip_core import load_clip
from styleclip_core.convert import convert
from styleclip_core.errors import ArtifactConflictError, CheckpointError
from tests.core.generated_clips import write_open_clip, write_transformers
from tests.pipeline.test_evaluation import ATTRIBUTES
from tests.pipeline.test_flows import encoded, portrait, run

pytestmark = pytest.mark.usefixtures("prefect_server")
PROMPTS = [
    LabelPrompt(name="grey", prompt="face with grey hair"),
    LabelPrompt(name="hat", prompt="Kopf mit Hut"),
]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """The folder of a SigLIP of open_clip's."""
    return write_open_clip(tmp_path_factory.mktemp("clips") / "siglip", "tiny-SigLIP")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(2):
        (folder / f"p{index}.png").write_bytes(encoded(portrait(index)))
    return folder


def test_edits_of_one_clip_are_judged_by_one_of_another_family(network_files, photos, siglip, tmp_path):
    edits = [Edit(name="grey", target="face with grey hair", alpha=2, beta=0.0)]
    made = run(Models(**network_files), photos, tmp_path / "out", edits)
    judges = Judges(clip=str(siglip))
    found = evaluate_edits(made.report.manifest, ATTRIBUTES, judges=judges, execution=Execution(shard_size=2))
    rows = pq.read_table(found.evaluation.evaluation).to_pandas()
    assert set(rows.status) == {OK}
    assert rows.directional.notna().all()


def test_a_table_of_one_clip_is_refused_beside_another(network_files, photos, siglip, tmp_path):
    edits = [Edit(name="grey", target="face with grey hair", alpha=2, beta=0.0)]
    made = run(Models(**network_files), photos, tmp_path / "out", edits)
    table = made.table.relevance.rsplit("/", 1)[0]
    for other in (f"gelu@{bare_copy(network_files['clip'], tmp_path)}", str(siglip)):
        with pytest.raises(ArtifactConflictError, match="CLIP"):
            run(Models(**network_files | {"clip": other}), photos, tmp_path / "other", edits, table=table)


def bare_copy(path, folder):
    """Write the weights of a CLIP without what it states."""
    torch.save(torch.load(path, weights_only=True)["state_dict"], folder / "bare.pt")
    return folder / "bare.pt"


def test_runs_assume_no_activation(network_files, photos, tmp_path):
    bare = bare_copy(network_files["clip"], tmp_path)
    with pytest.raises(CheckpointError, match=r"bare\.pt does not say which activation .*quickgelu@PATH"):
        score_images(str(photos), PROMPTS, str(tmp_path / "out"), str(bare))
    scored = score_images(str(photos), PROMPTS, str(tmp_path / "out"), f"quickgelu@{bare}")
    assert pq.read_table(scored.scores.scores).num_rows == 2


def test_conversion_keeps_an_activation_and_assumes_none(network_files, tmp_path):
    bare = bare_copy(network_files["clip"], tmp_path)
    with pytest.raises(CheckpointError, match="does not say which activation"):
        convert_weights(str(bare), str(tmp_path / "clip.safetensors"))
    done = convert_weights(f"gelu@{bare}", str(tmp_path / "clip.safetensors"))
    assert done.description["activation"] == "gelu"
    assert load_clip(tmp_path / "clip.safetensors", assume=None).activation == "gelu"
    assert json.loads((tmp_path / "clip.json").read_text())["config"]["activation"] == "gelu"


def test_a_siglip_is_used_as_it_is_not_converted(siglip, tmp_path):
    with pytest.raises(CheckpointError, match=r"is a SigLIP, which is used as it is, not converted"):
        convert(siglip / "open_clip_model.safetensors", tmp_path / "clip.safetensors")


def test_a_folder_of_a_bucket_is_the_same_clip_and_is_read_once(siglip, s3_identities, tmp_path, monkeypatch):
    monkeypatch.setenv("STYLECLIP_CACHE", str(tmp_path / "cache"))
    place = "s3://results/clips/siglip"
    for path in siglip.iterdir():
        copy_from_local(path, f"{place}/{path.name}")
    networks._loaded.clear()
    wanted = Wanted("clip", place, "cpu")
    before = wanted.version()
    assert current(wanted).fingerprint == load_clip(siglip).fingerprint
    assert current(wanted) is current(wanted)
    config = f"{place}/open_clip_config.json"
    write_bytes_atomic(config, read_bytes(config) + b"\n")
    assert wanted.version() != before


def test_other_spellings_reach_runs_as_they_are(siglip, tmp_path):
    given = Models(generator="g.pkl", clip=f"gelu@{siglip}/../siglip/a.pt").clip
    assert given == f"gelu@{siglip}/a.pt"
    for name in ("ViT-B/32", "open_clip:ViT-B-32/laion2b_s34b_b79k", "hf-hub:timm/ViT-B-16-SigLIP"):
        assert Models(generator="g.pkl", clip=name).clip == name
    with pytest.raises(ValueError, match="names no weights; write open_clip:ARCHITECTURE/TAG"):
        Models(generator="g.pkl", clip="open_clip:ViT-B-32")
    with pytest.raises(ValueError, match="the URI holds credentials"):
        Models(generator="g.pkl", clip="gelu@s3://key:secret@bucket/clip.pt")


def test_a_folder_of_transformers_scores_images(photos, tmp_path):
    folder = write_transformers(tmp_path / "siglip", "siglip")
    scored = score_images(str(photos), PROMPTS, str(tmp_path / "out"), str(folder))
    rows = pq.read_table(scored.scores.scores).to_pandas()
    assert set(rows.status) == {OK}


@pytest.mark.parametrize("many", [False, True])
def test_prompts_in_another_language_are_warned_of_unless_the_clip_reads_them(
    siglip, photos, tmp_path, monkeypatch, caplog, many
):
    monkeypatch.setattr("styleclip_core.models.clip_open_clip.MANY_LANGUAGES", 100 if many else 100_000)
    networks._loaded.clear()
    prompts = [LabelPrompt(name="grey", prompt="седые волосы")]
    score_images(str(photos), prompts, str(tmp_path / "out"), str(siglip))
    assert ("another language than English" in caplog.text) is not many
    assert run_here(Judges(clip=str(siglip))).clip.multilingual is many
