"""Is every published rule kept? All comparisons in one result: `make fidelity`, docs/fidelity.md.

Rules of augmentation are taken over from results/fidelity_augment.json, which
`make fidelity-augment` measures (augment_fidelity.py).
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from kinetics400.bench.augment_fidelity import LEAST_P
from kinetics400.bench.fidelity.clips import clip_rules
from kinetics400.bench.fidelity.deviations import deviations
from kinetics400.bench.fidelity.draws import compare_all
from kinetics400.bench.fidelity.golden import Golden, golden_rules
from kinetics400.bench.fidelity.learning import learning_rules
from kinetics400.bench.fidelity.model import model_rules
from kinetics400.bench.fidelity.rules import Rule
from kinetics400.bench.fidelity.scores import score_rules
from kinetics400.errors import InputError

SEED = 0
PARTS = ("frames", "crops", "augmentation", "model", "loss", "optimisation", "test views", "scores")
CHECKOUT = Path(__file__).resolve().parents[3]
# Rows of results/fidelity_augment.json: how they begin, our function, test, source.
TAKEN_OVER = (
    ("RandAugment rand", "augment.randaugment.RandAugment",
     "augment/test_randaugment.py::test_operations_follow_each_other_as_in_timm",
     "rand_augment.py"),
    ("crop and scaling", "data.dataset.to_square",
     "data/test_dataset.py::test_without_antialias_equals_bilinear_on_floats",
     "kinetics.py:160-220"),
    ("official order", "--official_augment",
     "commands/test_augmentation.py::test_the_official_order_is_another_one",
     "kinetics.py:160-220"),
    ("normalise", "batch.normalize", "test_batch.py::test_normalize_by_hand", "kinetics.py"),
    ("erased box", "augment.erase.erased_box",
     "augment/test_erase.py::test_boxes_have_the_published_area_and_aspect", "random_erasing.py"),
    ("mixup and cutmix", "augment.mix.mix",
     "augment/test_mix.py::test_clips_and_targets_are_mixed_with_their_mirror_image", "mixup.py"),
)  # fmt: skip


def fidelity(checkout: Path = CHECKOUT) -> dict[str, Any]:
    """Compare everything; the result is plain JSON.

    Args:
        checkout: of the project; has tests/golden and results/fidelity_augment.json.

    Raises:
        InputError: there is none: an installed package does not have these files.
    """
    started = time.perf_counter()
    golden, augment_file = checkout / "tests/golden", checkout / "results/fidelity_augment.json"
    for path in (golden / "tiny.json", augment_file):
        if not path.is_file():
            raise InputError(f"{path} is missing: run this in a checkout of the project")
    augment = json.loads(augment_file.read_text(encoding="utf-8"))
    rules = sorted(_rules(golden, augment), key=lambda rule: PARTS.index(rule.part))
    draws = compare_all(seed=SEED)
    departures = deviations(augment)
    packages = ("torch", "torchvision", "timm", "transformers", "numpy", "scipy", "pillow")
    passed = [
        *(rule.holds for rule in rules),
        *(row.p_value >= LEAST_P for row in draws),
        *(row.holds for row in departures),
        augment["passed"],
    ]
    return {
        "benchmark": "fidelity",
        "passed": all(passed),
        "seed": SEED,
        "least_p_value": LEAST_P,
        "rules": [asdict(rule) | {"holds": rule.holds} for rule in rules],
        "draws": [asdict(row) for row in draws],
        "augmentation_draws": {
            "count": len(augment["draws"]),
            "fewest": min(row["count"] for row in augment["draws"]),
            "least_p_value": min(row["p_value"] for row in augment["draws"]),
        },
        "deviations": [asdict(row) | {"holds": row.holds} for row in departures],
        "seconds": time.perf_counter() - started,
        "versions": {package: metadata.version(package) for package in packages},
    }


def _rules(golden: Path, augment: Mapping[str, Any]) -> Iterator[Rule]:
    numbers = Golden(golden)
    yield from clip_rules(golden)
    yield from augmentation_rules(augment)
    yield from model_rules()
    yield from golden_rules(numbers)
    yield from learning_rules(numbers)
    yield from score_rules()


def augmentation_rules(augment: Mapping[str, Any]) -> Iterator[Rule]:
    """Rows that augment_fidelity.py measured; RandAugment's operations together."""
    rows = [row for row in augment["pixels"] if row["reference"] == f"timm {row['rule']}, PIL"]
    for exact, name, test in (
        (True, "colour", "test_operations.py::test_every_pixel_is_pils"),
        (False, "geometry", "test_geometry.py::test_pixels_are_pils"),
    ):
        some = [row for row in rows if (row["allowed_difference"] == 0) == exact]
        names = ", ".join(row["rule"] for row in some)
        yield _taken_over(
            f"RandAugment's operations, {name}: {names}",
            some,
            "timm and PIL",
            f"augment.{'operations' if exact else 'geometry'}",
            f"augment/{test}",
            "rand_augment.py",
        )
    for begin, ours, test, source in TAKEN_OVER:
        found = [row for row in augment["pixels"] if row["rule"].startswith(begin)]
        for row in found:
            yield _taken_over(row["rule"], [row], row["reference"], ours, test, source)


def _taken_over(
    rule: str,
    rows: list[dict[str, Any]],
    reference: str,
    ours: str,
    test: str,
    source: str,
) -> Rule:
    units = {"levels": "of 255 levels"}
    return Rule(
        part="augmentation",
        rule=rule,
        source=f"VideoMAE {source}",
        ours=ours,
        reference=reference,
        test=test,
        unit=units.get(rows[0]["unit"], rows[0]["unit"]),
        compared=sum(row["compared"] for row in rows),
        largest=max(row["largest"] for row in rows),
        allowed=min(row["allowed_difference"] for row in rows),
    )


def rules_table(result: Mapping[str, Any]) -> str:
    """The result for people."""
    lines = []
    for row in result["rules"]:
        verdict = "" if row["holds"] else f"  FAILED: allowed {row['allowed']:g}"
        found = f"{row['largest']:>9.1e} {row['unit']}"
        lines.append(f"{row['part']:<13}{_short(row['rule'], 64):<66}{found}{verdict}")
    for row in result["draws"]:
        verdict = "" if row["p_value"] >= result["least_p_value"] else "  FAILED"
        found = f"p = {row['p_value']:.4f}{verdict}"
        lines.append(f"{'draws':<13}{_short(row['quantity'], 64):<66}{found}")
    for row in result["deviations"]:
        verdict = "" if row["holds"] else "  FAILED"
        found = f"{row['mean']:.2f} {row['unit']} on average"
        back = f"with {row['switch']} {row['with_switch']:g}"
        lines.append(f"{'deviation':<13}{_short(row['rule'], 64):<66}{found}, {back}{verdict}")
    verdict = "all agree" if result["passed"] else "NOT ALL AGREE"
    return "\n".join([*lines, f"{verdict}; {result['seconds']:.0f} s"])


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
