"""Storage: whole objects or none, named errors, keys that cannot escape; local and on a real S3 server."""

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from styleclip.tasks.storage import (
    AccessDeniedError,
    ChangedObjectError,
    MissingObjectError,
    StorageError,
    delete_objects,
    delete_stale_temporaries,
    exists,
    filesystem,
    join,
    list_folders,
    list_objects,
    output_key,
    read_bytes,
    read_version,
    version,
    write_bytes_atomic,
    written,
)
from styleclip.tasks.storage.filesystems import _options
from styleclip.tasks.storage.temporaries import temporary_name


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "data")
    server = request.getfixturevalue("s3_identities")
    return f"{server.uri('results')}/{request.node.name.replace('[', '-').replace(']', '')}"


def test_what_is_written_is_read_back_and_listed(folder):
    large = os.urandom(6_000_000)
    write_bytes_atomic(join(folder, "b/large.bin"), large)
    write_bytes_atomic(join(folder, "a.txt"), b"small")
    assert read_bytes(join(folder, "b/large.bin")) == large
    assert exists(join(folder, "a.txt"))
    assert not exists(join(folder, "b"))
    listed = list(list_objects(folder))
    assert [(item.key, item.size) for item in listed] == [("a.txt", 5), ("b/large.bin", 6_000_000)]
    assert len({item.etag for item in listed}) == 2
    assert [item.key for item in list_objects(folder, suffixes=(".txt",))] == ["a.txt"]


def test_a_new_version_has_another_etag_and_is_seen_at_once(folder):
    write_bytes_atomic(join(folder, "x.bin"), b"one")
    (first,) = list_objects(folder)
    write_bytes_atomic(join(folder, "x.bin"), b"three")
    (second,) = list_objects(folder)
    assert first.etag != second.etag
    assert read_bytes(join(folder, "x.bin")) == b"three"


def test_the_version_that_was_listed_is_read_or_none(folder):
    for name, content in (("a.bin", b"one"), ("b.bin", os.urandom(6_000_000))):
        write_bytes_atomic(join(folder, name), content)
        (listed,) = (item for item in list_objects(folder) if item.key == name)
        assert version(join(folder, name)) == listed.etag
        assert read_version(join(folder, name), listed.etag) == content
        write_bytes_atomic(join(folder, name), b"two")
        with pytest.raises(ChangedObjectError, match=rf"{name} has changed since it was listed; a new run"):
            read_version(join(folder, name), listed.etag)
    with pytest.raises(MissingObjectError, match="there is no such object"):
        read_version(join(folder, "nothing.bin"), "3-1.0")


def test_other_stores_are_asked_before_and_after_reading(monkeypatch):
    uri = "memory://versions/a.bin"
    write_bytes_atomic(uri, b"one")
    (listed,) = list_objects("memory://versions")
    assert read_version(uri, listed.etag) == b"one"
    memory = type(filesystem(uri)[0])
    read = memory.cat_file

    def overwritten_meanwhile(fs, path, *args, **options):
        fs.pipe_file(path, b"two")
        return read(fs, path, *args, **options)

    monkeypatch.setattr(memory, "cat_file", overwritten_meanwhile)
    with pytest.raises(ChangedObjectError, match="has changed since it was listed"):
        read_version(uri, listed.etag)


