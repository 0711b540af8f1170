"""A place has one name, whatever it is called; what can be no place is refused with the remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from styleclip.flows.run import check_places
from styleclip.tasks.settings import Clip, Judges, MapperTraining, Models, OptionalUri, SettingsError, Uri
from styleclip.tasks.storage import (
    NO_PLACE,
    MissingObjectError,
    PlaceError,
    canonical,
    list_objects,
    write_bytes_atomic,
)
from styleclip.tasks.storage.filesystems import _options

_NAMES = st.text("abcAé .:", min_size=1, max_size=4).filter(lambda name: set(name) != {"."})
_KEYS = st.lists(st.text("ab./", min_size=1, max_size=3), min_size=1, max_size=3)


class _Form(BaseModel):
    place: Uri
    perhaps: OptionalUri = ""
    clip: Clip = "ViT-B/32"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A folder to be in, with a link to another one."""
    root = tmp_path_factory.mktemp("places").resolve()
    (root / "at" / "home").mkdir(parents=True)
    (root / "link").symlink_to(root / "at")
    return root


@pytest.fixture
def here(tree, monkeypatch) -> Path:
    monkeypatch.chdir(tree / "at")
    monkeypatch.setenv("HOME", str(tree / "at" / "home"))
    return tree


def _spellings(root: Path, names: list[str]) -> list[str]:
    """Return ways to write root/at/home/<names>, from root/at."""
    rest, home = "/".join(names), root / "at" / "home"
    return [
        f"{home}/{rest}", f"{home}//{rest}/", f"home/{rest}", f"./home/./{rest}//", f"x/../home/{rest}",
        f"home/{rest}/y/..", f"../at/home/{rest}", f"../link/home/{rest}", f"{root}/link/home/{rest}/",
        f"~/{rest}", f"file://{home}/{rest}", f"FILE://{root}/link/home/{rest}/", f"file://home/{rest}",
        f"file://~/{rest}", f"local://{home}/{rest}",
    ]  # fmt: skip


# the fixture sets nothing that one example could leave for the next
@given(names=st.lists(_NAMES, min_size=1, max_size=3))
def test_all_spellings_of_a_folder_are_one_place(tree, names):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tree / "at")
        patch.setenv("HOME", str(tree / "at" / "home"))
        found = {canonical(spelled) for spelled in _spellings(tree, names)}
        assert found == {str(tree / "at" / "home" / "/".join(names))}
        assert {canonical(place) for place in found} == found


@given(key=_KEYS.map("/".join))
def test_all_spellings_of_a_bucket_are_one_place_and_its_keys_stay_apart(key):
    place = canonical(f"s3://bucket/{key}")
    for spelled in (f"s3a://bucket/{key}", f"S3://bucket/{key}/", f"S3A://bucket/{key}//", place):
        assert canonical(spelled) == place
    assert place.rstrip("/") == place == f"s3://bucket/{key}".rstrip("/")


@given(st.lists(st.lists(_NAMES, min_size=1, max_size=3).map("/".join), min_size=2, unique=True))
def test_different_places_stay_different(names):
    for prefix in ("/data", "s3://bucket", "gs://bucket"):
        assert len({canonical(f"{prefix}/{name}") for name in names}) == len(names)


def test_doubled_slashes_count_in_a_bucket_alone():
    assert canonical("s3://b/a//c") == "s3://b/a//c"
    assert canonical("/b/a//c") == canonical("//b/a/c") == "/b/a/c"
    assert canonical("memory:///a/b/") == canonical("memory://a/b")
    assert canonical("gcs://b/x") == "gs://b/x"


def test_a_link_to_a_file_keeps_its_name_as_its_ending_says_what_it_holds(here):
    (here / "3f2a").write_bytes(b"weights")
    (here / "at" / "clip.safetensors").symlink_to(here / "3f2a")
    assert canonical("../link/clip.safetensors") == str(here / "at" / "clip.safetensors")
    assert canonical("clip.safetensors") == str(here / "at" / "clip.safetensors")


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ("s3:/b/x", "did you mean s3://b/x"),
        ("s3:b/x", "did you mean s3://b/x"),
        ("S3:/b", "did you mean s3://b"),
        ("http:/host/x", "did you mean http://host/x"),
        ("file:/data", "did you mean file:///data"),
        ("s3://", "names no bucket; give one, as in s3://bucket "),
        ("s3:///x", "names no bucket"),
        ("gs:///", "names no bucket"),
        ("C:\\photos", "is a path of Windows"),
        ("D:/photos", "is a path of Windows"),
        ("C:", "is a path of Windows"),
        ("\\\\host\\share", "is a path of Windows"),
        ("/data/a\0b", "holds a NUL character"),
        ("s3://key:secret@bucket/x", "holds credentials"),
    ],
)
def test_what_can_be_no_place_is_refused_by_form_and_server_with_the_remedy(given_, message):
    for field in ("place", "perhaps"):
        with pytest.raises(ValidationError, match=message):
            _Form.model_validate({"place": "x", field: given_})
        assert not re.search(_Form.model_json_schema()["properties"][field]["pattern"], given_)


