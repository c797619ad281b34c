"""`kinetics400 bench`: measure this machine, compare with the published code.

`loader` and `augment` measure what feeding a model costs on one core; the others compare.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from kinetics400.bench.loader import FULL, QUICK, bench_loader
from kinetics400.bench.videos import find_videos
from kinetics400.config.bench import (
    BenchAugmentConfig,
    BenchFidelityConfig,
    BenchLoaderConfig,
    EncodeFlags,
)
from kinetics400.config.parse import parse
from kinetics400.data.storage import write_atomic
from kinetics400.data.transcode import EncodeSettings
from kinetics400.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Run the benchmark that the first word names; see kinetics400.__main__ for exit codes."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in BENCHMARKS:
        raise InputError(f"there is no benchmark {name!r}\n{usage()}")
    return BENCHMARKS[name][0](rest)


def usage() -> str:
    """The table of benchmarks."""
    lines = [f"  {name:<18}{text}" for name, (_, text) in BENCHMARKS.items()]
    return "\n".join(
        ["usage: kinetics400 bench NAME [flags]   (NAME --help lists its flags)", "", *lines]
    )


def loader(argv: Sequence[str]) -> int:
    """`kinetics400 bench loader`."""
    config = parse(
        BenchLoaderConfig,
        argv,
        prog="kinetics400 bench loader",
        description="Measure on one core what feeding a model costs: our store against decord, "
        "torchcodec and PyAV on original videos (install the extra `bench` for the first two).",
    )
    measure, encode = config.measure, config.encode
    _check(config)
    videos = None if measure.videos is None else find_videos(measure.videos)
    amount = QUICK if measure.quick else FULL
    if measure.repeats is not None:
        parts = ("repeats", "side_repeats", "eval_repeats", "store_repeats")
        amount = replace(amount, **dict.fromkeys(parts, measure.repeats))
    with tempfile.TemporaryDirectory(prefix="kinetics400-bench-") as temporary:
        result = bench_loader(
            videos,
            Path(temporary),
            settings=encode_settings(encode),
            amount=amount,
            scaling=measure.scaling,
            say=lambda text: print(text, file=sys.stderr),
        )
    deliver(result, format_table(result), measure.json)
    return 0


def augment(argv: Sequence[str]) -> int:
    """`kinetics400 bench augment`."""
    config = parse(
        BenchAugmentConfig,
        argv,
        prog="kinetics400 bench augment",
        description="Measure on one core what finetuning's augmentation costs: ours, torchvision "
        "on the same tensors, and timm on PIL images, as the published code runs it.",
    )
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("this benchmark pins itself to a core, which needs Linux")
    from kinetics400.bench import augment as bench_augmentation  # timm, torchvision: seconds

    with tempfile.TemporaryDirectory(prefix="kinetics400-bench-") as temporary:
        result = bench_augmentation.bench_augment(
            Path(temporary),
            amount=bench_augmentation.QUICK if config.quick else bench_augmentation.FULL,
            say=lambda text: print(text, file=sys.stderr),
        )
    deliver(result, augment_table(result), config.json)
    return 0


def augment_fidelity(argv: Sequence[str]) -> int:
    """`kinetics400 bench augment-fidelity`; exit code 1 if a comparison fails."""
    config = parse(
        BenchFidelityConfig,
        argv,
        prog="kinetics400 bench augment-fidelity",
        description="Compare augmentation with timm, PIL and torchvision: pixels on shared "
        "parameters, and the distributions of what is drawn. Exit code 1 if one does not agree.",
    )
    _require("scipy")
    from kinetics400.bench.augment_fidelity import augment_fidelity

    result = augment_fidelity()
    deliver(result, fidelity_table(result), config.json)
    return 0 if result["passed"] else 1


def fidelity(argv: Sequence[str]) -> int:
    """`kinetics400 bench fidelity`; exit code 1 if a comparison fails."""
    config = parse(
        BenchFidelityConfig,
        argv,
        prog="kinetics400 bench fidelity",
        description="Compare every published rule with its reference, in a checkout: golden "
        "numbers, transformers, timm, torchvision, numpy. Exit code 1 if one does not agree.",
    )
    _require("scipy", "transformers")
    from kinetics400.bench.fidelity.report import fidelity, rules_table

    result = fidelity()
    deliver(result, rules_table(result), config.json)
    return 0 if result["passed"] else 1


def fidelity_curves(argv: Sequence[str]) -> int:
    """`kinetics400 bench fidelity-curves`; exit code 1 if the curves part."""
    config = parse(
        BenchFidelityConfig,
        argv,
        prog="kinetics400 bench fidelity-curves",
        description="Train the same tiny models by our loop and by a separate plain one around "
        "transformers, and compare the losses step by step. Exit code 1 if they part.",
    )
    _require("transformers")
    from kinetics400.bench.fidelity.curves import curves_table, fidelity_curves

    result = fidelity_curves(say=lambda text: print(text, file=sys.stderr))
    deliver(result, curves_table(result), config.json)
    return 0 if result["passed"] else 1


def _require(*packages: str) -> None:
    extras = {"scipy": "dev", "transformers": "hf"}
    for package in packages:
        if find_spec(package) is None:
            raise InputError(f"this needs {package}: install the extra `{extras[package]}`")


def encode_settings(flags: EncodeFlags) -> EncodeSettings:
    """How to store the videos."""
    return EncodeSettings(flags.short_side, flags.crf, flags.preset, flags.keyframe_interval)


def _check(config: BenchLoaderConfig) -> None:
    repeats = config.measure.repeats
    rules = {
        "this benchmark pins itself to a core, which needs Linux": hasattr(os, "sched_setaffinity"),
        f"--repeats {repeats} must be at least 1": repeats is None or repeats >= 1,
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken := broken + encode_settings(config.encode).problems():
        raise InputError("\n  ".join(broken))


def deliver(result: Mapping[str, Any], table: str, target: str | None) -> None:
    """Print the table, and write the JSON where it was asked for."""
    text = json.dumps(result, indent=2) + "\n"
    stream: TextIO = sys.stderr if target == "-" else sys.stdout
    print(table, file=stream)
    if target == "-":
        sys.stdout.write(text)
    elif target is not None:
        write_atomic(target, text)


# --- the table ------------------------------------------------------------------------------------


def format_table(result: Mapping[str, Any]) -> str:
    """The result for people."""
    return "\n".join(
        [
            *_about(result),
            "",
            *_rates(result["contenders"]),
            "",
            *_store(result),
            *_scaling(result["scaling"]),
            *(f"left out: {path}: {reason}" for path, reason in result["excluded"].items()),
        ]
    )


def _about(result: Mapping[str, Any]) -> list[str]:
    machine, versions = result["machine"], result["versions"]
    present = [f"{name} {version}" for name, version in versions.items() if version]
    kind = "made" if result["videos_made"] else "given"
    lines = [
        f"core {machine['pinned_to']} of {machine['cores']}, {machine['cpu']}",
        ", ".join(present),
    ]
    for video in result["videos"]:
        seconds = video["num_frames"] / video["fps"]
        lines.append(
            f"{kind}: {Path(video['path']).name}, {video['codec']} {video['width']}×"
            f"{video['height']}, {seconds:.1f} s, {video['fps']:.4g} frames/s, "
            f"{video['kbit_per_sec']:.0f} kbit/s, keyframes at {_some(video['keyframes'])}"
        )
    return lines


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:3])
    return f"{shown} …" if len(numbers) > 3 else shown


def _rates(contenders: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [("", "per second and core", "least–most", "to (a)", "of (e)")]
    for one in contenders:
        name = f"{one['task']:<9}{one['meaning']}"
        if one["per_sec"] is None:
            rows.append((name, f"unavailable: {one['unavailable']}", "", "", ""))
            continue
        spread = f"{one['least_per_sec']:.1f}–{one['most_per_sec']:.1f}"
        to_decord = _or_dash(one["ratio_to_decord"], lambda value: f"{value:.1f} ×")
        of_floor = _or_dash(one["share_of_floor"], lambda value: f"{100 * value:.0f} %")
        rows.append((name, f"{one['per_sec']:.1f} {one['unit']}", spread, to_decord, of_floor))
    return [f"{a:<58}{b:>20}{c:>15}{d:>9}{e:>8}".rstrip() for a, b, c, d, e in rows]


def _or_dash(value: float | None, text: Callable[[float], str]) -> str:
    return "–" if value is None else text(value)


def _store(result: Mapping[str, Any]) -> list[str]:
    psnr = _or_dash(result["psnr_luma_db"], lambda value: f"{value:.2f} dB")
    share = result["preprocess_share_of_bare_loop"]
    num_videos, byte_share = len(result["videos"]), 100 * result["store_bytes_ratio"]
    lines = [
        f"store of {num_videos} videos: {byte_share:.1f} % of the originals' bytes, luma PSNR "
        f"{psnr} against the scaled originals (mean over frames, then videos)",
        f"preprocessing: {result['preprocess_seconds_per_video']:.2f} s per video and core, "
        f"{100 * share:.0f} % of the throughput of a bare decode–scale–encode loop",
    ]
    busy = result["wall_share_of_cpu"]
    if busy > 1.1:
        lines.append(
            f"the core was shared: the clock ran {100 * (busy - 1):.0f} % longer than the CPU's "
            "time, which is what counts above"
        )
    return lines


def _scaling(rows: Sequence[Mapping[str, Any]] | None) -> list[str]:
    return [
        f"loader with {row['workers']} workers: {row['clips_per_sec']:.1f} pretraining clips/s"
        for row in rows or ()
    ]


def augment_table(result: Mapping[str, Any]) -> str:
    """What augmentation costs, for people."""
    machine, cost = result["machine"], result["cpu_ms_per_clip"]
    contenders = ("ours", "torchvision", "timm")
    lines = [f"core {machine['pinned_to']} of {machine['cores']}, {machine['cpu']}"]
    lines.append(f"{'CPU ms per clip of 16 × 224 × 224':<40}" + _columns(contenders))
    for task, by in cost.items():
        if task != "reading":
            lines.append(f"{task:<40}" + _columns([f"{by[name]:.2f}" for name in contenders]))
    lines += [f"{task:<40}{ms:>14.2f}" for task, ms in cost["reading"].items()]
    lines.append(
        f"whole batches: torchvision takes {result['ratio_torchvision']:.2f} times, timm "
        f"{result['ratio_timm']:.2f} times as long as ours"
    )
    return "\n".join(lines)


def fidelity_table(result: Mapping[str, Any]) -> str:
    """How augmentation agrees with the references, for people."""
    lines = []
    for row in result["pixels"]:
        verdict = "" if row["holds"] else "  FAILED"
        numbers = f"{row['largest']:>10.3g} {row['unit']:<7}{row['share']:>10.4%} differ"
        lines.append(f"{row['rule']:<55}{numbers}{verdict}")
    for row in result["draws"]:
        verdict = "" if row["p_value"] >= result["least_p_value"] else "  FAILED"
        lines.append(f"{row['quantity']:<35}{row['test']:<20}p = {row['p_value']:.4f}{verdict}")
    return "\n".join([*lines, "all agree" if result["passed"] else "NOT ALL AGREE"])


def _columns(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>14}" for cell in cells)


BENCHMARKS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "loader": (loader, "reading clips on one core: our store, decord, torchcodec, PyAV"),
    "augment": (augment, "augmentation on one core: ours, torchvision, timm on PIL images"),
    "augment-fidelity": (augment_fidelity, "augmentation against timm, PIL and torchvision"),
    "fidelity": (fidelity, "every published rule against its reference"),
    "fidelity-curves": (fidelity_curves, "learning curves against a plain loop"),
}
