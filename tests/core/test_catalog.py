"""The table of published models: every row is well-formed, and a malformed one would be refused."""

import re

import pytest

from styleclip_core.errors import UnknownModelError
from styleclip_core.models.catalog import KINDS, catalog, find_model, parse_catalog, partners

MODELS = list(catalog().values())
TABLE = """
[licenses.free]
name = "free"
url = "https://example.org/license"
non_commercial = false

[[models]]
name = "first"
kind = "generator"
description = "a generator"
license = "free"
file = "first.pkl"
url = "https://example.org/first.pkl"
page = "https://example.org"
"""


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_entry_is_well_formed(model):
    assert model.kind in KINDS
    assert model.url.startswith("https://")
    assert model.page.startswith("https://")
    assert model.description
    assert model.license.name
    assert model.license.url.startswith("https://")
    for each in (model.sha256, model.reported_sha256):
        assert each is None or re.fullmatch("[0-9a-f]{64}", each)
    assert bool(model.sha256) == bool(model.sha256_origin)
    assert model.sha256 is None or model.reported_sha256 is None
    assert set(model.pairs_with) <= set(catalog())
    assert model.kind != "generator" or (model.resolution and (model.mapping_layers or "human" in model.name))


def test_no_hash_and_no_place_is_there_twice():
    for values in ([model.url for model in MODELS], [model.sha256 for model in MODELS if model.sha256]):
        assert len(values) == len(set(values))


def test_all_published_families_are_there():
    count = {kind: sum(model.kind == kind for model in MODELS) for kind in KINDS}
    assert count["clip"] == 9
    assert count["mapper"] == 14
    assert {"e4e-ffhq", "psp-ffhq", "ir-se50", "fs3-ffhq", "s-mean-std-ffhq"} <= set(catalog())


def test_clip_hashes_are_those_of_the_clip_package():
    clip = pytest.importorskip("clip.clip")
    for name, url in clip._MODELS.items():
        model = find_model(name)
        assert model.url == url
        assert model.sha256 in url
        assert model.file == url.rsplit("/", 1)[1]


def test_partners_are_mutual():
    for model in MODELS:
        for name in partners(model):
            assert model.name in partners(catalog()[name])
    assert {"fs3-ffhq", "s-mean-std-ffhq", "e4e-ffhq"} <= set(partners(find_model("rosinality-ffhq")))


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownModelError, match=r"'e4e-fhq'; did you mean e4e-ffhq .*styleclip models list"):
        find_model("e4e-fhq")


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ('pairs_with = ["second"]', "pairs with .'second'., which nothing is"),
        ('sha256 = "abc"\nsha256_origin = "publisher"', "sha256 cannot be right"),
        (f'sha256 = "{"a" * 64}"', "sha256_origin cannot be right"),
        ("colour = 1", "no such field: .'colour'"),
        (TABLE[TABLE.index("[[models]]") :], "is there twice"),
    ],
)
def test_a_malformed_table_is_refused(addition, message):
    assert list(parse_catalog(TABLE)) == ["first"]
    with pytest.raises(ValueError, match=message):
        parse_catalog(TABLE + addition)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('license = "free"', 'license = "none"', "names no licence"),
        ("https://example.org/first", "http://example.org/first", "not https://"),
        ('"first.pkl"', '"../first.pkl"', "file cannot be right"),
        ('name = "first"', 'name = "../first"', "name cannot be right"),
        ('kind = "generator"', 'kind = "thing"', "kind cannot be right"),
    ],
)
def test_a_changed_table_is_refused(old, new, message):
    with pytest.raises(ValueError, match=message):
        parse_catalog(TABLE.replace(old, new))
