"""Is what our augmentation draws distributed as what the references draw?

Numbers are compared by two-sample Kolmogorov–Smirnov tests, counts by chi-square tests; where the
distribution is known, against it. The references' own samplers run with a fixed seed.
"""

import random
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from timm.data import auto_augment
from timm.data.mixup import Mixup, rand_bbox
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from kinetics400.augment.erase import DRAWS, erased_box, normal_noise
from kinetics400.augment.mix import Mixing, draw_mix, symmetric_beta
from kinetics400.augment.randaugment import OPERATIONS, parse_randaugment
from kinetics400.data import keys, sampling
from kinetics400.data.sampling import Box

HEIGHT, WIDTH = 256, 340
ERASE_PROBABILITY, FLIP_PROBABILITY = 0.25, 0.5
CROP_SCALE, CROP_RATIO = (0.08, 1.0), (0.75, 4 / 3)
RARE = 20  # counts of both together; what is rarer is counted as one


@dataclass(frozen=True)
class Comparison:
    """One quantity."""

    quantity: str
    reference: str
    test: str
    count: int
    """Draws of ours."""
    statistic: float
    p_value: float

    def __post_init__(self) -> None:
        for name in ("statistic", "p_value"):  # scipy's are numpy's
            object.__setattr__(self, name, float(getattr(self, name)))


def compare_draws(text: str, *, seed: int, count: int) -> list[Comparison]:
    """Compare every distribution.

    Args:
        text: of RandAugment.
        seed: of all samplers.
        count: clips of each sampler.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    host_keys = keys.combine(seed, torch.arange(count))
    return [
        *randaugment_rows(text, host_keys),
        *erase_rows(host_keys),
        *mix_rows(host_keys),
        *crop_rows(host_keys),
        flip_row(host_keys),
    ]


def same_numbers(
    quantity: str, reference: str, ours: Sequence[float], theirs: Sequence[float]
) -> Comparison:
    """Kolmogorov–Smirnov."""
    found = stats.ks_2samp(ours, theirs, method="asymp")
    test = "Kolmogorov–Smirnov"
    return Comparison(quantity, reference, test, len(ours), found.statistic, found.pvalue)


def same_counts(
    quantity: str, reference: str, ours: Sequence[Hashable], theirs: Sequence[Hashable]
) -> Comparison:
    """Chi-square of a table of two rows; rare values are one column."""
    both = Counter(ours), Counter(theirs)
    columns: dict[Hashable, tuple[int, int]] = {}
    for value in sorted(both[0] | both[1], key=repr):
        pair = both[0][value], both[1][value]
        column = value if sum(pair) >= RARE else "rare"
        before = columns.get(column, (0, 0))
        columns[column] = before[0] + pair[0], before[1] + pair[1]
    if len(columns) == 1:  # the same value always
        return Comparison(quantity, reference, "equality", len(ours), 0.0, 1.0)
    found = stats.chi2_contingency(np.array(list(columns.values())).T, correction=False)
    return Comparison(quantity, reference, "chi-square", len(ours), found.statistic, found.pvalue)


# --- RandAugment ----------------------------------------------------------------------------------


def randaugment_rows(text: str, host_keys: Tensor) -> Iterator[Comparison]:
    """Which operations, whether they are applied, and with what argument."""
    drawn = [draw for clip in parse_randaugment(text).draw(host_keys) for draw in clip]
    chosen, applied = _timm_draws(text, len(host_keys))
    reference = "timm RandAugment"
    yield same_counts("operation", reference, [draw.name for draw in drawn], chosen)
    theirs = [True] * len(applied) + [False] * (len(chosen) - len(applied))
    yield same_counts("applied", reference, [draw.applied for draw in drawn], theirs)
    for name, operation in OPERATIONS.items():
        if operation.argument is None:
            continue
        ours = [
            d.argument for d in drawn if d.applied and d.name == name and d.argument is not None
        ]
        timms = [argument for which, argument in applied if which == name]
        rest = operation.argument(0.0, 1)  # what changes nothing, or least
        if all(value == int(value) for value in ours):
            yield same_counts(f"{name}: argument", f"timm {name}", ours, timms)
            continue
        strengths = [[abs(value - rest) for value in values] for values in (ours, timms)]
        yield same_numbers(f"{name}: strength", f"timm {name}", *strengths)
        signs = [[value < rest for value in values] for values in (ours, timms)]
        yield same_counts(f"{name}: sign", f"timm {name}", *signs)


def _timm_draws(text: str, count: int) -> tuple[list[str], list[tuple[str, float]]]:
    """What timm's RandAugment draws: names; names and arguments of what it applies."""
    chosen: list[str] = []
    applied: list[tuple[str, float]] = []
    randaugment = auto_augment.rand_augment_transform(text, {})

    def recorded(operation: Any) -> Any:
        def note(image: object, *arguments: float, **_: object) -> object:
            applied.append((operation.name, *(arguments or (0.0,))))
            return image

        operation.aug_fn = note

        def call(image: object) -> object:
            chosen.append(operation.name)
            return operation(image)

        return call

    randaugment.ops = [recorded(operation) for operation in randaugment.ops]
    for _ in range(count):
        randaugment(None)
    return chosen, applied


