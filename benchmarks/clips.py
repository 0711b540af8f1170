"""How near embeddings are to those of open_clip's own model, transform and tokenizer: real architectures.

    python -m benchmarks.clips [NAME ...]

Weights are generated, as comparing needs no trained ones, and read as a folder of a repository is. Printed is
what the lowest cosines lack of 1: of images that have the size which the network reads, of the embedded
photographs, which both sides resize, and of texts.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip import factory, pretrained
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from styleclip import data
from styleclip_core import load_clip
from styleclip_core.images import from_uint8
from tests.core.generated_clips import ENGLISH, generated, write_tokenizer

NAMES = ("ViT-B-32", "ViT-B-32-quickgelu", "RN50", "ViT-B-16-SigLIP", "MobileCLIP-S1")
_PHOTOGRAPHS = 8


def _write(folder: Path, name: str) -> None:
    """Write an architecture with generated weights as a repository has it."""
    config = factory.get_model_config(name)
    tags = open_clip.pretrained.list_pretrained_tags_by_model(name)
    wanted = pretrained.get_pretrained_cfg(name, tags[-1])
    described = {"model_cfg": config, "preprocess_cfg": wanted}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    state = {key: value.contiguous() for key, value in generated(config).state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    if config["text_cfg"].get("hf_tokenizer_name"):
        write_tokenizer(folder)


def _lowest(ours: Tensor, theirs: Tensor) -> float:
    return F.cosine_similarity(ours.double(), theirs.double()).min().item()


@torch.no_grad()
def compare(name: str) -> tuple[float, float, float]:
    """Return the lowest cosine of whole images, of resized photographs, and of texts."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write(folder, name)
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        model.eval()
        ours = load_clip(folder)

    side = ours.input_resolution
    photographs = [Image.open(each) for each in sorted(data.PHOTOGRAPHS.glob("*.png"))[:_PHOTOGRAPHS]]
    whole = [each.resize((side, side)) for each in photographs]
    found = []
    for images in (whole, photographs):
        theirs = model.encode_image(torch.stack([transform(each) for each in images]))
        pixels = torch.stack([torch.frombuffer(bytearray(each.convert("RGB").tobytes()), dtype=torch.uint8)
                              .view(each.height, each.width, 3) for each in images])  # fmt: skip
        found.append(_lowest(ours.embed_images(from_uint8(pixels.numpy())), theirs))
    texts = _lowest(ours.embed_text(ENGLISH), model.encode_text(tokenizer(ENGLISH)))
    return found[0], found[1], texts


def main() -> None:
    """Compare the architectures that are named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES)
    print(f"{'1 - lowest cosine':<22}{'whole':>10}{'resized':>10}{'texts':>10}")  # noqa: T201
    for name in parser.parse_args().names:
        print(f"{name:<22}" + "".join(f"{1 - each:10.1e}" for each in compare(name)), flush=True)  # noqa: T201
        gc.collect()


if __name__ == "__main__":
    main()
