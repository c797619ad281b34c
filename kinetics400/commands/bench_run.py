"""`kinetics400 bench run`: some steps of a real run, from MP4 files to updates, projected to all.

The training command itself is run, with all its flags, on a list of as many videos as the steps
need. Where there is no dataset, videos are made and preprocessed.
"""

import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from kinetics400.bench.figures import machine, versions
from kinetics400.bench.videos import make_videos
from kinetics400.commands import preprocess, pretrain, train
from kinetics400.commands.plan import Run, accelerator, num_ranks, plan_as_json
from kinetics400.commands.pretrain import ANY_LABEL
from kinetics400.commands.telling import clips_per_step, say
from kinetics400.config.bench import BenchRunConfig
from kinetics400.config.finetuning import TrainConfig
from kinetics400.config.parse import flatten, named_flags, parse
from kinetics400.config.pretraining import PretrainConfig
from kinetics400.data.annotations import PackedText, format_list, write_list
from kinetics400.data.library import ARCHIVE_NAME, LIBRARY_NAME, list_name, open_split, videos_name
from kinetics400.data.manifest import Manifest, manifest_path, read_manifest
from kinetics400.data.storage import write_atomic
from kinetics400.data.synthetic import add_member
from kinetics400.engine.log import read_metrics
from kinetics400.errors import Failure, InputError

COMMANDS = {"pretraining": "pretrain", "finetuning": "train"}
NUM_MADE = 8  # different videos, which the list repeats
NUM_LINES = 6  # of the log
NUM_KERNELS = 25
TEXTS = ("names", "sources")  # of a manifest
# What the benchmark sets: a short run that leaves nothing.
OWN_FLAGS = {
    *("save_dir", "train_list", "val_list", "save_frequency", "save_minutes", "log_every"),
    *("resume", "dry_run", "views", "eval_frequency"),
}


