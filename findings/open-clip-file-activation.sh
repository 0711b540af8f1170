#!/usr/bin/env bash
# open_clip 3.3.0: weights that OpenAI trained with QuickGELU, as a file: create_model("ViT-B-32", pretrained=FILE) computes with
# GELU, as the architecture's name says, and gives no warning: the shapes fit. By tag (pretrained="openai") open_clip knows better
# and takes QuickGELU by itself. The right name for the file is "ViT-B-32-quickgelu".
#
# Seen: one file, two names, two activations, other embeddings; no warning.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.15.0 torchvision==0.29.2 open_clip_torch==3.3.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import logging
import warnings

import open_clip
import torch

torch.manual_seed(0)
logging.disable(logging.CRITICAL)
made = open_clip.create_model("ViT-B-32-quickgelu").state_dict()
# as random weights are, activations would be so small that both functions are nearly straight
scaled = {name: each * 3 if ".mlp.c_fc.weight" in name else each for name, each in made.items()}
torch.save(scaled, "ViT-B-32.pt")
logging.disable(logging.NOTSET)

records = []
handler = logging.Handler()
handler.emit = records.append
logging.getLogger().addHandler(handler)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    plain = open_clip.create_model("ViT-B-32", pretrained="ViT-B-32.pt").eval()
quick = open_clip.create_model("ViT-B-32-quickgelu", pretrained="ViT-B-32.pt").eval()

activations = [type(each.visual.transformer.resblocks[0].mlp.gelu).__name__ for each in (plain, quick)]
images = torch.rand(4, 3, 224, 224)
with torch.no_grad():
    apart = (plain.encode_image(images, normalize=True) - quick.encode_image(images, normalize=True)).abs().max()
told = [str(each.message) for each in caught] + [each.getMessage() for each in records]
print("activations:", activations, f"largest difference of embeddings: {float(apart):.4f}, told:", told)
assert activations == ["GELU", "QuickGELU"]
assert float(apart) > 1e-4
assert not [each for each in told if "gelu" in each.lower()]
PY
echo "as described"
