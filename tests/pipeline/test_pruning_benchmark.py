"""The benchmark of pruning follows every reference, so it would notice whatever pruning took too much."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pruning import make, missing_of, references
from tests.pipeline.test_flows import encoded, portrait

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_whatever_a_batch_refers_to_is_missed(network_files, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(2):
        (photos / f"{number}.png").write_bytes(encoded(portrait(number)))
    made = make([str(photos)], str(out), network_files, nights=2, batches=2)
    assert made.days == [30, 15, 30, 15]

    named = set(references(str(out)))
    assert not list(missing_of(str(out)))
    kinds = ("images/", "/reconstructions/", "/index.parquet", "/relevance.parquet", "/index.html", ".png")
    for kind in kinds:
        key = min(each for each in named if kind in each)
        path = Path(out / key)
        if kind in ("/index.parquet", "/index.html"):  # read to know the rest
            continue
        content = path.read_bytes()
        path.unlink()
        assert key in set(missing_of(str(out)))
        path.write_bytes(content)
    assert not list(missing_of(str(out)))

    # every file is as old as the step that wrote it
    moments = {path: path.stat().st_mtime for path in out.rglob("*") if path.is_file()}
    made.set_back(out)
    assert all(path.stat().st_mtime < moment - 10 * 86_400 for path, moment in moments.items())
