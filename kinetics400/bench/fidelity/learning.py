"""Masks, targets, soft labels, learning rates, drop path against numpy and timm.

Shapes: B batch, C channels, T frames, H, W, N tokens, K classes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor

from kinetics400.augment.mix import Mixing, draw_mixes, mix
from kinetics400.batch import Batch, normalize
from kinetics400.bench.fidelity.golden import Golden, ours_name
from kinetics400.bench.fidelity.rules import EXACT, FORWARD, Rule, difference
from kinetics400.data import keys
from kinetics400.engine.schedule import warmup_cosine
from kinetics400.methods.base import Method
from kinetics400.methods.classification import Classification
from kinetics400.methods.masking import tube_mask
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.vit import DecoderConfig, VitConfig

SEED = 0
# A nearly flat tubelet is divided by the small difference of near numbers.
NEARLY_FLAT = 5e-5


def learning_rules(golden: Golden) -> Iterator[Rule]:
    """Every rule of what is learned and how fast."""
    yield from mask_rules()
    yield target_rule()
    yield soft_label_rule()
    yield from schedule_rules(golden)
    yield from group_rules(golden)
    yield from drop_path_rules()


# --- masks and targets ----------------------------------------------------------------------------


def mask_rules() -> Iterator[Rule]:
    """Tube masks of 14 × 14 places, 8 times."""
    host_keys = keys.combine(SEED, torch.arange(10_000))
    scores = keys.bits(host_keys, "mask", 196)
    keep, hidden = tube_mask(scores, 8, 0.9)
    counts = torch.zeros(len(hidden), 8 * 196, dtype=torch.int64).scatter_(1, hidden, 1)
    per_time = counts.view(-1, 8, 196)
    about: dict[str, Any] = {
        "part": "loss",
        "source": "VideoMAE masking_generator.py",
        "ours": "methods.masking.tube_mask",
        "unit": "tokens",
        "allowed": EXACT,
    }
    yield Rule(
        rule="int(.9 · 196) = 176 places hidden at each of 8 times: 1408 tokens, 160 visible",
        reference="counts, of 10,000 masks",
        test="methods/test_masking.py::test_published_mask_shows_160_tokens_and_hides_1408",
        **about,
        **difference(
            [
                (per_time.sum(-1), np.full((10_000, 8), 176)),
                (counts.sum(-1), np.full(10_000, 1408)),
                (torch.full((1,), keep.shape[1]), [160]),
            ]
        )._asdict(),
    )
    yield Rule(
        rule="the same places at all times; each token visible or hidden, not both",
        reference="comparison of times, of 10,000 masks",
        test="methods/test_masking.py::test_the_same_places_are_hidden_at_all_times",
        **about,
        **difference(
            [
                (per_time, per_time[:, :1].expand(-1, 8, -1)),
                (
                    torch.cat((keep, hidden), 1).sort(1).values,
                    np.tile(np.arange(1568), (10_000, 1)),
                ),
            ]
        )._asdict(),
    )


def target_rule() -> Rule:
    """Normalised targets of random pixels, some patches nearly flat."""
    rng = np.random.default_rng(SEED)
    levels = rng.integers(0, 256, (2, 3, 4, 32, 48), dtype=np.uint8)
    levels[:, :, :2, :16, :16] = 100 + levels[:, :, :2, :16, :16] // 64
    config = VitConfig(embed_dim=12, depth=1, num_heads=1, image_size=32, num_frames=4)
    square = torch.from_numpy(levels[..., :32].copy())
    method = VideoMAE(config, DecoderConfig(embed_dim=8, depth=1, num_heads=1), mask_ratio=0.5)
    every = torch.arange(config.num_tokens).expand(2, -1)
    ours = method.target(normalize(square), every)
    pixels = square.numpy().astype(np.float64) / 255
    theirs = np.zeros(ours.shape)
    for sample in range(2):
        for token in range(8):
            t, y, x = 2 * (token // 4), 16 * (token // 2 % 2), 16 * (token % 2)
            patch = pixels[sample, :, t : t + 2, y : y + 16, x : x + 16].reshape(3, 512)
            spread = np.sqrt(patch.var(axis=1, ddof=1, keepdims=True)) + 1e-6
            theirs[sample, token] = ((patch - patch.mean(axis=1, keepdims=True)) / spread).T.ravel()
    return Rule(
        part="loss",
        rule="targets normalised per tubelet and colour channel over 512 pixels, unbiased "
        "variance, + 1e-6 on the deviation; channel fastest; float32",
        source="VideoMAE engine_for_pretraining.py:35-62",
        ours="methods.videomae.VideoMAE.target",
        reference="numpy float64, loop",
        test="methods/test_videomae.py::test_target_equals_a_slow_one",
        unit="relative",
        allowed=NEARLY_FLAT,
        **difference([(ours, theirs)], relative=True)._asdict(),
    )


# --- soft labels ----------------------------------------------------------------------------------


class _Given(Classification):
    """A classifier whose logits are given."""

    logits: Tensor

    def predict(self, clips: Tensor) -> Tensor:
        return self.logits


def soft_label_rule() -> Rule:
    """Loss and its gradient by the logits, for mixed and smoothed labels."""
    config = VitConfig(embed_dim=8, depth=1, num_heads=1, image_size=16, num_frames=2)
    pairs = []
    for number in range(20):
        generator = torch.Generator().manual_seed(number)
        labels = torch.randint(400, (6,), generator=generator)
        clips = torch.randn(6, 3, 2, 16, 16, generator=generator)
        host_keys = keys.combine(SEED, number, torch.arange(6))
        mixing = Mixing(num_classes=400, mode="batch")
        share = draw_mixes(host_keys, mixing, 16, 16)[0].share
        method = _Given(config, 400, label_smoothing=0.1)
        method.logits = torch.randn(6, 400, generator=generator, requires_grad=True)
        loss = method(mix(Batch(clips, labels, host_keys), mixing), {})["loss"]
        (slope,) = torch.autograd.grad(loss, method.logits)
        targets = mixup_target(labels, 400, share, smoothing=0.1)
        expected = SoftTargetCrossEntropy()(method.logits, targets)
        (expected_slope,) = torch.autograd.grad(expected, method.logits)
        pairs += [(loss.detach(), expected.detach()), (slope, expected_slope)]
    return Rule(
        part="loss",
        rule="mixup or cutmix of smoothed labels (.1), soft-target cross-entropy; and its gradient",
        source="VideoMAE mixup.py, run_class_finetuning.py",
        ours="methods.classification.Classification.forward",
        reference="timm mixup_target and SoftTargetCrossEntropy",
        test="methods/test_classification.py::test_mixed_targets_count_with_their_shares",
        unit="relative",
        allowed=FORWARD,
        **difference(pairs, relative=True)._asdict(),
    )


# --- optimisation ---------------------------------------------------------------------------------


def schedule_rules(golden: Golden) -> Iterator[Rule]:
    """Warm-up and cosine, short and as long as published."""
    facts = golden.facts["lr_schedule"]
    about: dict[str, Any] = {
        "part": "optimisation",
        "source": "VideoMAE utils.py:386-400",
        "ours": "engine.schedule.warmup_cosine",
        "unit": "relative",
        "allowed": 1e-12,
    }
    short = _schedule(facts["lr"], facts["min_lr"], 2 * facts["iters"], 6 * facts["iters"])
    yield Rule(
        rule="warm-up linear from 0 to the peak, cosine from the peak to min_lr, per step",
        reference="golden numbers",
        test="models/test_golden.py::test_whole_learning_rate_schedule",
        **about,
        **difference([(short, facts["values"])], relative=True)._asdict(),
    )
    pairs = []
    # Peak and floor at the published batch; warm-up and length in steps of an epoch.
    for peak, floor, warmup, total, steps in (
        (1.2e-3, 8e-5, 40, 800, 117),  # ViT-B pretraining, 2048 clips
        (2e-3, 2e-6, 5, 100, 469),  # ViT-B finetuning, 512 clips
    ):
        rise = np.linspace(0, peak, warmup * steps)
        place = np.arange((total - warmup) * steps)
        fall = floor + 0.5 * (peak - floor) * (1 + np.cos(np.pi * place / len(place)))
        pairs.append((_schedule(peak, floor, warmup * steps, total * steps), [*rise, *fall]))
    yield Rule(
        rule="the schedules of ViT-B: 800 epochs of pretraining, 100 of finetuning, every step",
        reference="numpy",
        test="engine/test_schedule.py::test_published_pretraining_rates",
        **about,
        **difference(pairs, relative=True)._asdict(),
    )


def _schedule(peak: float, final: float, warmup: int, total: int) -> list[float]:
    return [
        warmup_cosine(step, peak=peak, final=final, warmup_steps=warmup, total_steps=total)
        for step in range(total)
    ]


def group_rules(golden: Golden) -> Iterator[Rule]:
    """What each parameter's rate is multiplied with, and whether it decays."""
    classifier = Classification(golden.encoder, golden.num_classes)
    ours = _by_parameter(classifier, 0.75)
    facts = golden.facts["finetune"]["param_groups"]
    theirs = {
        ours_name(name, "encoder."): (group["lr_scale"], group["weight_decay"])
        for name, group in facts.items()
    }
    about: dict[str, Any] = {
        "part": "optimisation",
        "ours": "methods.base.Method.param_groups",
        "unit": "1",
        "allowed": EXACT,
    }
    yield Rule(
        rule="layer decay .75: embedding 0, block i at i + 1, norm and head last with scale 1; no "
        "weight decay of vectors",
        source="VideoMAE run_class_finetuning.py:417, optim_factory.py",
        reference="golden numbers, per parameter",
        test="models/test_golden.py::test_layer_decay_groups",
        **about,
        **difference([(_listed(ours), _listed(theirs))])._asdict(),
    )
    base = Classification(VitConfig(embed_dim=768, depth=12, num_heads=12), 400)
    scales = {name: scale for name, (scale, _) in _by_parameter(base, 0.75).items()}
    expected = {"encoder.patch_embed.proj.weight": 0.75**13, "fc_norm.weight": 1.0}
    expected |= {"head.weight": 1.0, "head.bias": 1.0}
    expected |= {f"encoder.blocks.{i}.mlp.fc1.weight": 0.75 ** (12 - i) for i in range(12)}
    yield Rule(
        rule="layer decay of ViT-B: .75¹³ at the embedding, .75 ** (12 − i) in block i, 1 at the "
        "head",
        source="VideoMAE run_class_finetuning.py:417",
        reference="the published formula",
        test="methods/test_classification.py::"
        "test_published_finetuning_has_28_groups_from_the_pixels_up",
        **about | {"allowed": 1e-12},
        **difference([([scales[name] for name in expected], [*expected.values()])])._asdict(),
    )
    method = VideoMAE(golden.encoder, golden.decoder, mask_ratio=golden.mask_ratio)
    weights = {name: value.dim() for name, value in method.named_parameters()}
    decays = {n: 0.0 if d == 1 or n == "mask_token" else 0.05 for n, d in weights.items()}
    found = {name: decay for name, (_, decay) in _by_parameter(method, 1.0).items()}
    yield Rule(
        rule="pretraining: weight decay .05 but 0 for vectors, biases and the mask token",
        source="VideoMAE optim_factory.py",
        reference="the published rule, per parameter",
        test="models/test_golden.py::test_pretraining_groups",
        **about,
        **difference([([found[n] for n in decays], [*decays.values()])])._asdict(),
    )