def bench_run(config: BenchRunConfig, flags: Sequence[str]) -> dict[str, Any]:
    """Run some steps; the result is plain JSON.

    Args:
        config: the benchmark's own flags.
        flags: the training command's.

    Raises:
        InputError: flags that are wrong, or that the benchmark sets.
        Failure: the training command has failed, and said why.
    """
    run = _prepare(config, flags)
    run_flags = list(flags)
    with tempfile.TemporaryDirectory(prefix="kinetics400-bench-") as temporary:
        folder = Path(temporary)
        batch = run.schedule.global_batch_size
        count = config.steps * batch
        if run.train_videos is None:
            make_dataset(folder / "data", count)
            run_flags += ["--data_dir", str(folder / "data")]
        else:
            count = min(count, len(run.train_videos))
        run_flags += write_lists(run, count, folder)
        n_epoch = str(math.ceil(config.steps / (count // batch)))
        run_flags += [
            *("--n_epoch", n_epoch, "--warmup_epochs", "0", "--save_frequency", n_epoch),
            *("--save_dir", str(folder / "run"), "--save_minutes", "0"),
            *("--log_every", str(math.ceil(config.steps / NUM_LINES))),
        ]
        if config.method == "finetuning":
            run_flags += ["--views", "1x1", "--eval_frequency", n_epoch]
        if config.profile is not None:
            run_profiled(config.method, run_flags, config.profile)
        else:
            # A process of its own, which may start others for its devices.
            command = [sys.executable, "-m", "kinetics400", COMMANDS[config.method], *run_flags]
            if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
                raise Failure("the training command has failed: see above")
        rows = [row for row in read_metrics(folder / "run" / "metrics.jsonl") if "loss" in row]
    return {
        "benchmark": "run",
        **projection(run, rows),
        "videos_made": run.train_videos is None,
        "settings": {
            **{name: str(value) for name, value in flatten(run.config).items()},
            "method": config.method,
            "steps": config.steps,
            "profiled": config.profile is not None,
        },
        "machine": machine() | {"device": _device(run)},
        "versions": versions(),
        "rows": rows,
    }


def _device(run: Run) -> str:
    on_cuda = accelerator(run.config.device.accelerator) == "cuda"
    return torch.cuda.get_device_name() if on_cuda else "CPU"


def _prepare(config: BenchRunConfig, flags: Sequence[str]) -> Run:
    """The whole run that some steps are taken of; its model has no weights in memory."""
    if config.steps < NUM_LINES:
        raise InputError(f"--steps {config.steps} must be at least {NUM_LINES}")
    if taken := sorted(named_flags(flags) & OWN_FLAGS):
        raise InputError(f"the benchmark sets {', '.join(f'--{name}' for name in taken)} itself")
    prog, dry = f"kinetics400 bench run --method {config.method} --", [*flags, "--dry_run"]
    if config.method == "pretraining":
        run = pretrain.prepare(parse(PretrainConfig, dry, prog=prog, description=""))
    else:
        run = train.prepare(parse(TrainConfig, dry, prog=prog, description=""))
    if missing := [text for text in run.missing if not text.startswith("data:")]:
        raise InputError("this run cannot start:\n  " + "\n  ".join(missing))
    if run.config.device.n_node > 1:
        raise InputError("the benchmark runs on one machine: leave --n_node out")
    if config.profile is not None and run.config.device.n_device > 1:
        raise InputError("--profile looks into one process: give --n_device 1")
    return run


def make_dataset(data_dir: Path, count: int) -> None:
    """Make a library of `count` training videos, few of them different, as a user would."""
    say(f"there is no dataset: making {NUM_MADE} videos of 10 s and preprocessing them")
    data_dir.mkdir()
    with (
        tempfile.TemporaryDirectory(prefix="kinetics400-bench-") as originals,
        tarfile.open(data_dir / ARCHIVE_NAME, "w:gz", compresslevel=1) as archive,
    ):
        made = [Path(path) for path in make_videos(Path(originals), NUM_MADE)]
        for split, paths in (("train", made[2:]), ("val", made[:2])):
            rows = [(path.name, label) for label, path in enumerate(paths)]
            add_member(archive, list_name(split), format_list(rows))
            for path in paths:
                add_member(archive, f"{videos_name(split)}/{path.name}", path.read_bytes())
    preprocess.main(["--data_dir", str(data_dir), "--shard", "1/1"])
    repeat_videos(data_dir / LIBRARY_NAME, count)


def repeat_videos(library: Path, count: int) -> None:
    """Give the training videos `count` names together; the files are linked, not copied."""
    manifest, folder = read_manifest(library, "train"), library / videos_name("train")
    assert manifest is not None
    index = np.arange(count) % len(manifest)
    names = PackedText.pack(f"{n:06}_{manifest.names[int(i)]}" for n, i in enumerate(index))
    for number, i in enumerate(index):
        os.link(folder / manifest.names[int(i)], folder / names[number])
    values: dict[str, Any] = {one.name: getattr(manifest, one.name) for one in fields(manifest)}
    values |= {name: value[index] for name, value in values.items() if name not in TEXTS}
    repeated = Manifest(**{**values, **dict.fromkeys(TEXTS, names)})
    write_atomic(manifest_path(library, "train"), repeated.to_bytes())
    rows = [(names[number], int(label)) for number, label in enumerate(repeated.labels)]
    write_list(library / list_name("train"), rows)


def write_lists(run: Run, count: int, folder: Path) -> list[str]:
    """Lists of `count` training videos at most and one to evaluate; the flags that name them."""
    flags: list[str] = []
    classes = getattr(run.method, "num_classes", ANY_LABEL)
    for split, table, length in (("train", run.train_videos, count), ("val", run.val_videos, 1)):
        if run.train_videos is None:
            table = open_split(folder / "data", split, num_classes=NUM_MADE)
        if table is not None:
            shown = range(min(length, len(table)))
            rows = [(table.name(i), table.label(i) % classes) for i in shown]
            write_list(folder / f"{split}.txt", rows)
            flags += [f"--{split}_list", str(folder / f"{split}.txt")]
    return flags


def run_profiled(method: str, flags: Sequence[str], folder: Path) -> None:
    """Run the training command here, and write `trace.json` and `kernels.txt`."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as seen:
        (pretrain.main if method == "pretraining" else train.main)(flags)
    folder.mkdir(parents=True, exist_ok=True)
    seen.export_chrome_trace(str(folder / "trace.json"))
    device = "device" if torch.cuda.is_available() else "cpu"
    averages = seen.key_averages()
    table = averages.table(sort_by=f"self_{device}_time_total", row_limit=NUM_KERNELS)
    write_atomic(folder / "kernels.txt", table)
    say(f"{folder}: trace.json and kernels.txt")


def projection(run: Run, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the later lines of the log say, and how long the whole run would take at that rate."""
    counted = rows[len(rows) // 3 :]  # workers start, the model is compiled

    def mean(name: str) -> float:
        return sum(row[name] for row in counted) / len(counted)

    per_step = clips_per_step(run.config, run.schedule)
    hours = run.schedule.total_steps * mean("step_time") / 3600
    plan = json.loads(plan_as_json(run))
    return {
        "clips_per_sec": per_step / mean("step_time"),
        **{name: mean(name) for name in ("step_time", "data_time", "data_share", "mfu")},
        "memory_gib": max(row["memory"] for row in rows),
        "hours": hours,
        "device_hours": hours * num_ranks(run.config.device),
        "clips_per_step": per_step,
        **{name: plan[name] for name in ("model", "n_epoch", "total_steps", "train_videos")},
    }
