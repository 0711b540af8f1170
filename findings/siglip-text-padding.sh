#!/usr/bin/env bash
# transformers 5.24.0, SigLIP's text tower: the embedding of a text is read at its last position, padding included, so it depends
# on how far the text was padded, and a prompt has another embedding beside a longer one (padding=True) than alone. An
# attention mask does not help: it gives a third embedding. Right is what the tower was trained with: padding to the
# full context, without a mask. CLIP's tower reads where the text ends, and does not care.
#
# Seen, of small random towers with 16 positions: cosine of a text of 4 tokens, padded to 4 against 16, about 0.54 for SigLIP
# (0.83 for 8 against 16, 0.39 with a mask against without), 1.0 for CLIP.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.15.0 transformers==5.24.0 numpy==2.4.6
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
from torch.nn.functional import cosine_similarity, pad
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, SiglipTextConfig, SiglipTextModel

SMALL = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 16, "projection_dim": 16, "bos_token_id": 8, "eos_token_id": 9,
}
torch.manual_seed(0)
siglip = SiglipTextModel(SiglipTextConfig(**SMALL, projection_size=32)).eval()
clip = CLIPTextModelWithProjection(CLIPTextConfig(**SMALL)).eval()
text = torch.tensor([[8, 5, 6, 9]])


@torch.no_grad()
def of_siglip(length, **more):
    return siglip(pad(text, (0, length - 4), value=1), **more).pooler_output


@torch.no_grad()
def of_clip(length):
    return clip(pad(text, (0, length - 4), value=1)).text_embeds


masked = of_siglip(16, attention_mask=(torch.arange(16) < 4).long()[None])
found = {
    "SigLIP, 4 against 16": cosine_similarity(of_siglip(4), of_siglip(16)),
    "SigLIP, 8 against 16": cosine_similarity(of_siglip(8), of_siglip(16)),
    "SigLIP, masked against not": cosine_similarity(masked, of_siglip(16)),
    "CLIP, 4 against 16": cosine_similarity(of_clip(4), of_clip(16)),
}
print({name: round(float(value), 3) for name, value in found.items()})
*others, of_clips = found.values()
assert all(float(value) < 0.99 for value in others)
assert float(of_clips) > 0.99999
PY
echo "as described"