def test_a_file_that_is_overwritten_while_it_is_read_is_not_taken(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old!")
    (listed,) = list_objects(str(tmp_path))
    fstat, seen = os.fstat, []

    def overwritten_after_the_first_look(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        if not seen:
            path.write_bytes(b"new, and longer")
        seen.append(found)
        return found

    monkeypatch.setattr("styleclip.tasks.storage.objects.os.fstat", overwritten_after_the_first_look)
    with pytest.raises(ChangedObjectError, match="has changed since it was listed"):
        read_version(str(path), listed.etag)
    assert len(seen) >= 2


def test_a_file_from_the_first_second_of_1970_and_a_link_have_the_version_that_was_listed(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"old")
    os.utime(tmp_path / "a.bin", (0, 0))
    (tmp_path / "b.bin").symlink_to(tmp_path / "a.bin")
    for item in list_objects(str(tmp_path)):
        uri = join(str(tmp_path), item.key)
        assert version(uri) == item.etag
        assert read_version(uri, item.etag) == b"old"


def test_objects_are_deleted_by_the_thousand_and_listed_with_their_time(folder):
    for number in range(5):
        write_bytes_atomic(join(folder, f"a/{number}"), b".")
    write_bytes_atomic(join(folder, "b/c/0"), b".")
    assert all(abs(item.modified - time.time()) < 3600 for item in list_objects(folder))
    assert abs(written(join(folder, "b/c/0")) - time.time()) < 3600
    assert list_folders(folder) == ["a", "b"]
    assert list_folders(join(folder, "nothing")) == []

    # more than one request of S3 takes; most have gone already, which is no error
    assert delete_objects(folder, (f"a/{number}" for number in range(1_200))) == 1_200
    assert [item.key for item in list_objects(folder)] == ["b/c/0"]
    assert delete_objects(folder, ["b/c/0"], folders=True) == 1
    assert list(list_objects(folder)) == []
    if not folder.startswith("s3://"):  # a store may go on telling of folders that are empty
        assert list_folders(folder) == ["a"]  # nobody said that nothing is about to be written there


def test_an_object_that_may_not_be_deleted_is_named(s3_identities, tmp_path, monkeypatch):
    options = tmp_path / "options.json"
    options.write_text('{"s3://": {"profile": "admin"}}')
    with monkeypatch.context() as admin:
        admin.setenv("STYLECLIP_STORAGE_OPTIONS", str(options))
        write_bytes_atomic("s3://photographs/kept/x.png", b".")
    with pytest.raises(AccessDeniedError, match=r"cannot delete .*s3://photographs/kept"):
        delete_objects("s3://photographs/kept", ["x.png"])
    assert [item.key for item in list_objects("s3://photographs/kept")] == ["x.png"]


def test_a_folder_that_cannot_be_emptied_names_its_file(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"cannot delete .*/a/b"):
        delete_objects(str(tmp_path), ["a/b"])


def test_missing_objects_say_so(folder):
    with pytest.raises(MissingObjectError, match=r"cannot read .*nothing.bin: there is no such object"):
        read_bytes(join(folder, "nothing.bin"))
    assert not exists(join(folder, "nothing.bin"))


def test_reading_identity_cannot_write(s3_identities):
    with pytest.raises(AccessDeniedError, match=r"cannot write s3://photographs/x: access denied"):
        write_bytes_atomic("s3://photographs/x", b"no")
    assert not any(item.key == "x" for item in list_objects("s3://photographs"))


def test_writing_identity_cannot_read_the_input(s3_identities, tmp_path, monkeypatch):
    config = tmp_path / "options.json"
    config.write_text('{"s3://": {"profile": "writer"}}')
    monkeypatch.setenv("STYLECLIP_STORAGE_OPTIONS", str(config))
    with pytest.raises(StorageError, match="s3://photographs/any"):
        read_bytes("s3://photographs/any.png")


def test_a_list_of_more_than_a_page_is_complete(s3_identities):
    for number in range(1_050):
        write_bytes_atomic(f"s3://results/many/{number:05d}", b".")
    keys = [item.key for item in list_objects("s3://results/many")]
    assert keys == [f"{number:05d}" for number in range(1_050)]


def test_a_bad_options_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("STYLECLIP_STORAGE_OPTIONS", str(tmp_path / "none.json"))
    with pytest.raises(StorageError, match=r"none.json, which is no readable JSON"):
        read_bytes("s3://bucket/key")


def test_a_failed_write_leaves_nothing(tmp_path):
    target = tmp_path / "taken"
    target.mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        write_bytes_atomic(str(target), b"data")
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_of_dead_writers_are_deleted_and_of_living_ones_kept(tmp_path):
    code = (
        "from styleclip.tasks.storage.temporaries import temporary_name; "
        f"open({str(tmp_path)!r} + '/' + temporary_name(), 'w')"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    living, foreign, old = (
        tmp_path / name for name in (temporary_name(), ".styleclip-tmp-of-somebody", temporary_name())
    )
    for path in (living, foreign, old):
        path.write_bytes(b"half")
    yesterday = time.time() - 2 * 24 * 3600
    os.utime(old, (yesterday, yesterday))  # a restarted container gives its process the old number
    assert list(list_objects(str(tmp_path))) == []
    assert delete_stale_temporaries(str(tmp_path)) == 2
    assert sorted(tmp_path.iterdir()) == sorted([living, foreign])


def test_options_of_a_prefix_end_where_its_folder_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("STYLECLIP_STORAGE_OPTIONS", str(tmp_path / "options.json"))
    (tmp_path / "options.json").write_text('{"s3://photos": {"profile": "reader"}, "s3://photos/a/": {}}')
    assert _options("s3://photos/b.png") == {"profile": "reader"} == _options("s3://photos")
    assert _options("s3://photos-raw/b.png") == {}
    assert _options("s3://photos/a/b.png") == {}


@pytest.mark.parametrize(
    "uri", ["s3://AKIA:secret@bucket/x", "https://user:secret@host/x", "s3://key:secret/x"]
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(StorageError, match="holds credentials; give them in the environment") as caught:
        read_bytes(uri)
    assert "secret" not in str(caught.value)


def test_an_unknown_kind_of_storage_is_a_storage_error():
    with pytest.raises(StorageError, match="cannot use gopher://x/y"):
        read_bytes("gopher://x/y")


AWKWARD = [
    "../../etc/passwd.png", "/absolute.png", "a/../b.png", "a//b.png", "C:\\x.png", "IMG.png", "img.png",
    "Img.png", "caf\u00e9.png", "cafe\u0301.png", "x\x00y.png", "x\ny.png", "a" * 1024, "a.png/b.png",
    "a.png", "a.jpg", "a.jpg~.png", "a~.png", ".png", "", ".", "..", "con.png ", "_/x.png", "a.png~",
    "\udcff.png",
]  # fmt: skip


def test_awkward_keys_stay_inside_and_apart():
    outputs = [output_key(key, suffix=".png") for key in AWKWARD]
    assert len({output.lower() for output in outputs}) == len(AWKWARD)
    for output in outputs:
        parts = output.split("/")
        assert all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
        assert output.isascii()
        assert output.endswith(".png")


def test_plain_keys_stay_readable():
    assert output_key("faces/0001.png", suffix=".png") == "faces/0001.png"
    assert output_key("faces/0001.jpg", suffix=".png") == "faces/0001.jpg~.png"


@given(st.lists(st.text(max_size=40) | st.text("ab./~\\_A", max_size=8), min_size=2, max_size=8, unique=True))
def test_different_keys_never_share_a_path(keys):
    outputs = [output_key(key, suffix=".png") for key in keys]
    assert len({output.lower() for output in outputs}) == len(keys)
    folders = {output.rsplit("/", 1)[0] + "/" for output in outputs if "/" in output}
    assert not any(f"{output}/" in folders for output in outputs)  # no file where a folder must be
    assert all(".." not in output.split("/") and not output.startswith("/") for output in outputs)