# --- erasing --------------------------------------------------------------------------------------


def erase_rows(host_keys: Tensor) -> Iterator[Comparison]:
    """How often, which box, and the noise in it."""
    reference = "timm RandomErasing"
    u = keys.uniform(host_keys, "erase", DRAWS).tolist()
    maybe = [erased_box(HEIGHT, WIDTH, row[1:]) for row in u if row[0] < ERASE_PROBABILITY]
    ours = [box for box in maybe if box is not None]
    theirs = [box for box in map(_timm_box, range(len(u))) if box is not None]
    erased = [[True] * len(boxes) + [False] * (len(u) - len(boxes)) for boxes in (ours, theirs)]
    yield same_counts("erasing: applied", reference, *erased)
    yield from _box_rows("erasing", reference, ours, theirs)
    noise = normal_noise(host_keys[0], 200_000).double().numpy()
    known = "normal distribution"
    found = stats.kstest(noise, "norm")
    test, n = "Kolmogorov–Smirnov", len(noise)
    yield Comparison("noise: distribution", known, test, n, found.statistic, found.pvalue)
    deviation = float(noise.mean() * n**0.5)
    p_value = float(2 * stats.norm.sf(abs(deviation)))
    yield Comparison("noise: mean", known, "z", n, deviation, p_value)
    spread = float(n * noise.var())
    p_value = 2 * min(stats.chi2.cdf(spread, n - 1), stats.chi2.sf(spread, n - 1))
    yield Comparison("noise: variance", known, "chi-square", n, spread / n, float(p_value))


def _timm_box(_: int) -> Box | None:
    eraser = RandomErasing(ERASE_PROBABILITY, mode="pixel", device="cpu")
    erased = eraser(torch.zeros(1, HEIGHT, WIDTH))[0] != 0
    rows, columns = erased.any(1).nonzero(), erased.any(0).nonzero()
    if not len(rows):
        return None
    return Box(int(rows[0]), int(columns[0]), len(rows), len(columns))


def _box_rows(
    what: str, reference: str, ours: Sequence[Box], theirs: Sequence[Box]
) -> Iterator[Comparison]:
    quantities = {
        "area": lambda box: box.height * box.width / (HEIGHT * WIDTH),
        "aspect": lambda box: box.width / box.height,
        "top": lambda box: box.top / max(HEIGHT - box.height, 1),
        "left": lambda box: box.left / max(WIDTH - box.width, 1),
    }
    for name, quantity in quantities.items():
        pair = [quantity(box) for box in ours], [quantity(box) for box in theirs]
        yield same_numbers(f"{what}: {name}", reference, *pair)


# --- mixing ---------------------------------------------------------------------------------------


