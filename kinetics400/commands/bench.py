"""`kinetics400 bench`: measure this machine, compare with the published code.

`loader` and `augment` measure what feeding a model costs on one core, `step` what training it
costs, `run` both together; the others compare.
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

import torch

from kinetics400.bench.loader import FULL, QUICK, bench_loader
from kinetics400.bench.videos import find_videos
from kinetics400.commands.bench_report import (
    augment_table,
    fidelity_table,
    loader_table,
    run_table,
    step_table,
)
from kinetics400.commands.bench_run import bench_run
from kinetics400.commands.plan import Problems, accelerator, vit_config
from kinetics400.config.bench import (
    BenchAugmentConfig,
    BenchFidelityConfig,
    BenchLoaderConfig,
    BenchRunConfig,
    BenchStepConfig,
    EncodeFlags,
)
from kinetics400.config.parse import parse
from kinetics400.data.storage import write_atomic
from kinetics400.data.transcode import EncodeSettings
from kinetics400.errors import InputError
from kinetics400.models.architectures import ARCHITECTURES, model_size


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
    deliver(result, loader_table(result), measure.json)
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


def step(argv: Sequence[str]) -> int:
    """`kinetics400 bench step`."""
    config = parse(
        BenchStepConfig,
        argv,
        prog="kinetics400 bench step",
        description="Measure a training step on synthetic clips: ours, transformers' and one "
        "written plainly, eager and compiled, with the same weights. A CPU is measured on one "
        "core.",
    )
    _require("transformers")
    measure, problems = config.measure, Problems()
    vit = problems.catch(lambda: vit_config(config.model))
    for name in ("batch_size", "repeats"):
        value = getattr(measure, name)
        problems.require(value is None or value >= 1, f"--{name} {value} must be at least 1")
    device = torch.device(accelerator(measure.accelerator))
    if device.type == "cpu":
        pinning = hasattr(os, "sched_setaffinity")
        problems.require(pinning, "on a CPU this benchmark pins itself to a core: Linux only")
    elif not torch.cuda.is_available():
        problems.add("--accelerator cuda: this machine has no CUDA device")
    problems.raise_any()
    from kinetics400.bench import step as benched  # transformers: seconds
    from kinetics400.bench.step_sides import Subject

    amount = benched.QUICK if measure.quick else benched.FULL
    default_batch = 64 if device.type == "cuda" else 2
    decoder = ARCHITECTURES[model_size(config.model.model_name)].decoder
    result = benched.bench_step(
        Subject(
            config=vit,
            decoder=decoder if measure.method == "pretraining" else None,
            batch_size=measure.batch_size or default_batch,
            precision=measure.precision,
            device=device,
        ),
        amount=replace(amount, repeats=measure.repeats or amount.repeats),
        say=lambda text: print(text, file=sys.stderr),
    )
    deliver(result, step_table(result), measure.json)
    return 0


def run(argv: Sequence[str]) -> int:
    """`kinetics400 bench run`."""
    split = argv.index("--") if "--" in argv else len(argv)
    own, flags = argv[:split], argv[split + 1 :]
    config = parse(
        BenchRunConfig,
        own,
        prog="kinetics400 bench run",
        description="Run some steps of a real training, from MP4 files on, and project the hours "
        "of all: kinetics400 bench run [flags] -- [flags of the training command].",
    )
    result = bench_run(config, flags)
    deliver(result, run_table(result), config.json)
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


BENCHMARKS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "loader": (loader, "reading clips on one core: our store, decord, torchcodec, PyAV"),
    "augment": (augment, "augmentation on one core: ours, torchvision, timm on PIL images"),
    "run": (run, "some steps of a real run, from MP4 files on, and the hours of all"),
    "step": (step, "a training step: ours, transformers', and one written plainly"),
    "augment-fidelity": (augment_fidelity, "augmentation against timm, PIL and torchvision"),
    "fidelity": (fidelity, "every published rule against its reference"),
    "fidelity-curves": (fidelity_curves, "learning curves against a plain loop"),
}
