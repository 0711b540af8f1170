"""Weights files made to do harm: refused by every loader, in few words, and nothing of them ever runs.

Evidence: a corpus of hostile files (``hostile_files``) against all six public loaders, in a process that
records by an audit hook what is executed, imported, started, connected or written to, and by the kernel
how much memory is held; damage at every hundredth of the valid files of every kind; and random changes.
The canary is tested too: Python's own unpickler sets it off.

Unless ``HOSTILE_EXAMPLES`` is set, a part of the corpus stands for it, in which every attack occurs, and
the random search is short; ``make hostile`` and ``make test-long`` take all of it and look longer.
"""

import io
import os
import pickle
import struct
import zipfile

import pytest
from hostile_files import CORPUS, SAMPLE, WRAPPERS, legacy, scripted, torch_zip, valid_files
from hostile_pickles import BOMBS, PAYLOADS, program
from hostile_run import THOROUGH, Examination, attempt, loaders, watch, watched
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from styleclip_core.errors import CheckpointError
from styleclip_core.files.builders import BUILDERS, TYPES
from styleclip_core.files.pickles import _OPCODES

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "150"))
CASES = list(CORPUS) if THOROUGH else SAMPLE
KINDS = sorted(valid_files())
SEARCH = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=not THOROUGH, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.fixture(scope="module")
def examination():
    with Examination() as process:
        yield process


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    watch()
    found, path = loaders(), tmp_path_factory.mktemp("valid") / "x"
    for content, kind in valid_files().values():  # everything that loading imports is imported now
        path.write_bytes(content)
        found[kind](path)
        for load in found.values():
            attempt(load, path)
    return found


def test_the_corpus_is_large():
    assert len(CORPUS) >= 1_400


def test_the_sample_has_every_attack_and_every_kind_of_file():
    assert set(SAMPLE) <= set(CORPUS)
    assert len(SAMPLE) == len(set(SAMPLE))
    for label in PAYLOADS:
        assert sum(f"payload {label}, {wrapper}" in SAMPLE for wrapper in WRAPPERS) == 1, label
    for label in BOMBS:
        assert (f"bomb {label}" in SAMPLE) != (f"bomb {label}, in a zip" in SAMPLE), label
    for wrapper in WRAPPERS:
        assert sum(f"payload {label}, {wrapper}" in SAMPLE for label in PAYLOADS) >= 25, wrapper
    others = {name for name in CORPUS if not name.startswith(("payload ", "bomb "))}
    assert others <= set(SAMPLE)


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_refused_and_nothing_of_it_runs(examination, name):
    report = examination.report(name)
    assert report["problems"] == []
    assert "loaded" not in report["outcomes"].values()


def test_the_canary_would_be_seen(tmp_path, monkeypatch, readers):
    monkeypatch.chdir(tmp_path)
    with watched() as events:
        pickle.loads(program(PAYLOADS["os.system"]))
    assert (tmp_path / "canary").exists()
    assert any(event.startswith("os.system") for event in events)
    with watched() as events:
        pickle.loads(program(PAYLOADS["io.open"])).close()
    assert any("for writing" in event for event in events)
    _, problems = attempt(lambda path: pickle.loads(program(PAYLOADS["builtins.eval"])), tmp_path / "x")
    assert any(problem.startswith("exec") for problem in problems)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_at_any_hundredth_is_refused(readers, tmp_path, kind):
    content, loader = valid_files()[kind]
    path = tmp_path / "cut"
    for hundredth in range(100):
        path.write_bytes(content[: len(content) * hundredth // 100])
        outcome, problems = attempt(readers[loader], path)
        assert problems == [], hundredth
        assert outcome != "loaded", hundredth


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_anywhere_does_no_harm(readers, tmp_path, kind):
    content, loader = valid_files()[kind]
    path = tmp_path / "flipped"
    for index in range(0, 200, 10 if kind == "safe clip" else 2):  # CLIP takes its time when it loads
        place = len(content) * index // 200
        bit = 1 << index % 8
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        _, problems = attempt(readers[loader], path)
        assert problems == [], place


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind in ("clip", "mapper", "rosinality", "torchscript")]
)
def test_a_flipped_bit_in_the_weights_of_a_zip_file_is_found(readers, tmp_path, kind):
    content, loader = valid_files()[kind]
    path = tmp_path / "flipped"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [entry for entry in archive.infolist() if "/data/" in entry.filename and entry.file_size]
    for entry in entries[:20]:
        name_and_extra = content[entry.header_offset + 26 : entry.header_offset + 30]
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", name_and_extra))
        path.write_bytes(content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :])
        with pytest.raises(CheckpointError, match="checksum"):
            readers[loader](path)


