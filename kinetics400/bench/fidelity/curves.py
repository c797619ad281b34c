"""Learning curves: our loop and a separate plain one around transformers, step by step.

The same tiny model, initial weights, clips, order, masks and recipe on a CPU in float32; what
differs is all the code. Clips: the embedded motion dataset, held in memory. How far rounding alone
takes two runs apart is measured beside it: the reference against itself from weights that differ by
one rounding. (Where it learns half again as fast, pretraining is chaotic: rounding alone then grows
to percents.)
Shapes: B batch, C channels, T frames, H, W, N tokens.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn

from kinetics400.batch import Batch, normalize
from kinetics400.bench.fidelity.model import reference_model
from kinetics400.bench.fidelity.reference import Recipe, Step, train_reference
from kinetics400.data import keys
from kinetics400.data.loader import Layout, StepSampler
from kinetics400.data.motion import MOTION_CLASSES, draw_scene, render_video
from kinetics400.engine.log import RunLog, read_metrics
from kinetics400.engine.optim import build_adamw
from kinetics400.engine.schedule import warmup_cosine
from kinetics400.engine.trainer import Plan, fit
from kinetics400.methods.base import Method
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.vit import DecoderConfig, VitConfig

SEED = 0
ALLOWED_GAP = 1e-3
STEPS, BATCH_SIZE, VIDEOS_PER_CLASS = 300, 8, 8
ENCODER = VitConfig(embed_dim=96, depth=4, num_heads=4, image_size=64)
DECODER = DecoderConfig(embed_dim=64, depth=2, num_heads=2)
MASK_RATIO = 0.75

Keyed = tuple[Step, Tensor]  # and the samples' keys


def fidelity_curves(
    *, steps: int = STEPS, per_class: int = VIDEOS_PER_CLASS, say: Callable[[str], None]
) -> dict[str, Any]:
    """Train both models by both loops; the result is plain JSON.

    Args:
        steps: of each of the four runs.
        per_class: videos of each of the ten classes.
        say: told what goes on.
    """
    started = time.perf_counter()
    clips, labels = motion_clips(per_class)
    common: dict[str, Any] = {"steps": steps, "warmup": max(steps // 10, 2)}
    recipes = {
        "pretraining": Recipe(peak=3e-4, final=1e-5, betas=(0.9, 0.95), **common),
        "classification": Recipe(
            peak=5e-4,
            final=1e-6,
            betas=(0.9, 0.999),
            layer_decay=0.75,
            smoothing=0.1,
            **common,
        ),
    }
    curves: list[dict[str, Any]] = []
    for name, recipe in recipes.items():
        torch.manual_seed(SEED)
        method = _method(name, recipe)
        theirs, rounded = reference_model(method), off_by_rounding(reference_model(method))
        data = list(in_order(method, clips, labels, steps))
        say(f"{name}: {steps} steps of ours")
        ours = train_ours(method, data, recipe)
        say(f"{name}: {steps} steps of the reference")
        learned_from = [each for each, _ in data]
        plain = train_reference(theirs, learned_from, recipe, depth=ENCODER.depth)
        say(f"{name}: {steps} steps of the reference, its first weights off by a rounding")
        other = train_reference(rounded, learned_from, recipe, depth=ENCODER.depth)
        curves.append(
            {
                "task": name,
                "ours": ours,
                "reference": plain,
                "largest_gap": largest_gap(ours, plain),
                "largest_gap_of_rounding": largest_gap(other, plain),
                "recipe": {**vars(recipe), "batch_size": BATCH_SIZE},
            }
        )
    return {
        "benchmark": "fidelity-curves",
        "passed": all(curve["largest_gap"] <= ALLOWED_GAP for curve in curves),
        "allowed_gap": ALLOWED_GAP,
        "seed": SEED,
        "curves": curves,
        "model": {**vars(ENCODER), "decoder": vars(DECODER), "mask_ratio": MASK_RATIO},
        "videos": len(labels),
        "seconds": time.perf_counter() - started,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
    }


def largest_gap(losses: Sequence[float], reference: Sequence[float]) -> float:
    """Relative to the reference, over all steps."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))


