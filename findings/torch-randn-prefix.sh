#!/usr/bin/env bash
# torch 2.13.0, on a CPU: torch.randn with a seeded generator. A longer draw does not begin with the shorter one of the same
# seed: normals are made in groups of 16, and where the count is no multiple of it, the last 16 are drawn anew, over some that
# were there. Below 16 they are made one by one, and none is the same. torch.rand draws one value after the other, as
# numpy's generators do. So "the first 100 latents of seed 0" are others when 101 are asked for, with a width like 10 or 100.
#
# Seen: of randn(16) and randn(20) the first 4 agree, of randn(15) and randn(16) none, of 3 and of 4 rows of 10 the first row
# alone; of randn(16) and randn(32), of rows of 512, and of rand always, all.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import numpy as np
import torch


def agree(draw, fewer, more):
    """Return how many values, or rows, a draw shares with the beginning of a longer one of the same seed."""
    one, other = (draw(*size, generator=torch.Generator().manual_seed(1)) for size in (fewer, more))
    same = (one == other[: len(one)]).reshape(len(one), -1).all(dim=1)
    return int(same.sum())


found = {
    "randn 16 of 20": agree(torch.randn, (16,), (20,)),
    "randn 15 of 16": agree(torch.randn, (15,), (16,)),
    "randn 3 rows of 4, width 10": agree(torch.randn, (3, 10), (4, 10)),
    "randn 16 of 32": agree(torch.randn, (16,), (32,)),
    "randn 3 rows of 4, width 512": agree(torch.randn, (3, 512), (4, 512)),
    "rand 15 of 20": agree(torch.rand, (15,), (20,)),
}
for name, count in found.items():
    print(f"{name}: {count} agree")
assert list(found.values()) == [4, 0, 1, 16, 3, 15]

# numpy's draws go on where shorter ones end
short, long = (np.random.Generator(np.random.Philox(1)).standard_normal(count) for count in (15, 20))
assert (short == long[:15]).all()
PY
echo "as described"