def _change(content, change):
    what, place, length, other, data = change
    place, other = place % (len(content) + 1), other % (len(content) + 1)
    return {
        "flip": content[:place] + bytes(b ^ x for b, x in zip(content[place:], data, strict=False))
        + content[place + len(data) :],
        "delete": content[:place] + content[place + length :],
        "insert": content[:place] + data + content[place:],
        "splice": content[:place] + content[other : other + length] + content[place + length :],
        "duplicate": content[:place] + content[place : place + length] * 2 + content[place + length :],
    }[what]  # fmt: skip


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "delete", "insert", "splice", "duplicate"]),
        # structure lies at the ends, weights between
        st.integers(0, 1 << 20) | st.integers(0, 4_000) | st.integers(-4_000, -1),
        st.integers(1, 600), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=12),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@SEARCH
@given(st.sampled_from(KINDS), CHANGES)
def test_random_changes_of_a_valid_file_do_no_harm(readers, tmp_path, kind, changes):
    content, loader = valid_files()[kind]
    for change in changes:
        content = _change(content, change)
    (tmp_path / "changed").write_bytes(content)
    _, problems = attempt(readers[loader], tmp_path / "changed")
    assert problems == []


def _text(data):
    return struct.pack("<I", len(data)) + data


_NAMES = sorted(f"{found.module}\n{found.name}\n".encode() for found in {**BUILDERS, **TYPES})
_NAMES += [
    b"dnnlib.util\nEasyDict\n",
    b"torch.nn.modules.module\nModule\n",
    b"dnnlib.tflib.network\nNetwork\n",
]
_NAMES += [b"os\nsystem\n", b"__torch__.a\nM\n", b"argparse\nNamespace\n"]
_WORDS = [
    b"storage",
    b"0",
    b"g_ema",
    b"state",
    b"_modules",
    b"_parameters",
    b"latin1",
    b"variables",
    b"f4",
    b"cpu",
]
_WORDS += [b"state_dict", b"opts", b"components", b"text_projection", b"class_name", b"synthesis.b4.const"]
_byte, _line = st.binary(min_size=1, max_size=1), st.integers(-3, 1 << 70).map(lambda n: b"%d\n" % n)
_ARGUMENTS = {
    ord("c"): st.sampled_from(_NAMES), ord("X"): st.sampled_from(_WORDS).map(_text),
    ord("B"): st.binary(max_size=40).map(_text), ord("T"): st.binary(max_size=8).map(_text),
    ord("K"): _byte, ord("U"): st.just(b"\x01a"), ord("C"): st.just(b"\x04abcd"), 0x8C: st.just(b"\x010"),
    ord("h"): st.integers(0, 6).map(lambda n: bytes([n])), ord("q"): st.integers(0, 6).map(lambda n: bytes([n])),
    ord("M"): st.binary(min_size=2, max_size=2), ord("J"): st.binary(min_size=4, max_size=4),
    ord("G"): st.binary(min_size=8, max_size=8), 0x8A: st.binary(max_size=9).map(lambda b: bytes([len(b)]) + b),
    ord("I"): _line, ord("L"): _line, ord("F"): st.just(b"1e999\n"), ord("S"): st.just(b"'0'\n"),
    ord("V"): st.just(b"0\n"), ord("g"): _line, ord("p"): _line, 0x80: st.just(b"\x04"), 0x95: st.just(bytes(8)),
}  # fmt: skip
_OPERATION = st.sampled_from(sorted(_OPCODES)).flatmap(
    lambda code: _ARGUMENTS.get(code, st.just(b"")).map(lambda argument: bytes([code]) + argument)
)
_TUPLE = st.lists(_OPERATION, max_size=7).map(lambda parts: b"(" + b"".join(parts) + b"t")
_CALL = st.tuples(
    st.sampled_from(_NAMES), _TUPLE, st.sampled_from([b"R", b"\x81", b"R}b", b"RNb", b"Q"])
).map(lambda parts: b"c" + parts[0] + parts[1] + parts[2])
_PROGRAMS = st.lists(_OPERATION | _CALL | _TUPLE, max_size=40).map(
    lambda parts: b"\x80\x04" + b"".join(parts) + b"."
)
_WRAPS = [bytes, lambda content: torch_zip(content, {"0": bytes(64)}), legacy, scripted]


@SEARCH
@given(
    _PROGRAMS,
    st.sampled_from(_WRAPS),
    st.sampled_from(["generator", "clip", "encoder", "mapper", "identity"]),
)
def test_random_programs_do_no_harm(readers, tmp_path, content, wrap, loader):
    (tmp_path / "program").write_bytes(wrap(content))
    _, problems = attempt(readers[loader], tmp_path / "program")
    assert problems == []
