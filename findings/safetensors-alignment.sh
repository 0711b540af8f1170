#!/usr/bin/env bash
# safetensors 0.8.0: a tensor that is read begins in memory wherever the file has it, at a multiple of its element's
# size behind a header that is padded to 8 bytes. torch allocates at multiples of 64 bytes. The same weights under
# another name, or beside another tensor, lie otherwise, and matrix products of some processors then round otherwise
# in the last bits: a conversion that keeps every bit of the weights does not keep those of the results.
#
# Seen: one 33 x 33 weight at 0 of 64 in torch's own memory; read from two files that differ in the name of a tensor
# beside it, at two other places of 64. (Whether a product differs depends on the processor; it is printed.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 safetensors==0.8.0 torch==2.13.0 2>/dev/null
"$work/venv/bin/python" - "$work" <<'PY'
import sys

import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
torch.manual_seed(0)
weight, image = torch.randn(33, 33), torch.randn(7, 33)
places = {"torch": weight.data_ptr() % 64}
products = {"torch": image @ weight}
for name in ("a", "a-rather-long-name-of-a-layer"):
    path = f"{sys.argv[1]}/{len(name)}.safetensors"
    save_file({name: torch.zeros(3), "weight": weight}, path)
    read = load_file(path)["weight"]
    assert torch.equal(read, weight)
    places[name] = read.data_ptr() % 64
    products[name] = image @ read
print("bytes beyond a multiple of 64:", places)
print("products differ from torch's own by", {k: (v - products["torch"]).abs().max().item() for k, v in products.items()})
assert places.pop("torch") == 0
assert len(set(places.values())) == 2, places
PY
echo "as described"
