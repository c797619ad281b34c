"""From measurements to figures: rates, ratios, the cost of the store; where it was measured."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import mean, median
from typing import Any

import av

from kinetics400.bench.contenders import (
    AUGMENTED,
    DECODING,
    DECORD,
    FINETUNE,
    FLOOR,
    MEANING,
    PRETRAIN,
    PYRAMID,
    UNITS,
)
from kinetics400.bench.store import Store, seconds_per_video

Key = tuple[str, str]  # (task, contender)
PACKAGES = (
    *("torch", "numpy", "av", "pillow", "timm", "decord", "torchcodec"),
    *("opencv-python-headless", "opencv-python"),
)


@dataclass(frozen=True)
class Row:
    """One measurement of a contender: its spots, all of them equally often."""

    task: str
    contender: str
    repeat: int
    units: int
    seconds: float
    cpu_seconds: float


def median_rates(rows: Sequence[Row]) -> dict[Key, float]:
    """Units per second of each contender: the median over the repeats."""
    rates: dict[Key, list[float]] = {}
    for row in rows:
        rates.setdefault((row.task, row.contender), []).append(row.units / row.cpu_seconds)
    return {key: median(values) for key, values in rates.items()}


def ratio(rates: Mapping[Key, float], above: Key, below: Key) -> float | None:
    """One contender's rate over another's; None where one of them could not be measured."""
    return rates[above] / rates[below] if above in rates and below in rates else None


def headline(rates: Mapping[Key, float]) -> dict[str, float | None]:
    """The figures that claims are made of."""
    found = {f"ratio_{task}": ratio(rates, (task, PYRAMID), (task, DECORD)) for task in UNITS}
    augmented = ratio(rates, (FINETUNE, AUGMENTED), (FINETUNE, DECORD))
    found["ratio_finetune_augmented"] = augmented
    found["share_of_floor"] = ratio(rates, (PRETRAIN, PYRAMID), (PRETRAIN, FLOOR))
    found["share_of_own_decoding"] = ratio(rates, (PRETRAIN, PYRAMID), (PRETRAIN, DECODING))
    return found


def store_figures(store: Store, psnr: Sequence[float | None]) -> dict[str, float | None]:
    """Bytes, quality and cost of the store."""
    before = sum(os.path.getsize(path) for path in store.originals)
    after = sum(os.path.getsize(path) for path in store.pyramids)
    known = [value for value in psnr if value is not None]
    ours = seconds_per_video(store.encodings, "product")
    return {
        "store_bytes_ratio": after / before,
        "psnr_luma_db": mean(known) if known else None,
        "preprocess_seconds_per_video": ours,
        "preprocess_share_of_bare_loop": seconds_per_video(store.encodings, "bare") / ours,
    }


def summary(
    key: Key, rates: Mapping[Key, float], rows: Sequence[Row], unavailable: Mapping[Key, str]
) -> dict[str, Any]:
    """One line of the table."""
    task, name = key
    passes = [row.units / row.cpu_seconds for row in rows if (row.task, row.contender) == key]
    return {
        "task": task,
        "contender": name,
        "meaning": MEANING[name],
        "unit": UNITS[task],
        "per_sec": rates.get(key),
        "least_per_sec": min(passes, default=None),
        "most_per_sec": max(passes, default=None),
        "ratio_to_decord": ratio(rates, key, (task, DECORD)),
        "share_of_floor": ratio(rates, key, (task, FLOOR)),
        "unavailable": unavailable.get(key),
    }


def machine(core: int | None = None) -> dict[str, Any]:
    """Where this was measured; `core` if it was on one."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "pinned_to": core,
        "system": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    """Of Python, FFmpeg and the packages that take part; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    found["ffmpeg"] = av.ffmpeg_version_info
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
