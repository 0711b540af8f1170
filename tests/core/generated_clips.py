"""Tiny CLIPs of the families of open_clip and transformers, generated, as their users get them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
ENGLISH = ["a face", "a photo of a person with grey hair", "eine Frau mit Hut"]
LANGUAGES = [
    "graue Haare und ein Hut",
    "cheveux gris",
    "白髪の人",
    "седые волосы",
    "pelo gris",
    "a face with a hat",
]
# architectures by the names of those they are small forms of
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "tiny-ViT": {
        "embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": TEXT,
    },
    "tiny-ViT-quickgelu": {
        "embed_dim": 16, "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}, "text_cfg": TEXT,
    },
    "tiny-RN": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
    "tiny-SigLIP": {
        "embed_dim": 48, "init_logit_bias": -10, "custom_text": True,
        "vision_cfg": {
            "image_size": 32, "timm_model_name": "vit_tiny_siglip_32", "timm_model_pretrained": False,
            "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 64, "vocab_size": 400, "hf_tokenizer_name": "own/tokens",
            "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 48, "heads": 3, "layers": 1,
            "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
        },
    },
    "tiny-MobileCLIP": {
        "embed_dim": 64, "custom_text": True,
        "vision_cfg": {
            "timm_model_name": "fastvit_t8", "timm_model_pretrained": False, "timm_pool": "avg",
            "timm_proj": None, "timm_drop": 0.0, "timm_drop_path": 0.0, "image_size": 64,
        },
        "text_cfg": {**TEXT, "no_causal_mask": True},
    },
}  # fmt: skip
# how published weights of each family want images
PREPROCESSING: dict[str, dict[str, Any]] = {
    "tiny-SigLIP": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
    "tiny-MobileCLIP": {
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
        "interpolation": "bilinear",
        "resize_mode": "shortest",
    },
}


@timm.models.register_model
def vit_tiny_siglip_32(pretrained: bool = False, **options: Any) -> torch.nn.Module:
    """Build a small form of SigLIP's image tower, for timm to find by its name."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    make = timm.models.vision_transformer._create_vision_transformer
    made: torch.nn.Module = make(
        "vit_tiny_siglip_32", pretrained=pretrained, **{**sizes, "class_token": False, **options}
    )
    return made


def generated(config: dict[str, Any], seed: int = 0) -> torch.nn.Module:
    """Build a network of open_clip's with generated weights, whose embeddings differ from image to image."""
    from open_clip.model import CLIP, CustomTextCLIP

    torch.manual_seed(seed)
    parts = json.loads(json.dumps(config))
    module = (CustomTextCLIP if parts.pop("custom_text", False) else CLIP)(**parts)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if value.ndim > 1:
                value.copy_(
                    torch.randn(value.shape) * (0.02 if "embedding" in name else value[0].numel() ** -0.5)
                )
        for name, value in module.named_buffers():
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape) + 0.5)
    ready: torch.nn.Module = module.eval()
    return ready


def write_tokenizer(folder: Path) -> None:
    """Train a tokenizer of whole Unicode on a few lines, and write it as repositories have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokens.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator([*ENGLISH, *LANGUAGES], trainer)
    tokens.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>").save_pretrained(
        folder
    )


def write_open_clip(folder: Path, name: str, *, module: torch.nn.Module | None = None) -> Path:
    """Write a CLIP of a family as open_clip's repositories on the hub lie there; returns its folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = ARCHITECTURES[name]
    state = (module or generated(config)).state_dict()
    save_file(
        {key: value.contiguous() for key, value in state.items()}, folder / "open_clip_model.safetensors"
    )
    described = {"model_cfg": config, "preprocess_cfg": PREPROCESSING.get(name, {})}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    if "hf_tokenizer_name" in config["text_cfg"]:
        write_tokenizer(folder)
    return folder


def write_transformers(folder: Path, kind: str, activation: str = "quick_gelu") -> Path:
    """Write a CLIPModel or SiglipModel as transformers saves it, and what it wants; returns its folder."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "hidden_act": activation}
    vision = {**text, "image_size": 32, "patch_size": 16}
    if kind == "clip":
        model = CLIPModel(
            CLIPConfig(text_config=text | {"vocab_size": 49408}, vision_config=vision, projection_dim=16)
        )
        described = {
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32},
            "do_center_crop": True,
        }
        named = "CLIPImageProcessor"
    else:
        tokens = {"vocab_size": 400, "max_position_embeddings": 64, "projection_size": 32}
        tokens |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
        model = SiglipModel(SiglipConfig(text_config={**text, **tokens}, vision_config=vision))
        described, named = {"size": {"height": 32, "width": 32}}, "SiglipImageProcessor"

    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape) * value[0].numel() ** -0.5)
    model.save_pretrained(folder)
    if kind == "siglip":
        write_tokenizer(folder)
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    described |= {"do_resize": True, "resample": 3, "do_rescale": True, "do_normalize": True, **statistics}
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": named, **described}))
    return folder
