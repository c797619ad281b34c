"""What augmentation costs on one core: ours, torchvision's on tensors, timm's on PIL images.

All take turns on the same clips with the same drawn parameters, pinned to one core; figures are
medians of the CPU's time.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinetics400.augment.mix import Mixing
from kinetics400.augment.pipeline import training_augment
from kinetics400.augment.randaugment import NAMES, Draw, augmented, parse_randaugment
from kinetics400.batch import Batch
from kinetics400.bench import augment_peers as peers
from kinetics400.bench.figures import machine, versions
from kinetics400.bench.loader import Say, one_core
from kinetics400.bench.videos import SCENES, make_video, texture
from kinetics400.data import keys, sampling
from kinetics400.data.dataset import to_square
from kinetics400.data.decode import Scratch, VideoReader
from kinetics400.data.transcode import EncodeSettings, transcode_video

SEED = 0
NUM_CLASSES, NUM_FRAMES, SIZE, BATCH_SIZE = 400, 16, 224, 8
RANDAUGMENT = "rand-m7-n4-mstd0.5-inc1"
FLIP, ERASE = 0.5, 0.25
OURS, TORCHVISION, TIMM = "ours", "torchvision", "timm"
IN_WORKER, ON_DEVICE = "crop in the worker", "crop after the worker"
VIDEO_FRAMES = 150


@dataclass(frozen=True)
class Amount:
    """How much is measured."""

    repeats: int
    batches: int
    """Batches of eight clips, each with draws of its own."""
    clips: int
    """Clips read from a stored video."""


FULL = Amount(repeats=7, batches=6, clips=12)
QUICK = Amount(repeats=3, batches=2, clips=6)


@dataclass(frozen=True)
class Timing:
    """One measurement."""

    task: str
    contender: str
    repeat: int
    cpu_seconds: float
    """Per clip."""


def bench_augment(folder: Path, *, amount: Amount, say: Say) -> dict[str, Any]:
    """Measure everything; the result is plain JSON.

    Args:
        folder: an empty folder for the video that is made.
        amount: how much to measure.
        say: takes a line on what is going on.
    """
    with one_core() as core:
        say("operations")
        tasks = operation_tasks(example_clip())
        say("whole batches")
        tasks |= batch_tasks(amount.batches)
        say("making and storing a video")
        tasks |= {"reading": reading_task(stored_video(folder), amount.clips)}
        say("taking turns")
        rows = take_turns(tasks, amount.repeats)
    cost = medians(rows)
    return {
        "benchmark": "augment",
        "ratio_torchvision": batch_ratio(cost, TORCHVISION),
        "ratio_timm": batch_ratio(cost, TIMM),
        "cpu_ms_per_clip": cost,
        "settings": {**asdict(amount), "seed": SEED, "batch_size": BATCH_SIZE},
        "machine": machine(core),
        "versions": versions() | {"torchvision": metadata.version("torchvision")},
        "rows": [asdict(row) for row in rows],
    }


Contender = tuple[Callable[[], object], int]  # what to do, and to how many clips it does it


def take_turns(
    tasks: Mapping[str, Mapping[str, Contender]], repeats: int, *, shortest: float = 0.05
) -> list[Timing]:
    """Time each contender of each task in each repeat, for `shortest` CPU seconds at least."""
    rows = []
    for repeat in range(-1, repeats):  # the first turn warms up
        for task, contenders in tasks.items():
            for name, (work, num_clips) in contenders.items():
                passes, spent, start = 0, 0.0, time.process_time()
                while spent < shortest:
                    work()
                    passes, spent = passes + 1, time.process_time() - start
                if repeat >= 0:
                    rows.append(Timing(task, name, repeat, spent / (passes * num_clips)))
    return rows


def medians(rows: Sequence[Timing]) -> dict[str, dict[str, float]]:
    """Task → contender → CPU milliseconds per clip."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        seconds.setdefault((row.task, row.contender), []).append(row.cpu_seconds)
    cost: dict[str, dict[str, float]] = {}
    for (task, contender), values in seconds.items():
        cost.setdefault(task, {})[contender] = 1e3 * median(values)
    return cost


def batch_ratio(cost: Mapping[str, Mapping[str, float]], contender: str) -> float:
    """How many times ours a contender takes for the same batches."""
    batches = [by for task, by in cost.items() if task.startswith("batch")]
    return sum(by[contender] for by in batches) / sum(by[OURS] for by in batches)