@pytest.mark.parametrize(
    ("given_", "message"),
    [("", "a place is empty"), (" ", "a place is empty"), ("gopher://b/x", "no storage of the kind gopher")],
)
def test_what_only_the_form_knows_is_refused_by_the_form(given_, message):
    with pytest.raises(ValidationError, match=message):
        _Form(place=given_)


def test_nobody_makes_a_folder_that_was_meant_as_a_bucket(here):
    with pytest.raises(PlaceError, match="did you mean s3://b/x"):
        write_bytes_atomic("s3:/b/x", b"")
    assert not Path("s3:").exists()


def test_every_place_of_a_form_has_its_one_form_and_names_of_networks_stay(here):
    found = Models(generator="g.pkl", encoder="~/e.pt", identity="", clip="ViT-B/32")
    at = str(here / "at")
    assert (found.generator, found.encoder, found.clip) == (f"{at}/g.pkl", f"{at}/home/e.pt", "ViT-B/32")
    assert (found.identity, found.perceptual) == (None, None)
    assert Models(generator="g.pkl", clip="clips/c.pt").clip == f"{at}/clips/c.pt"
    assert Judges(clip="./c", identity="i.pth").model_dump() == {
        "clip": f"{at}/c", "identity": f"{at}/i.pth", "perceptual": None,
    }  # fmt: skip
    assert MapperTraining(latents="s3a://b/l/").latents == "s3://b/l"
    assert _Form(place="x").perhaps == ""


def test_nothing_is_written_among_the_photographs_however_they_are_called(here):
    (here / "at" / "p").mkdir()
    (here / "at" / "alias").symlink_to(here / "at" / "p")
    for photos in ("p", "p/", f"file://{here}/at/p", "../link/p", "alias", "p/../alias"):
        for out in ("p/out", "./p", "alias/out", f"{here}/link/p/out"):
            with pytest.raises(SettingsError, match=r"out .*at/p.* lies inside the photographs .*at/p"):
                check_places([canonical(photos)], out=canonical(out))
        check_places([canonical(photos)], out=canonical("p-out"), workspace="")
    with pytest.raises(SettingsError, match="lies inside"):
        check_places(["s3://b"], out=canonical("S3A://b/out/"))


def test_options_of_a_prefix_are_those_of_the_place_however_it_is_called(tmp_path, monkeypatch):
    monkeypatch.setenv("STYLECLIP_STORAGE_OPTIONS", str(tmp_path / "options.json"))
    (tmp_path / "options.json").write_text('{"S3A://photos/": {"profile": "a"}, "s3://": {"profile": "b"}}')
    assert {_options(uri)["profile"] for uri in ("s3://photos", "s3a://photos/x", "S3://photos/")} == {"a"}
    assert _options("s3://photos-raw/x") == {"profile": "b"}
    (tmp_path / "options.json").write_text('{"s3:/photos": {}}')
    with pytest.raises(
        PlaceError.__base__, match=r"options\.json maps what is no .*did you mean s3://photos"
    ):
        _options("s3://photos")


def test_a_folder_that_is_not_there_is_told_with_the_machine_and_where_it_looks(here):
    with pytest.raises(MissingObjectError, match=rf"cannot list {here}/at/none: .*, in {here}/at\); give an"):
        list(list_objects(canonical("none")))


@given(st.text(max_size=12) | st.text("sS3aA:/C\\\0b", max_size=8))
def test_the_server_refuses_nothing_that_the_form_takes(given_):
    try:
        place = canonical(given_)
    except PlaceError:
        return
    assert not re.match(NO_PLACE, given_)
    assert canonical(place) == place