@torch.no_grad()
def off_by_rounding(model: nn.Module) -> nn.Module:
    """Every weight moved up or down by one part in 2^23."""
    generator = torch.Generator().manual_seed(SEED)
    for parameter in model.parameters():
        up = torch.rand(parameter.shape, generator=generator) < 0.5
        parameter.mul_(torch.where(up, 1 + 2.0**-23, 1 - 2.0**-23))
    return model


def _method(name: str, recipe: Recipe) -> VideoMAE | Classification:
    if name == "pretraining":
        return VideoMAE(ENCODER, DECODER, mask_ratio=MASK_RATIO)
    return Classification(
        ENCODER, len(MOTION_CLASSES), label_smoothing=recipe.smoothing, head_init_scale=1.0
    )


def motion_clips(per_class: int) -> tuple[Tensor, Tensor]:
    """Clips (V, C, T, H, W) uint8 of every fourth frame of motion videos, and their classes."""
    clips, labels = [], []
    for number in range(per_class * len(MOTION_CLASSES)):
        label = number % len(MOTION_CLASSES)
        frames = torch.from_numpy(render_video(draw_scene(label, (SEED, number))))[:64:4]
        side = min(frames.shape[1:3])
        top, left = ((size - side) // 2 for size in frames.shape[1:3])
        square = frames[:, top : top + side, left : left + side].permute(0, 3, 1, 2)
        size = (ENCODER.image_size, ENCODER.image_size)
        clips.append(F.interpolate(square, size, mode="bilinear", antialias=True).transpose(0, 1))
        labels.append(label)
    return torch.stack(clips), torch.tensor(labels)


def in_order(
    method: VideoMAE | Classification, clips: Tensor, labels: Tensor, steps: int
) -> Iterator[Keyed]:
    """What each step learns from, in the order that our loader gives."""
    layout = Layout(batch_size=BATCH_SIZE)
    sampler = StepSampler(len(clips), layout, seed=SEED, start_step=0, total_steps=steps)
    for items in sampler:
        indices = torch.tensor([index for index, _, _ in items])
        sample_keys = torch.stack([keys.sample_key(SEED, epoch, slot) for _, epoch, slot in items])
        hidden = torch.zeros(len(items), ENCODER.num_tokens, dtype=torch.bool)
        if drawn := method.draw(sample_keys):
            hidden.scatter_(1, drawn["mask_indices"], True)
        yield Step(clips[indices], labels[indices], hidden), sample_keys


def train_ours(method: Method, data: Sequence[Keyed], recipe: Recipe) -> list[float]:
    """Train with `engine.trainer.fit`; the loss of each step, read from the run's log."""
    groups = method.param_groups(recipe.weight_decay, recipe.layer_decay)
    plan = Plan(
        total_steps=recipe.steps,
        steps_per_epoch=recipe.steps,
        global_batch_size=BATCH_SIZE,
        lr=lambda step: warmup_cosine(
            step,
            peak=recipe.peak,
            final=recipe.final,
            warmup_steps=recipe.warmup,
            total_steps=recipe.steps,
        ),
        log_every=1,
    )
    batches: list[tuple[Batch, list]] = [
        (Batch(step.clips, step.labels, its_keys), []) for step, its_keys in data
    ]
    with tempfile.TemporaryDirectory(prefix="kinetics400-fidelity-") as folder:
        with RunLog(Path(folder), total_steps=recipe.steps) as log:
            fit(
                Fabric(accelerator="cpu", devices=1),
                method,
                build_adamw(groups, betas=recipe.betas, fused=True),
                batches,
                augment=lambda batch: batch.with_clips(normalize(batch.clips)),
                plan=plan,
                log=log,
            )
        return [row["loss"] for row in read_metrics(Path(folder) / "metrics.jsonl")]


def curves_table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = []
    for curve in result["curves"]:
        verdict = "" if curve["largest_gap"] <= result["allowed_gap"] else "  FAILED"
        ends = f"{curve['reference'][0]:.4f} to {curve['reference'][-1]:.4f}"
        lines.append(
            f"{curve['task']:<16}{len(curve['ours'])} steps, loss {ends}, largest relative gap "
            f"{curve['largest_gap']:.1e} (rounding alone: "
            f"{curve['largest_gap_of_rounding']:.1e}){verdict}"
        )
    return "\n".join([*lines, f"{result['seconds']:.0f} s"])
