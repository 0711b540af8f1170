#!/usr/bin/env bash
# datasets 5.2.0 reads WebDataset tars (load_dataset("webdataset", ...)) with the types of the first five samples for all of
# them. webdataset itself reads each sample as it is. Of the same valid tars, where a value looks otherwise from the sixth on:
#   a number of a JSON that was whole is cut off: 0.5 becomes 0, without a word
#   a key of a JSON, or a member, that is new is left out, without a word
#   what was null cannot be anything else: the whole data set ends in an error
# The types can be given: as features, or in the README.md of a folder, under dataset_info.
#
# Seen: as said; with features all values are read.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q datasets==5.2.0 webdataset==1.0.2 pillow==13.0.0
export HF_HOME="$work/home" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import io
import json
import tarfile

import datasets
import webdataset
from datasets import Features, Value

datasets.disable_progress_bars()


def write(name, first, later, texts=(False, False)):
    """Write eight samples, of which the last two have another JSON, and texts or none."""
    with tarfile.open(name, "w") as tar:
        for number in range(8):
            late = number >= 6
            members = {"json": json.dumps(later if late else first).encode()}
            if texts[late]:
                members["txt"] = b"a caption"
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{number:04d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def read(name, features=None):
    found = datasets.load_dataset("webdataset", data_files={"train": name}, split="train", features=features)
    return found[7]


def read_by_webdataset(name):
    samples = webdataset.WebDataset(name, shardshuffle=False, empty_check=False).decode()
    return list(samples)[7]


write("numbers.tar", {"score": 1}, {"score": 0.5})
print("0.5 after whole numbers:", read("numbers.tar")["json"], "; webdataset:", read_by_webdataset("numbers.tar")["json"])
assert read("numbers.tar")["json"] == {"score": 0}
assert read_by_webdataset("numbers.tar")["json"] == {"score": 0.5}

write("keys.tar", {"score": 1.0}, {"score": 1.0, "note": "x"}, texts=(False, True))
print("a new key and a new member:", {name: read("keys.tar")[name] for name in ("json",)}, sorted(read("keys.tar")))
assert read("keys.tar")["json"] == {"score": 1.0}
assert "txt" not in read("keys.tar")
assert read_by_webdataset("keys.tar")["json"]["note"] == "x"
assert read_by_webdataset("keys.tar")["txt"] == "a caption"

write("nulls.tar", {"score": None}, {"score": 0.5})
try:
    read("nulls.tar")
except datasets.exceptions.DatasetGenerationError as error:
    print("a number after nulls:", repr(error.__cause__))
else:
    raise AssertionError("a number after nulls was read")
typed = Features({"json": {"score": Value("float64")}, "__key__": Value("string"), "__url__": Value("string")})
assert read("nulls.tar", typed)["json"] == {"score": 0.5}
PY
echo "as described"
