"""The short way to S3: taken once the store answers, not for what it would change, and left if it fails."""

import json
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import obstore
import pytest
import s3fs

from styleclip.tasks.storage import (
    AccessDeniedError,
    ChangedObjectError,
    MissingObjectError,
    direct,
    exists,
    read_bytes,
    read_version,
    version,
    write_bytes_atomic,
)

PLACE = "s3://results/direct"


@pytest.fixture
def asked(s3_identities, monkeypatch) -> Counter[str]:
    """Count the requests of the short way; s3fs is new, so that no store has been asked yet."""
    s3fs.S3FileSystem.clear_instance_cache()
    found: Counter[str] = Counter()

    def counted(name: str, real):
        def call(*given, **options):
            found[name] += 1
            try:
                return real(*given, **options)
            except Exception:
                found[f"{name} in vain"] += 1
                raise

        return call

    for name in ("get", "put", "head"):
        monkeypatch.setattr(obstore, name, counted(name, getattr(obstore, name)))
    yield found
    s3fs.S3FileSystem.clear_instance_cache()


def test_the_first_request_is_made_by_s3fs_and_the_others_are_not(asked):
    content = os.urandom(5000)
    write_bytes_atomic(f"{PLACE}/a.png", content)
    assert not asked
    write_bytes_atomic(f"{PLACE}/a.png", content)
    assert read_bytes(f"{PLACE}/a.png") == content
    etag = version(f"{PLACE}/a.png")
    assert read_version(f"{PLACE}/a.png", etag) == content
    assert read_version(f"{PLACE}/a.png", etag, slice(10, 200)) == content[10:200]
    assert exists(f"{PLACE}/a.png")
    assert not exists(f"{PLACE}/b.png")
    assert asked == {"put": 1, "get": 3, "head": 2, "head in vain": 1}
    assert s3fs.S3FileSystem(profile="admin").info(f"{PLACE}/a.png")["ContentType"] == "image/png"


def test_errors_are_those_of_s3fs(asked):
    write_bytes_atomic(f"{PLACE}/a.bin", b"one")
    etag = version(f"{PLACE}/a.bin")
    write_bytes_atomic(f"{PLACE}/a.bin", b"two")
    with pytest.raises(ChangedObjectError, match="has changed since it was listed"):
        read_version(f"{PLACE}/a.bin", etag)
    with pytest.raises(MissingObjectError, match="there is no such object"):
        read_bytes(f"{PLACE}/none.bin")
    assert read_bytes(f"{PLACE}/a.bin") == b"two"

    # the reader's own bucket
    assert not exists("s3://photographs/direct.bin")
    assert not exists("s3://photographs/direct.bin")
    with pytest.raises(AccessDeniedError, match="access denied"):
        write_bytes_atomic("s3://photographs/direct.bin", b"")
    assert asked == {"put": 2, "put in vain": 1, "get": 3, "get in vain": 2, "head": 1, "head in vain": 1}


# obstore would ask for "a/b" instead, or refuse to
@pytest.mark.parametrize("key", ["a//b", "a/./b", "a/../b", "/a", "a/", "", "a\x07b", "a\u00a0b"])
def test_keys_that_would_be_mended_are_left_to_s3fs(key):
    assert not direct._is_plain(key)


@pytest.mark.parametrize(
    "key", ["a b/c+d%20e.png", "é/日本/😀.png", "k/.hidden", "k/..x", "k/?a#b~*[c]", " lead"]
)
def test_other_keys_are_the_same_objects_on_both_ways(asked, key):
    write_bytes_atomic(f"{PLACE}/open", b"")
    write_bytes_atomic(f"{PLACE}/{key}", key.encode())
    assert asked["put"] == 1
    assert s3fs.S3FileSystem(profile="admin").cat_file(f"{PLACE}/{key}") == key.encode()
    assert read_bytes(f"{PLACE}/{key}") == key.encode()
    assert asked["get"] == 1


def test_credentials_that_were_renewed_meanwhile_are_taken_next_time(asked, monkeypatch):
    write_bytes_atomic(f"{PLACE}/a.bin", b"one")
    assert read_bytes(f"{PLACE}/a.bin") == b"one"
    get = obstore.get

    def expired(*given, **options):
        monkeypatch.setattr(obstore, "get", get)
        raise PermissionError("injected: the token has expired")

    monkeypatch.setattr(obstore, "get", expired)
    connected: list[str] = []
    connect = direct._Way._connect
    monkeypatch.setattr(
        direct._Way, "_connect", lambda way, bucket: connected.append(bucket) or connect(way, bucket)
    )
    assert [read_bytes(f"{PLACE}/a.bin") for _ in range(3)] == [b"one"] * 3
    assert connected == ["results"]
    assert asked["get"] == 3


def test_a_way_that_never_leads_anywhere_is_given_up(asked, monkeypatch):
    def lost(*_given, **_options):
        asked["lost"] += 1
        raise OSError("injected")

    monkeypatch.setattr(obstore, "put", lost)
    for number in range(20):
        write_bytes_atomic(f"{PLACE}/{number}", b"x")
    assert asked["lost"] == direct._FAILURES
    assert all(read_bytes(f"{PLACE}/{number}") == b"x" for number in range(20))
    assert "get" not in asked