def _by_parameter(method: Method, layer_decay: float) -> dict[str, tuple[float, float]]:
    return {
        name: (group["lr_scale"], group["weight_decay"])
        for group in method.param_groups(0.05, layer_decay)
        for name in group["names"]
    }


def _listed(values: dict[str, tuple[float, float]]) -> list[tuple[float, float]]:
    return [values[name] for name in sorted(values)]


# --- drop path ------------------------------------------------------------------------------------


def drop_path_rules() -> Iterator[Rule]:
    """The rate by depth."""
    pairs = []
    for depth, most in ((12, 0.1), (24, 0.1), (32, 0.2)):
        config = VitConfig(embed_dim=8, depth=depth, num_heads=1, image_size=16, num_frames=2)
        config = VitConfig(**{**vars(config), "drop_path_rate": most})
        method = Classification(config, 2)
        rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in method.encoder.blocks]
        pairs.append((rates, np.linspace(0, most, depth)))
    yield Rule(
        part="model",
        rule="drop path: linspace(0, rate, depth) over the blocks",
        source="VideoMAE modeling_finetune.py",
        ours="models.vit.VisionTransformer",
        reference="numpy linspace",
        test="methods/test_classification.py::test_drop_path_grows_linearly_with_depth",
        unit="1",
        allowed=1e-7,
        **difference(pairs)._asdict(),
    )