def mix_rows(host_keys: Tensor) -> Iterator[Comparison]:
    """λ, whether it is cutmix, and its box."""
    mixing = Mixing(num_classes=400, mode="elem")
    ours = [draw_mix(key, mixing, HEIGHT, WIDTH) for key in host_keys]
    mixer = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5, mode="batch")
    theirs = [mixer._params_per_batch() for _ in range(len(host_keys))]
    reference = "timm Mixup"
    switched = [each.box is not None for each in ours], [bool(cut) for _, cut in theirs]
    yield same_counts("cutmix instead of mixup", reference, *switched)
    shares = [each.share for each in ours if each.box is None]
    yield same_numbers("mixup: λ", reference, shares, [lam for lam, cut in theirs if not cut])
    cut_at = [rand_bbox((HEIGHT, WIDTH), lam) for lam, cut in theirs if cut]
    boxes = [Box(int(y), int(x), int(b - y), int(r - x)) for y, b, x, r in cut_at]
    found = [each.box for each in ours if each.box is not None]
    yield from _box_rows("cutmix", reference, [b for b in found if min(b[2:])], _not_empty(boxes))
    left_over = [1 - box.height * box.width / (HEIGHT * WIDTH) for box in boxes]
    shares = [each.share for each in ours if each.box is not None]
    yield same_numbers("cutmix: corrected λ", reference, shares, left_over)
    for alpha in (0.2, 0.8, 1.0, 5.0):
        variates = [symmetric_beta(key, alpha) for key in host_keys[: len(host_keys) // 2]]
        known = stats.kstest(variates, stats.beta(alpha, alpha).cdf)
        name, test = f"Beta({alpha}, {alpha})", "Kolmogorov–Smirnov"
        yield Comparison(name, "scipy beta", test, len(variates), known.statistic, known.pvalue)


def _not_empty(boxes: Sequence[Box]) -> list[Box]:
    return [box for box in boxes if min(box.height, box.width)]


# --- crop and flip --------------------------------------------------------------------------------


def crop_rows(host_keys: Tensor) -> Iterator[Comparison]:
    """Boxes of finetuning against torchvision's, of pretraining against all there are."""
    draws = keys.uniform(host_keys, "crop", sampling.RESIZED_CROP_DRAWS).tolist()
    ours = [sampling.random_resized_box(HEIGHT, WIDTH, CROP_SCALE, CROP_RATIO, u) for u in draws]
    frame = torch.empty(1, HEIGHT, WIDTH)
    theirs = [
        Box(*RandomResizedCrop.get_params(frame, list(CROP_SCALE), list(CROP_RATIO)))
        for _ in range(len(draws))
    ]
    reference = "torchvision RandomResizedCrop"
    yield from _box_rows("finetuning's crop", reference, ours, theirs)
    u = keys.uniform(host_keys, "multi-scale crop", 2).tolist()
    found = Counter(sampling.multi_scale_box(HEIGHT, WIDTH, 224, row) for row in u)
    expected = Counter(_all_multi_scale_boxes())
    assert found.keys() <= expected.keys()
    unit = len(u) / sum(expected.values())
    boxes = list(expected)
    chi2 = stats.chisquare([found[b] for b in boxes], [expected[b] * unit for b in boxes])
    name, reference = "pretraining's crop", f"all {len(boxes)} boxes, enumerated"
    yield Comparison(name, reference, "chi-square", len(u), chi2.statistic, chi2.pvalue)


def _all_multi_scale_boxes() -> Iterator[Box]:
    """Every box that the published rule can draw, once for each way to draw it."""
    sides = [256, 224, 192, 168]  # 256 times 1, .875, .75 and .66; 168.96 is cut off
    for i in range(4):
        for j in range(4):
            if abs(i - j) > 1:
                continue
            down, across = (HEIGHT - sides[i]) // 4, (WIDTH - sides[j]) // 4
            for y in range(5):
                for x in range(5):
                    # Corners, centre and middles of edges; middles between centre and corners.
                    if (x % 2, y % 2) in ((0, 0), (1, 1)):
                        yield Box(y * down, x * across, sides[i], sides[j])


def flip_row(host_keys: Tensor) -> Comparison:
    """How many clips are flipped."""
    flipped = int((keys.uniform(host_keys, "flip", 1) < FLIP_PROBABILITY).sum())
    found = stats.binomtest(flipped, len(host_keys), FLIP_PROBABILITY)
    share = flipped / len(host_keys)
    return Comparison("flip", "fair coin", "binomial", len(host_keys), share, found.pvalue)
