#!/usr/bin/env bash
# datasets 5.2.0 and webdataset 1.0.2, of one and the same tar: a JPEG that a phone took upright (EXIF orientation 6) is decoded
# upright by datasets, and lying on its side by webdataset's decode("pil"). Neither says so. Pairs of images that were made
# with one of them do not lie on each other when they are read with the other.
#
# Seen, of a picture stored as 40 x 20 px: (20, 40) by datasets, (40, 20) by webdataset.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q datasets==5.2.0 webdataset==1.0.2 pillow==13.0.0
export HF_HOME="$work/home" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import io
import tarfile

import datasets
import webdataset
from PIL import Image

datasets.disable_progress_bars()
exif = Image.Exif()
exif[0x0112] = 6
buffer = io.BytesIO()
Image.new("RGB", (40, 20), "red").save(buffer, "JPEG", exif=exif)
with tarfile.open("photos.tar", "w") as tar:
    for number in range(2):
        info = tarfile.TarInfo(f"{number}.jpg")
        info.size = len(buffer.getvalue())
        tar.addfile(info, io.BytesIO(buffer.getvalue()))

by_datasets = datasets.load_dataset("webdataset", data_files={"train": "photos.tar"}, split="train")[0]["jpg"].size
samples = webdataset.WebDataset("photos.tar", shardshuffle=False, empty_check=False).decode("pil")
by_webdataset = next(iter(samples))["jpg"].size
print("datasets:", by_datasets, "webdataset:", by_webdataset)
assert by_datasets == (20, 40)
assert by_webdataset == (40, 20)
PY
echo "as described"
