"""Train the embedded world's CLIP: OpenAI's own architecture on renders and captions.

The loss is the symmetric cross-entropy over a batch, with one difference from CLIP's: a caption
("face with glasses") is true of many portraits of the batch, and every true pair counts as a
positive. A linear head that reads all factors off the image embedding is trained beside it and
thrown away; it keeps small factors alive in the embedding.

The text tower is trained on the few hundred tokens that captions use, and on sequences no longer
than needed; neither changes what it computes (causal attention), both make it fast. Saved, the
tokens are spread over CLIP's full vocabulary and any CLIP loader reads the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from clip.clip import _tokenizer
from clip.model import CLIP
from torch import Tensor, nn

from styleclip.data.world.captions import ATTRIBUTES, caption, truths, vocabulary
from styleclip.data.world.dataset import RenderedPortraits
from styleclip.data.world.renderer import NUM_FACTORS, strengths
from styleclip.data.world.training import Draw, Run, Schedule, blur_and_noise, device, mixed_precision

SEED = 11
SCHEDULE = Schedule(steps=1900, learning_rate=1.5e-3)
BATCH = 128
EMBED_DIM, IMAGE_SIDE, CONTEXT, VOCABULARY = 128, 64, 77, 49408
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class CompactTokens:
    """CLIP's tokens, renumbered to the few that captions use; 0 pads."""

    def __init__(self) -> None:
        encoder = _tokenizer.encoder
        words = {token for word in vocabulary() for token in _tokenizer.encode(word)}
        special = (encoder["<|startoftext|>"], encoder["<|endoftext|>"])
        self.ids = [*sorted(words), *special]  # the end token stays the largest, as CLIP expects
        self.compact = {token: index + 1 for index, token in enumerate(self.ids)}
        self.size = len(self.ids) + 1
        self._word = lru_cache(maxsize=None)(self._encode_word)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        return tuple(self.compact[token] for token in _tokenizer.encode(word))

    def __call__(self, texts: list[str]) -> Tensor:
        """Tokenize to ``[B, T]``, T the longest caption's length."""
        start, end = self.compact[self.ids[-2]], self.compact[self.ids[-1]]
        rows = [[start, *(t for word in text.split() for t in self._word(word)), end] for text in texts]
        tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
        return tokens


@dataclass(frozen=True)
class Towers:
    """The model in training and what its inputs need."""

    model: CLIP
    factor_head: nn.Linear
    tokens: CompactTokens

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images in -1..1; not normalized."""
        mean = torch.tensor(_MEAN, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(_STD, device=images.device).view(1, 3, 1, 1)
        pixels = ((images + 1) / 2 - mean) / std
        embedded: Tensor = self.model.visual(pixels.contiguous(memory_format=torch.channels_last))
        return embedded

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """CLIP's text tower on sequences of any length; equal to the padded form, as attention is causal."""
        model = self.model
        length = tokens.shape[1]
        x = (model.token_embedding(tokens) + model.positional_embedding[:length]).permute(1, 0, 2)
        for block in model.transformer.resblocks:
            block.attn_mask = model.build_attention_mask()[:length, :length].to(x.device)
            x = block(x)
        x = model.ln_final(x.permute(1, 0, 2))
        embedded: Tensor = (
            x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)] @ model.text_projection
        )
        return embedded


def build_towers(seed: int = SEED) -> Towers:
    """Return fresh towers: ModifiedResNet (1, 1, 1, 1) of width 32, text transformer of width 128."""
    torch.manual_seed(seed)
    tokens = CompactTokens()
    model = CLIP(EMBED_DIM, IMAGE_SIDE, (1, 1, 1, 1), 32, None, CONTEXT, tokens.size, 128, 2, 3).float()
    head = nn.Linear(EMBED_DIM, NUM_FACTORS + len(ATTRIBUTES))
    return Towers(model.to(memory_format=torch.channels_last), head, tokens)