def test_an_outage_that_many_requests_meet_at_once_does_not_close_the_way_for_good(asked, monkeypatch):
    # a request of the short way waits here for all others, so that every one of them meets the outage
    together = threading.Barrier(2 * direct._FAILURES)
    put = obstore.put

    def lost(*_given, **_options):
        together.wait(60)
        raise OSError("injected: the connection was reset")

    write_bytes_atomic(f"{PLACE}/open", b"")
    monkeypatch.setattr(obstore, "put", lost)
    with ThreadPoolExecutor(together.parties) as threads:
        list(
            threads.map(lambda number: write_bytes_atomic(f"{PLACE}/{number}", b"x"), range(together.parties))
        )

    monkeypatch.setattr(obstore, "put", put)
    write_bytes_atomic(f"{PLACE}/after", b"x")
    assert asked["put"] == 1


def test_objects_that_have_changed_do_not_close_the_way(asked):
    write_bytes_atomic(f"{PLACE}/a.bin", b"one")
    for _ in range(2 * direct._FAILURES):
        with pytest.raises(ChangedObjectError):
            read_version(f"{PLACE}/a.bin", "of another time")
    assert asked["get"] == 2 * direct._FAILURES
    assert read_bytes(f"{PLACE}/a.bin") == b"one"
    assert asked["get"] == 2 * direct._FAILURES + 1


def test_a_way_that_is_refused_what_s3fs_is_not_is_given_up(asked, monkeypatch):
    def refused(*_given, **_options):
        asked["refused"] += 1
        raise PermissionError("injected")

    monkeypatch.setattr(obstore, "get", refused)
    write_bytes_atomic(f"{PLACE}/a.bin", b"one")
    assert all(read_bytes(f"{PLACE}/a.bin") == b"one" for _ in range(2 * direct._FAILURES))
    assert asked["refused"] == direct._FAILURES


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_SESSION_TOKEN", "of another identity"),
        ("AWS_TOKEN", "of another identity"),
        ("AWS_ACCESS_KEY_ID", "of-another-identity"),
        ("AWS_SKIP_SIGNATURE", "true"),
        ("AWS_S3_EXPRESS", "true"),
        ("AWS_REQUEST_PAYER", "true"),
        ("AWS_ENDPOINT", "http://127.0.0.1:9"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9"),
        ("AWS_REGION", "eu-west-9"),
    ],
)
def test_the_environment_does_not_lead_the_short_way_elsewhere(
    asked, s3, tmp_path, monkeypatch, variable, value
):
    # the place has an endpoint and an identity of its own, which go before any variable
    own = {"profile": "writer", "client_kwargs": {"endpoint_url": s3.endpoint}}
    (tmp_path / "options.json").write_text(json.dumps({"s3://results/": own}))
    monkeypatch.setenv("STYLECLIP_STORAGE_OPTIONS", str(tmp_path / "options.json"))
    monkeypatch.setenv(variable, value)

    for content in (b"one", b"two"):
        write_bytes_atomic(f"{PLACE}/a.bin", content)
    assert read_bytes(f"{PLACE}/a.bin") == b"two"
    assert asked == {"put": 1, "get": 1}  # none of them in vain


@pytest.mark.parametrize("variable", ["AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_KMS_KEY_ID"])
def test_encryption_that_the_environment_asks_of_obstore_alone_leaves_requests_to_s3fs(
    asked, monkeypatch, variable
):
    monkeypatch.setenv(variable, "aws:kms")
    for content in (b"one", b"two"):
        write_bytes_atomic(f"{PLACE}/a.bin", content)
    assert read_bytes(f"{PLACE}/a.bin") == b"two"
    assert not asked


@pytest.mark.parametrize(
    "options",
    [
        {"s3_additional_kwargs": {"ServerSideEncryption": "aws:kms"}},
        {"requester_pays": True},
        {"version_aware": True},
        {"client_kwargs": {"verify": False}},
        {"config_kwargs": {"signature_version": "s3"}},
    ],
    ids=str,
)
def test_special_requests_are_made_by_s3fs(options):
    fs = s3fs.S3FileSystem(anon=True, skip_instance_cache=True, **options)
    assert direct._way(fs, "bucket/key") is None


@pytest.mark.parametrize(
    ("variable", "value"), [("HTTP_PROXY", "http://127.0.0.1:9"), ("AWS_USE_FIPS_ENDPOINT", "true")]
)
def test_special_surroundings_leave_requests_to_s3fs(s3_identities, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    fs = s3fs.S3FileSystem(profile="writer", skip_instance_cache=True)
    way = direct._way(fs, "results/key")
    way.open()
    assert way.ask("results", "key", lambda store, key: "asked") == (None, None)
    way.open()
    assert not way._open


@pytest.mark.parametrize(("style", "found"), [("path", "asked"), ("virtual", None), ("auto", None)])
def test_an_addressing_style_is_usual_where_it_is_that_of_the_short_way(
    s3_identities, tmp_path, monkeypatch, style, found
):
    (tmp_path / "config").write_text(f"[profile writer]\ns3 =\n  addressing_style = {style}\n")
    of_options = {"config_kwargs": {"s3": {"addressing_style": style}}}
    for number, options in enumerate(({}, of_options)):
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / ("none" if number else "config")))
        fs = s3fs.S3FileSystem(profile="writer", skip_instance_cache=True, **options)
        way = direct._way(fs, "results/key")
        way.open()
        assert way.ask("results", "key", lambda store, key: "asked") == (found, None)
