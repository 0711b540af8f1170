"""Published files in and out: the command line, the artifacts it writes, and edits that use them."""

import io
import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from published_files import write_nvidia
from typer.testing import CliRunner

from styleclip.flows.edit_images import edit_images
from styleclip.tasks.artifacts import read_provenance, read_table, to_matrix
from styleclip.tasks.directions.sampling import read_statistics
from styleclip.tasks.running import networks as models
from styleclip.tasks.running.progress import ShardsFailedError
from styleclip.tasks.settings import Execution, Inversion, Models, Relevance, Sampling
from styleclip.tasks.settings.edits import Edit
from styleclip_cli.main import app
from styleclip_core import load_clip, load_encoder, load_generator, save_generator
from styleclip_core.convert import identify
from styleclip_core.errors import ArtifactConflictError, CheckpointError, LayoutMismatchError, StyleCLIPError
from styleclip_core.exchange import relevance_from_fs3, write_fs3
from styleclip_core.models.identity import IdentityNetwork
from styleclip_core.models.mapper import Mapper, MapperConfig
from styleclip_core.models.psp import PspConfig, PspEncoder
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(models, "_loaded", {})

    def invoke(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    return invoke


@pytest.fixture
def published(network_files, tmp_path):
    """Files as the published code leaves them, for the small generator and CLIP."""
    generator, clip = load_generator(network_files["generator"]), load_clip(network_files["clip"])
    folder = tmp_path / "npy"
    folder.mkdir()
    random = np.random.default_rng(0)
    fs3 = random.standard_normal((generator.layout.num_editable, clip.embedding_dim)).astype(np.float16)
    fs3 /= np.linalg.norm(fs3, axis=1, keepdims=True)
    fs3[2] = np.nan
    np.save(folder / "fs3.npy", fs3)
    w = random.standard_normal((40, 8)).astype(np.float32)
    np.save(folder / "W.npy", w)
    styles = generator.styles(torch.from_numpy(w)[:, None].expand(-1, generator.num_ws, -1))
    mean_std = [
        [f(styles[la.name].numpy(), axis=0) for la in generator.layout.layers] for f in (np.mean, np.std)
    ]
    (folder / "S_mean_std").write_bytes(pickle.dumps(mean_std))
    w_plus = random.standard_normal((5, generator.num_ws, 8)).astype(np.float32)
    np.save(folder / "w_plus.npy", w_plus)
    torch.save(torch.from_numpy(w_plus), folder / "latents.pt")
    torch.save([row[None] for row in torch.from_numpy(w_plus)], folder / "list.pt")
    return folder, fs3, w, mean_std, w_plus


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_table_comes_in_and_goes_out_unchanged(run, published, network_files, tmp_path, request, place):
    folder, fs3, _, mean_std, _ = published
    out = str(tmp_path / "imported")
    if place == "s3":
        out = f"{request.getfixturevalue('s3_identities').uri('results')}/imported"
    networks = ("--generator", network_files["generator"], "--clip", network_files["clip"])
    written = run(
        "import",
        "--out",
        out,
        "--relevance",
        folder / "fs3.npy",
        "--statistics",
        folder / "S_mean_std",
        *networks,
    )
    assert written == [f"{out}/relevance.parquet", f"{out}/statistics.parquet"]
    assert read_provenance(written[0]).clip == load_clip(network_files["clip"]).fingerprint
    n = read_table(written[0])["n"].to_numpy()
    assert n[2] == 0
    assert np.delete(n, 2).tolist() == [1] * (len(n) - 1)
    back, statistics = f"{out}/fs3.npy", f"{out}/S_mean_std"
    run("export", written[0], back, "--half", *networks)
    run("export", written[1], statistics, *networks)
    again = np.load(io.BytesIO(_read(back)))
    assert again.dtype == np.float16
    np.testing.assert_allclose(again, np.nan_to_num(fs3), atol=1e-3)
    assert not again[2].any()
    # as the published code reads it; the export was written here
    for theirs, ours in zip(mean_std, pickle.loads(_read(statistics)), strict=True):
        for a, b in zip(theirs, ours, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_short_tables_leave_the_later_layers_unseen(run, published, network_files, tmp_path):
    folder, fs3, *_ = published
    layout = load_generator(network_files["generator"]).layout
    rows = sum(layer.channels for layer in layout.editable[:3])
    np.save(folder / "short.npy", fs3[:rows])
    networks = ("--generator", network_files["generator"], "--clip", network_files["clip"])
    (uri,) = run("import", "--out", tmp_path / "o", "--relevance", folder / "short.npy", *networks)
    n = read_table(uri)["n"].to_numpy()
    assert len(n) == layout.num_editable
    assert not n[rows:].any()
    np.save(folder / "odd.npy", fs3[: rows - 1])
    with pytest.raises(LayoutMismatchError, match=rf"odd\.npy has {rows - 1} rows; for this generator"):
        run("import", "--out", tmp_path / "p", "--relevance", folder / "odd.npy", *networks)


@pytest.mark.parametrize("rows", [5376, 6048])
def test_published_layer_counts_of_the_ffhq_generator(tmp_path, rows):
    with torch.device("meta"):
        layout = Generator(GeneratorConfig(resolution=1024)).layout
    np.save(tmp_path / "t.npy", np.eye(rows, 8, dtype=np.float16))
    table = relevance_from_fs3(tmp_path / "t.npy", layout)
    assert table.direction.shape == (6048, 8)
    assert write_fs3(table, tmp_path / "back.npy", published_layers=rows == 5376) == rows


def test_w_gives_the_statistics_that_the_published_code_computes(run, published, network_files, tmp_path):
    folder, _, w, mean_std, _ = published
    codes, statistics = run(
        "import",
        "--out",
        tmp_path / "o",
        "--w",
        folder / "W.npy",
        "--codes",
        7,
        "--generator",
        network_files["generator"],
    )
    found = read_statistics(statistics)
    assert found.n == len(w)
    np.testing.assert_allclose(found.mean, np.concatenate(mean_std[0]), atol=1e-6)
    np.testing.assert_allclose(found.std, np.concatenate(mean_std[1]), atol=1e-6)
    assert np.array_equal(to_matrix(read_table(codes), "w"), w[:7])


@pytest.mark.parametrize("name", ["w_plus.npy", "latents.pt", "list.pt"])
def test_latents_come_in_and_go_out(run, published, network_files, tmp_path, name):
    folder, *_, w_plus = published
    generator = ("--generator", network_files["generator"])
    (uri,) = run("import", "--out", tmp_path / "o", "--latents", folder / name, *generator)
    table = read_table(uri)
    assert table["image_key"].to_pylist() == [f"{i:06d}" for i in range(5)]
    assert table["status"].to_pylist() == ["ok"] * 5
    for target in ("back.npy", "back.pt"):
        run("export", uri, tmp_path / target, *generator)
    assert np.array_equal(np.load(tmp_path / "back.npy"), w_plus)
    assert np.array_equal(torch.load(tmp_path / "back.pt", weights_only=True).numpy(), w_plus)
    assert json.loads((tmp_path / "back.pt.json").read_text()) == table["image_key"].to_pylist()


def test_another_file_is_no_second_import_into_one_place(run, published, network_files, tmp_path):
    folder, fs3, *_, w_plus = published
    networks = ("--generator", network_files["generator"], "--clip", network_files["clip"])
    np.save(folder / "other.npy", np.roll(fs3, 1, axis=0))
    np.save(folder / "near.npy", w_plus * np.float32(1.00001))
    for option, first, second in (("relevance", "fs3", "other"), ("latents", "w_plus", "near")):
        once, again = (
            ("import", "--out", tmp_path / "o", f"--{option}", folder / f"{name}.npy", *networks)
            for name in (first, second)
        )
        assert run(*once) == run(*once)
        with pytest.raises(
            ArtifactConflictError,
            match=rf"{option}\.parquet was made of something else: imported_from is {first}\.npy there and "
            rf"{second}\.npy here, file is [0-9a-f]{{16}} there and [0-9a-f]{{16}} here; give another place",
        ):
            run(*again)


def test_wrong_files_say_what_to_do(run, published, network_files, tmp_path):
    folder, *_ = published
    networks = ("--generator", network_files["generator"], "--clip", network_files["clip"])
    np.save(folder / "wide.npy", np.ones((10, 99), np.float32))
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    cases = {
        ("--relevance", "objects.npy"): "cannot be read as weights",
        ("--relevance", "w_plus.npy"): "an array of floats with 2 axes is expected",
        ("--statistics", "fs3.npy"): "it is a numpy array",
        ("--w", "wide.npy"): "is 99 wide, the generator's w 8",
        ("--latents", "S_mean_std"): "holds no latents",
    }
    for (option, name), message in cases.items():
        with pytest.raises(StyleCLIPError, match=message):
            run("import", "--out", tmp_path / "o", option, folder / name, *networks)
    assert not list((tmp_path / "o").glob("*")) if (tmp_path / "o").exists() else True


def test_an_export_refuses_artifacts_of_other_networks(run, published, network_files, tmp_path):
    folder, *_ = published
    networks = ("--generator", network_files["generator"], "--clip", network_files["clip"])
    uri, statistics = run(
        "import",
        "--out",
        tmp_path / "o",
        "--relevance",
        folder / "fs3.npy",
        "--statistics",
        folder / "S_mean_std",
        *networks,
    )
    with pytest.raises(ArtifactConflictError, match="was built with generator"):
        run("export", uri, tmp_path / "x.npy")
    with pytest.raises(StyleCLIPError, match="was made with generator"):
        run("export", statistics, tmp_path / "x")
    assert not list(tmp_path.glob("x*"))


def test_every_kind_of_weights_converts_to_safetensors(run, network_files, tmp_path):
    torch.manual_seed(0)
    generator = load_generator(network_files["generator"])
    write_nvidia(tmp_path / "g.pkl", generator.state_dict(), generator.config, canary=tmp_path / "canary")
    encoder = PspEncoder(PspConfig("psp", 1))
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items() if k != "latent_avg"}
    torch.save({"state_dict": state, "latent_avg": torch.zeros(512)}, tmp_path / "e.pt")
    torch.save(IdentityNetwork().state_dict(), tmp_path / "i.pth")
    mapper = Mapper(MapperConfig("levels", ("medium",), w_dim=8))
    torch.save({"state_dict": {f"mapper.{k}": v for k, v in mapper.state_dict().items()}}, tmp_path / "m.pt")
    sources = {"g.pkl": "generator", "e.pt": "encoder", "i.pth": "identity", "m.pt": "mapper"}
    for name, kind in {**sources, network_files["clip"]: "clip", network_files["encoder"]: "encoder"}.items():
        source = tmp_path / name
        assert identify(source) == kind
        target = tmp_path / f"{kind}-{source.stem}.safetensors"
        options = ("--encoder-kind", "psp") if name == "e.pt" else ()
        assert run("convert", source, target, *options) == [str(target)]
        assert identify(target) == kind
        record = json.loads(target.with_suffix(".json").read_text())
        assert record["kind"] == kind
        assert run("convert", target, tmp_path / "again.safetensors") == [str(tmp_path / "again.safetensors")]
        assert (tmp_path / "again.safetensors").read_bytes() == target.read_bytes()
    assert not (tmp_path / "canary").exists()
    assert load_encoder(tmp_path / "encoder-e.safetensors").config.kind == "psp"
    with pytest.raises(CheckpointError, match=r"no class of rosinality's code takes this generator"):
        run("convert", tmp_path / "g.pkl", tmp_path / "rosinality.pt")
    published = Generator(GeneratorConfig(resolution=8, z_dim=8, w_dim=8, mapping_layers=8))
    save_generator(published, tmp_path / "p.safetensors")
    run("convert", tmp_path / "p.safetensors", tmp_path / "rosinality.pt")
    again = load_generator(tmp_path / "rosinality.pt").state_dict()
    assert all(torch.equal(again[name], each) for name, each in published.state_dict().items())
    with pytest.raises(CheckpointError, match=r"the target of a conversion ends in \.safetensors"):
        run("convert", tmp_path / "m.pt", tmp_path / "m.pkl")
    torch.save({"x": 1}, tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match="holds none of generator, encoder, identity, clip, mapper, perceptual"
    ):
        run("convert", tmp_path / "x.pt", tmp_path / "x.safetensors")


@pytest.mark.usefixtures("prefect_server")
def test_an_nvidia_pickle_and_an_imported_table_edit_photographs(run, published, network_files, tmp_path):
    folder, *_ = published
    generator = load_generator(network_files["generator"])
    write_nvidia(tmp_path / "g.pkl", generator.state_dict(), generator.config, canary=tmp_path / "canary")
    networks = ("--generator", tmp_path / "g.pkl", "--clip", network_files["clip"])
    run(
        "import", "--out", tmp_path / "table", "--relevance", folder / "fs3.npy",
        "--statistics", folder / "S_mean_std", *networks,
    )  # fmt: skip
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.effect_noise((20, 20), 90 + number).convert("RGB").save(tmp_path / "photos" / f"{number}.png")
    chosen = Models(
        generator=str(tmp_path / "g.pkl"), clip=network_files["clip"], encoder=network_files["encoder"]
    )
    result = edit_images(
        chosen, str(tmp_path / "photos"), str(tmp_path / "out"),
        [Edit(target="grey hair", neutral="hair", top_k=5)],
        inversion=Inversion(steps=2), execution=Execution(device="cpu"), table=str(tmp_path / "table"),
    )  # fmt: skip
    manifest = pd.read_parquet(result.report.manifest)
    assert manifest["status"].tolist() == ["ok"] * 3
    assert not (tmp_path / "out" / "workspace" / "relevance").exists()
    assert not (tmp_path / "canary").exists()
    count = run("export", result.latents, tmp_path / "latents.npy", "--generator", tmp_path / "g.pkl")
    assert count == [str(tmp_path / "latents.npy")]
    assert np.load(tmp_path / "latents.npy").shape == (3, generator.num_ws, 8)
    save_generator(load_generator(tmp_path / "g.pkl"), tmp_path / "g.safetensors")
    other = chosen.model_copy(update={"generator": str(tmp_path / "g.safetensors")})
    with pytest.raises(ArtifactConflictError, match="was built with generator"):
        edit_images(
            other, str(tmp_path / "photos"), str(tmp_path / "out"), [Edit(target="grey hair", top_k=5)],
            execution=Execution(device="cpu"), table=str(tmp_path / "table"),
        )  # fmt: skip


@pytest.mark.usefixtures("prefect_server")
def test_a_conditional_generator_of_standing_people_runs_the_whole_chain(
    network_files, tmp_path, monkeypatch
):
    monkeypatch.setattr(models, "_loaded", {})
    torch.manual_seed(0)
    config = GeneratorConfig(16, 8, 8, 3, 2, channel_base=64, channel_max=6, const_width=2)
    write_nvidia(tmp_path / "g.pkl", Generator(config).state_dict(), config, canary=tmp_path / "canary")
    (tmp_path / "photos").mkdir()
    for number in range(2):
        Image.effect_noise((20 + number, 30), 90).convert("RGB").save(tmp_path / "photos" / f"{number}.png")
    chosen = Models(generator=str(tmp_path / "g.pkl"), clip=network_files["clip"])
    settings = {"inversion": Inversion(steps=2), "execution": Execution(device="cpu")}
    places = (
        chosen,
        str(tmp_path / "photos"),
        str(tmp_path / "out"),
        [Edit(target="grey hair", top_k=5)],
        "",
    )
    with pytest.raises(ShardsFailedError, match="has 3 classes, the label is None"):
        edit_images(*places, Sampling(statistics=20, codes=2), relevance=Relevance(samples=2), **settings)
    result = edit_images(
        *places, Sampling(statistics=20, codes=2, label=1), relevance=Relevance(samples=2), **settings
    )
    manifest = pd.read_parquet(result.report.manifest)
    assert manifest["status"].tolist() == ["ok", "ok"]
    for key in manifest["output_key"]:
        with Image.open(tmp_path / "out" / key) as edited:
            assert edited.size == (8, 16)


def _read(uri):
    from styleclip.tasks.storage import read_bytes

    return read_bytes(uri)