# --- tasks ----------------------------------------------------------------------------------------


def example_clip() -> Tensor:
    """(C, T, H, W) uint8: a picture with the spectrum of photographs that moves."""
    canvas = texture(np.random.default_rng(SEED), SIZE + NUM_FRAMES, SIZE + NUM_FRAMES, 25)
    frames = [canvas[i : i + SIZE, i : i + SIZE, :3] for i in range(NUM_FRAMES)]
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).contiguous()


def operation_tasks(clip: Tensor) -> dict[str, dict[str, Contender]]:
    """Each operation of RandAugment at magnitude 7; everybody gets what it likes best."""
    frames, images = clip.transpose(0, 1).contiguous(), peers.to_images(clip)
    clips = clip.unsqueeze(0)
    tasks: dict[str, dict[str, Contender]] = {}
    for name in NAMES:
        drawn = Draw(name, True, 7.0, 1)
        argument = drawn.argument
        tasks[name] = {
            OURS: (partial(augmented, clips, [[drawn]]), 1),
            TORCHVISION: (partial(peers.torchvision_operation, name, frames, argument), 1),
            TIMM: (partial(peers.timm_operation, name, images, argument), 1),
        }
    return tasks


def batch_tasks(count: int) -> dict[str, dict[str, Contender]]:
    """All of finetuning's augmentation for batches as a loader has them: channel last in memory."""
    clip = example_clip().permute(1, 2, 3, 0)
    clips = torch.stack([clip] * BATCH_SIZE).permute(0, 4, 1, 2, 3)
    randaugment, mixing = parse_randaugment(RANDAUGMENT), Mixing(num_classes=NUM_CLASSES)
    augment = training_augment(
        flip_probability=FLIP, randaugment=randaugment, erase_probability=ERASE, mixing=mixing
    )
    tasks: dict[str, dict[str, Contender]] = {}
    for number in range(count):
        host_keys = keys.combine(SEED, number, torch.arange(BATCH_SIZE))
        batch = Batch(clips, torch.arange(BATCH_SIZE), host_keys)
        drawn = peers.draw(
            host_keys,
            (SIZE, SIZE),
            randaugment=randaugment,
            flip_probability=FLIP,
            erase_probability=ERASE,
            mixing=mixing,
        )
        tasks[f"batch {number}"] = {
            OURS: (partial(augment, batch), BATCH_SIZE),
            TORCHVISION: (partial(peers.torchvision_batch, clips, drawn), BATCH_SIZE),
            TIMM: (partial(peers.timm_batch, clips, drawn), BATCH_SIZE),
        }
    return tasks


def stored_video(folder: Path) -> str:
    """A Kinetics-like video of five seconds, stored as a pyramid."""
    original, stored = str(folder / "original.mp4"), str(folder / "stored.mp4")
    make_video(original, SCENES[0], seed=SEED, num_frames=VIDEO_FRAMES)
    transcode_video(original, stored, EncodeSettings())
    return stored


def reading_task(path: str, count: int) -> dict[str, Contender]:
    """From the file to a square clip, with the crop before the colour conversion or at the end."""
    numbers = keys.uniform(keys.combine(SEED, torch.arange(count)), "crop", 40).tolist()
    scratch = Scratch()

    def read(u: Sequence[float], *, crop_first: bool) -> Tensor:
        with VideoReader(path) as reader:
            frames = sampling.finetuning_frames(len(reader), NUM_FRAMES, 4, u[0], grid=4)
            scale, ratio = (0.08, 1.0), (0.75, 4 / 3)
            box = sampling.random_resized_box(reader.height, reader.width, scale, ratio, u)
            if crop_first:
                pixels = reader.read(frames, box, scratch=scratch)
                return to_square(pixels, SIZE, antialias=False)
            whole = reader.read(frames, scratch=scratch)
        # A batch is a copy of the clips; on the device they are cut and scaled.
        batch = torch.stack([torch.from_numpy(whole)]).numpy()[0]
        rows = slice(box.top, box.top + box.height)
        cut = batch[:, rows, box.left : box.left + box.width]
        return to_square(np.ascontiguousarray(cut), SIZE, antialias=False)

    def read_all(crop_first: bool) -> Callable[[], object]:
        return lambda: [read(u, crop_first=crop_first) for u in numbers]

    return {IN_WORKER: (read_all(True), count), ON_DEVICE: (read_all(False), count)}
