"""Are starts, boxes, masks and initial weights distributed as published?

Augmentation's distributions: augment_draws.py. Every sampler draws at least 10,000 times.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from kinetics400.bench.augment_draws import Comparison, same_numbers
from kinetics400.bench.fidelity.clips import multi_scale_boxes
from kinetics400.data import keys, sampling
from kinetics400.data.sampling import Box
from kinetics400.methods.classification import Classification
from kinetics400.methods.masking import tube_mask
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.vit import DecoderConfig, VitConfig

CROP_SCALE, CROP_RATIO = (0.08, 1.0), (0.75, 4 / 3)


def compare_all(*, seed: int, count: int = 40_000) -> list[Comparison]:
    """Compare every distribution.

    Args:
        seed: of all samplers.
        count: draws of each.
    """
    torch.manual_seed(seed)
    host_keys = keys.combine(seed, torch.arange(count))
    return [
        *start_rows(host_keys),
        *box_rows(host_keys),
        *mask_rows(host_keys),
        *weight_rows(),
    ]


def equally_often(
    quantity: str, reference: str, found: Sequence[Hashable], expected: Sequence[Hashable]
) -> Comparison:
    """Chi-square against a list in which each outcome stands as often as it is likely.

    Raises:
        ValueError: something was found that is not expected.
    """
    counts, weights = Counter(found), Counter(expected)
    if unknown := counts.keys() - weights.keys():
        raise ValueError(f"{quantity}: {next(iter(unknown))} is never drawn by {reference}")
    unit = len(found) / len(expected)
    outcomes = list(weights)
    result = stats.chisquare([counts[o] for o in outcomes], [weights[o] * unit for o in outcomes])
    return Comparison(
        quantity, reference, "chi-square", len(found), result.statistic, result.pvalue
    )


# --- starts ---------------------------------------------------------------------------------------


def start_rows(host_keys: torch.Tensor) -> Iterator[Comparison]:
    """First frames of clips, by length of the video."""
    u = keys.uniform(host_keys, "clip", 1)[:, 0].tolist()
    for length in (250, 300, 65):
        first = [sampling.pretraining_frames(length, 16, 4, each)[0] for each in u]
        reference = f"uniform in 0 … {length - 64}"
        name = f"pretraining clip of {length} frames: start"
        yield equally_often(name, reference, first, range(length - 64 + 1))
    for length in (250, 300):
        first = [sampling.finetuning_frames(length, 16, 4, each)[0] for each in u]
        reference = f"uniform in 0 … {length - 65}"
        name = f"finetuning clip of {length} frames: start"
        yield equally_often(name, reference, first, range(length - 64))
    parts = keys.uniform(host_keys, "clip", 16).tolist()
    frames = [sampling.sparse_frames(250, 16, row) for row in parts]
    offsets = [frame - 15 * part for row in frames for part, frame in enumerate(row)]
    yield equally_often(
        "sparse clip of 250 frames: offsets in 16 parts", "uniform in 0 … 14", offsets, range(15)
    )


# --- boxes ----------------------------------------------------------------------------------------


def box_rows(host_keys: torch.Tensor) -> Iterator[Comparison]:
    """Of portrait and square frames; augment_draws.py has landscape ones."""
    u = keys.uniform(host_keys, "crop", 2).tolist()
    for height, width in ((340, 256), (258, 345)):
        found = [tuple(sampling.multi_scale_box(height, width, 224, row)) for row in u]
        boxes = list(multi_scale_boxes(height, width))
        name = f"pretraining's crop of {width}×{height}: sides and place"
        yield equally_often(name, f"all {len(boxes)} draws, enumerated", found, boxes)
    draws = keys.uniform(host_keys, "crop", sampling.RESIZED_CROP_DRAWS).tolist()
    for height, width in ((340, 256), (180, 320)):
        ours = [
            sampling.random_resized_box(height, width, CROP_SCALE, CROP_RATIO, r) for r in draws
        ]
        frame = torch.empty(1, height, width)
        theirs = [
            Box(*RandomResizedCrop.get_params(frame, list(CROP_SCALE), list(CROP_RATIO)))
            for _ in draws
        ]
        for side in ("height", "width", "top", "left"):
            pair = [[float(getattr(box, side)) for box in boxes] for boxes in (ours, theirs)]
            name = f"finetuning's crop of {width}×{height}: {side}"
            yield same_numbers(name, "torchvision RandomResizedCrop", *pair)


# --- masks ----------------------------------------------------------------------------------------


def mask_rows(host_keys: torch.Tensor) -> Iterator[Comparison]:
    """Places that stay visible, 20 of 196, alone and in pairs.

    Exactly 20 a mask makes counts of places vary less than independent draws: the variance of a
    place is p(1 − p) with correlation −1/195, so χ² is scaled by 195/196 of 1/(1 − p).
    """
    keep, _ = tube_mask(keys.bits(host_keys, "mask", 196), 1, 0.9)
    count, places, kept = len(keep), 196, 20
    seen = np.bincount(keep.flatten().numpy(), minlength=places)
    expected = count * kept / places
    statistic = float(((seen - expected) ** 2).sum() / expected)
    statistic *= (places - 1) / (places - kept)
    p_value = stats.chi2.sf(statistic, places - 1)
    yield Comparison(
        "mask: how often each of 196 places is visible", "uniform", "chi-square", count,
        statistic, p_value,
    )  # fmt: skip
    # The distance in one mask between two of its places, in reading order.
    rng = np.random.default_rng(0)
    theirs = np.sort(rng.random((count, places)).argsort(axis=1)[:, :kept], axis=1)
    gaps = [np.diff(each, axis=1)[:, 0].astype(float).tolist() for each in (keep.numpy(), theirs)]
    yield same_numbers(
        "mask: distance of its first two visible places", "numpy permutations", *gaps
    )


# --- initial weights ------------------------------------------------------------------------------


def weight_rows() -> Iterator[Comparison]:
    """Pretraining's and finetuning's initial weights."""
    config = VitConfig(embed_dim=192, depth=2, num_heads=3)
    decoder = DecoderConfig(embed_dim=96, depth=1, num_heads=2)
    method, classifier = VideoMAE(config, decoder), Classification(config, 400)
    weights, head = method.state_dict(), classifier.head
    bound = (6 / (192 + 768)) ** 0.5
    fan_in = (3 * 2 * 16 * 16) ** -0.5
    tokens = [VideoMAE(_TINY, decoder).mask_token.detach() for _ in range(120)]
    for name, reference, values, cumulative in (
        ("pretraining: linear weights", f"xavier: uniform ± {bound:.3f}",
         weights["encoder.blocks.0.mlp.fc1.weight"], stats.uniform(-bound, 2 * bound).cdf),
        ("patch embedding", f"torch's default: uniform ± {fan_in:.4f}",
         weights["encoder.patch_embed.proj.weight"], stats.uniform(-fan_in, 2 * fan_in).cdf),
        ("mask token", "normal(0, .02) cut at ± .02",
         torch.cat(tokens), stats.truncnorm(-1, 1, scale=0.02).cdf),
        ("finetuning: linear weights", "normal(0, .02)",
         classifier.state_dict()["encoder.blocks.1.attn.proj.weight"], stats.norm(scale=0.02).cdf),
        ("finetuning: head", "normal(0, .02) × .001", head.weight, stats.norm(scale=2e-5).cdf),
    ):  # fmt: skip
        numbers = values.detach().flatten().double().numpy()
        found = stats.kstest(numbers, cumulative)
        test = "Kolmogorov–Smirnov"
        yield Comparison(
            f"initial {name}" if name == "mask token" else f"initial weights, {name}",
            reference, test, len(numbers), found.statistic, found.pvalue,
        )  # fmt: skip


_TINY = VitConfig(embed_dim=8, depth=1, num_heads=1, image_size=32, num_frames=2)
