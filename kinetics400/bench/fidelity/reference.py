"""A plain training loop around transformers, which shares no code with ours.

Models, loss of pretraining and gradients are transformers' and torch's; schedule, parameter groups
and loss of classification are written out here, from the paper's rules.
Shapes: B batch, C channels, T frames, H, W, N tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What both loops are told.

    Attributes:
        peak: learning rate after the warm-up.
        final: learning rate that the cosine tends to.
        warmup: steps.
        steps: of the whole run.
        betas: of AdamW.
        weight_decay: of AdamW.
        layer_decay: factor from each layer to the one below it.
        smoothing: of labels.
    """

    peak: float
    final: float
    warmup: int
    steps: int
    betas: tuple[float, float]
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    smoothing: float = 0.0


@dataclass(frozen=True)
class Step:
    """What both loops learn from in one step."""

    clips: Tensor
    """(B, C, T, H, W) uint8."""
    labels: Tensor
    """(B,) int64."""
    hidden: Tensor
    """(B, N) bool; all False where nothing is masked."""


def train_reference(model: Any, data: Sequence[Step], recipe: Recipe, *, depth: int) -> list[float]:
    """Train transformers' model; the loss of each step.

    Args:
        model: `VideoMAEForPreTraining` or `VideoMAEForVideoClassification`.
        data: one for each step.
        recipe: see there.
        depth: blocks of the encoder.
    """
    groups = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # positions are not learned
            continue
        decays = parameter.dim() > 1 and name != "mask_token"
        layer = depth + 1
        if name.startswith("videomae.embeddings."):
            layer = 0
        elif name.startswith("videomae.encoder.layer."):
            layer = 1 + int(name.split(".")[3])
        groups.append(
            {
                "params": [parameter],
                "weight_decay": recipe.weight_decay if decays else 0.0,
                "scale": recipe.layer_decay ** (depth + 1 - layer),
            }
        )
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=recipe.betas, eps=1e-8)
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 1, 3, 1, 1)
    model.train()
    losses = []
    for number, step in enumerate(data):
        if number < recipe.warmup:
            rate = recipe.peak * number / (recipe.warmup - 1)
        else:
            turn = math.pi * (number - recipe.warmup) / (recipe.steps - recipe.warmup)
            rate = recipe.final + (recipe.peak - recipe.final) * (1 + math.cos(turn)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        pixels = (step.clips.transpose(1, 2) / 255 - mean) / std
        if step.hidden.any():
            loss = model(pixels, bool_masked_pos=step.hidden).loss
        else:
            logits = model(pixels).logits.log_softmax(dim=1)
            own = logits.gather(1, step.labels[:, None]).squeeze(1)
            spread = logits.mean(dim=1)
            loss = -((1 - recipe.smoothing) * own + recipe.smoothing * spread).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
