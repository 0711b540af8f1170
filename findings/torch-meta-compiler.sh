#!/usr/bin/env bash
# torch 2.13.0, on a CPU: the meta device, on which a network is built to have its shapes and no memory, before weights of a
# file take the place of what is there. To fill with normal draws there, or to multiply or divide, goes through a reference
# in Python and imports the compiler: torch._dynamo, torch._inductor and sympy, some 800 modules and seconds of
# processor time, in a process that compiles nothing. An nn.Embedding does that, which every CLIP has; nn.Linear and
# nn.Conv2d, which draw uniformly, do not, nor do zeros and ones. To make a torch.optim.Adam, on any device, does.
#
# Seen: torch._dynamo imported by randn / 2, normal_, nn.Embedding and Adam; not by nn.Linear, nn.Conv2d, nn.LayerNorm, ones.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat > "$work/check.py" <<'PY'
import subprocess
import sys

LOOK = """
import sys
import torch
before = len(sys.modules)
with torch.device({device!r}):
    {made}
print("torch._dynamo" in sys.modules, len(sys.modules) - before)
"""
EXPECTED = {
    "torch.ones(3)": False,
    "torch.nn.Linear(3, 3)": False,
    "torch.nn.Conv2d(3, 3, 3)": False,
    "torch.nn.LayerNorm(3)": False,
    "torch.randn(3, 3) / 2": True,
    "torch.empty(3, 3).normal_()": True,
    "torch.nn.Embedding(3, 3)": True,
}


def looked(made, device):
    """Return whether a process of its own has imported the compiler, and how many modules more it has."""
    code = LOOK.format(made=made, device=device)
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    compiler, more = told.stdout.split()
    return compiler == "True", int(more)


found = {made: looked(made, "meta") for made in EXPECTED}
found["on a CPU: torch.nn.Embedding(3, 3)"] = looked("torch.nn.Embedding(3, 3)", "cpu")
found["on a CPU: torch.optim.Adam"] = looked("torch.optim.Adam([torch.zeros(3, requires_grad=True)])", "cpu")
for made, (compiler, more) in found.items():
    print(f"{made}: {'the compiler, ' if compiler else ''}{more} modules")
assert {made: found[made][0] for made in EXPECTED} == EXPECTED
assert found["torch.nn.Embedding(3, 3)"][1] > 500
assert [compiler for compiler, _ in list(found.values())[-2:]] == [False, True]
PY
"$work/venv/bin/python" "$work/check.py"
echo "as described"