def contrastive_loss(logits: Tensor, matches: Tensor) -> Tensor:
    """Return the symmetric cross-entropy with every true pair as a positive.

    Args:
        logits: Scaled similarities, images in rows and captions in columns, ``[B, B]``.
        matches: 1 where the caption is true of the image, ``[B, B]``.
    """
    to_image = matches / matches.sum(dim=0, keepdim=True)
    # an image prefers the captions that say most about it, not "a face", which is true of all
    specific = to_image / to_image.sum(dim=1, keepdim=True).clamp(min=1e-6)
    text_loss = -(to_image * F.log_softmax(logits, dim=0)).sum(dim=0).mean()
    image_loss = -(specific * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    return text_loss + image_loss


def train(build: Path) -> Path:
    """Train or resume, and write ``clip.pt``; returns its path."""
    where = device()
    portraits = RenderedPortraits.prepare(build)
    towers = build_towers()
    towers.model.to(where).train()
    towers.factor_head.to(where)
    decayed = [p for p in towers.model.parameters() if p.ndim > 1]
    plain = [p for p in towers.model.parameters() if p.ndim <= 1] + list(towers.factor_head.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    parts = {"model": towers.model, "head": towers.factor_head, "optimizer": optimizer}
    run = Run("clip", build / "clip.checkpoint.pt", parts)
    run.resume()
    shown, true = strengths(portraits.factors), truths(portraits.factors)
    target = (shown - shown.mean(dim=0)) / shown.std(dim=0)
    true_lists = [row.nonzero().flatten().tolist() for row in true]
    for step in run.steps(SCHEDULE, seed=SEED):
        chosen = step.integers(len(portraits), BATCH)
        batch = _Batch.make(portraits.images(chosen), true[chosen], [true_lists[i] for i in chosen], step)
        loss = _loss(towers, batch.to(where), target[chosen].to(where), where)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(towers.model.parameters(), 1.0)
        optimizer.step()
        run.loss = loss.item()
    path = build / "clip.pt"
    torch.save({"state_dict": openai_state(towers), "activation": "quickgelu"}, path)
    return path


@dataclass(frozen=True)
class _Batch:
    images: Tensor
    texts: list[str]
    matches: Tensor

    @classmethod
    def make(cls, images: Tensor, true: Tensor, true_lists: list[list[int]], step: Draw) -> _Batch:
        captions = [caption(row, step.python) for row in true_lists]
        named = torch.zeros(len(captions), len(ATTRIBUTES))
        for index, (_, ids) in enumerate(captions):
            named[index, ids] = 1
        matches = (true.float() @ named.t()) >= named.sum(dim=1) - 0.01
        return cls(blur_and_noise(images, step), [text for text, _ in captions], matches.float())

    def to(self, where: torch.device) -> _Batch:
        return _Batch(self.images.to(where), self.texts, self.matches.to(where))


def _loss(towers: Towers, batch: _Batch, target: Tensor, where: torch.device) -> Tensor:
    with mixed_precision(where):
        images = towers.embed_images(batch.images)
        texts = towers.embed_tokens(towers.tokens(batch.texts).to(where))
    images, texts = images.float(), texts.float()
    similarity = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).t()
    scale = towers.model.logit_scale.exp().clamp(max=60)
    factors = towers.factor_head(images)[:, :NUM_FACTORS]
    return contrastive_loss(scale * similarity, batch.matches) + 3 * F.mse_loss(factors, target)


def openai_state(towers: Towers) -> dict[str, Tensor]:
    """Return the weights in OpenAI's layout: full vocabulary, float16."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in towers.model.state_dict().items()}
    spread = torch.zeros(VOCABULARY, state["token_embedding.weight"].shape[1])
    for token, index in towers.tokens.compact.items():
        spread[token] = state["token_embedding.weight"][index]
    state["token_embedding.weight"] = spread
    return {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
