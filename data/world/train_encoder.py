"""Train the embedded world's encoder: portraits to w_plus, as a residual to the average latent.

It learns on renders, the photographs of this world: first towards the latent that the portrait
was drawn from, then towards the portrait itself through the generator. Portraits come from one
latent each: of several latents mixed, an image shows only what each owns, and the rest of their w
would be noise to learn from.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from styleclip.data.world import train_generator
from styleclip.data.world.renderer import render
from styleclip.data.world.training import Run, Schedule, device, draw, mixed_precision
from styleclip_core.models.encoder import Encoder, EncoderConfig, save_encoder
from styleclip_core.models.stylegan2 import Generator

SEED = 41
SCHEDULE = Schedule(steps=2400, learning_rate=2e-3)
LATENT_STEPS, LATENT_BATCH, IMAGE_BATCH = 1500, 48, 16


def train(build: Path, generator: Generator) -> Path:
    """Train or resume against ``generator``, and write ``encoder.safetensors``; returns its path."""
    where = device()
    generator = generator.to(where)
    config = generator.config
    torch.manual_seed(SEED)
    encoder = Encoder(EncoderConfig(config.resolution, config.num_ws, config.w_dim))
    for head in (encoder.base, encoder.offsets):
        head.weight.data *= 0.1
    with torch.no_grad():
        w = generator.mapping(draw(SEED, -1).normal(10_000, config.z_dim).to(where))
    encoder.latent_avg.copy_(generator.mapping.w_avg)
    encoder.latent_std.copy_(w.std(dim=0))
    encoder.to(where).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), weight_decay=0.01)
    run = Run("encoder", build / "encoder.checkpoint.pt", {"encoder": encoder, "optimizer": optimizer})
    run.resume()
    emphasis = train_generator.face_emphasis().to(where)
    for step in run.steps(SCHEDULE, seed=SEED):
        with torch.no_grad():
            count = LATENT_BATCH if step.step < LATENT_STEPS else IMAGE_BATCH
            truth, factors = train_generator.mixed_batch(step, generator, count, mixed_share=0)
        portrait = render(factors).to(where)
        with mixed_precision(where):
            predicted = encoder.encode(portrait)
        loss = _latent_loss(encoder, predicted.float(), truth)
        if step.step >= LATENT_STEPS:
            with mixed_precision(where):
                image = generator.synthesize(generator.styles(predicted.float()), noise="none")
            difference = image - portrait
            pixels = 4 * difference.square().mean() + (difference.abs() * emphasis).mean()
            loss = 0.1 * loss + pixels
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        run.loss = loss.item()
    path = build / "encoder.safetensors"
    save_encoder(encoder.cpu().eval(), path)
    return path


def _latent_loss(encoder: Encoder, predicted: Tensor, truth: Tensor) -> Tensor:
    """Squared error relative to the spread of w as a whole: directions that hardly vary hardly count."""
    return (predicted - truth).square().mean() / encoder.latent_std.square().mean()
