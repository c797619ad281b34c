"""What it costs to feed a model, on one core: our reading of the store against the others'.

All contenders take turns on the same clips, pinned to one core; every number comes from one run.
Rates count the CPU's time and not the clock's: the two are the same on an idle core, and a busy
neighbour lengthens only the clock's.
"""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinetics400.bench import peers
from kinetics400.bench.contenders import (
    EVAL,
    ORIGINAL,
    PRETRAIN,
    PYAV,
    SEED,
    TORCHCODEC,
    Contender,
    Spot,
    all_contenders,
    clip_dataset,
    spread_spots,
    video_table,
)
from kinetics400.bench.figures import (
    Key,
    Row,
    headline,
    machine,
    median_rates,
    store_figures,
    summary,
    versions,
)
from kinetics400.bench.store import Store, luma_psnr, measure_store
from kinetics400.bench.videos import describe, make_videos
from kinetics400.data import sampling
from kinetics400.data.loader import Layout, train_loader
from kinetics400.data.transcode import EncodeSettings
from kinetics400.errors import DataError

Say = Callable[[str], None]
# Of one measurement, CPU seconds: the first clips after another contender find cold caches.
SHORTEST = 0.2


@dataclass(frozen=True)
class Amount:
    """How much is measured."""

    num_made: int
    """Videos to make when none are given."""
    most_videos: int
    """Of those given, evenly chosen from the list."""
    clips_per_video: int
    repeats: int
    side_repeats: int
    """Of the contenders that no headline figure needs."""
    eval_videos: int
    """Videos of the test, which takes decord seconds for each."""
    eval_repeats: int
    store_repeats: int


FULL = Amount(
    num_made=6,
    most_videos=24,
    clips_per_video=3,
    repeats=5,
    side_repeats=5,
    eval_videos=6,
    eval_repeats=3,
    store_repeats=3,
)
QUICK = Amount(
    num_made=3,
    most_videos=8,
    clips_per_video=2,
    repeats=3,
    side_repeats=1,
    eval_videos=1,
    eval_repeats=1,
    store_repeats=1,
)
SIDE = (TORCHCODEC, PYAV, ORIGINAL)


# --- measuring ------------------------------------------------------------------------------------


def bench_loader(
    videos: Sequence[str] | None,
    folder: Path,
    *,
    settings: EncodeSettings,
    amount: Amount,
    scaling: bool,
    say: Say,
) -> dict[str, Any]:
    """Measure everything; the result is plain JSON.

    Args:
        videos: paths of original videos; None makes Kinetics-like ones.
        folder: an empty folder for what is made.
        settings: of the store.
        amount: how much to measure.
        scaling: measure the loader with several workers, too.
        say: takes a line on what is going on.

    Raises:
        DataError: not one video can be stored and read.
    """
    made = videos is None
    if videos is None:
        say(f"making {amount.num_made} videos")
        videos = make_videos(folder, amount.num_made)
    elif len(videos) > amount.most_videos:
        say(f"taking {amount.most_videos} of {len(videos)} videos")
        videos = [videos[i * len(videos) // amount.most_videos] for i in range(amount.most_videos)]
    with one_core() as core:
        say(f"storing {len(videos)} videos as pyramids")
        store = measure_store(videos, folder, settings, repeats=amount.store_repeats)
        psnr = [luma_psnr(*pair) for pair in zip(store.originals, store.pyramids, strict=True)]
    workers = measure_scaling(store.pyramids, say) if scaling and store.pyramids else None
    with one_core():
        say("trying all readers on all videos")
        originals, pyramids, excluded, unavailable = readable(store)
        contenders = all_contenders(originals, pyramids)
        able = [one for one in contenders if (one.task, one.name) not in unavailable]
        rows = take_turns(able, len(originals), amount, say)
    rates = median_rates(rows)
    return {
        "benchmark": "loader",
        **headline(rates),
        **store_figures(store, psnr),
        "wall_share_of_cpu": sum(r.seconds for r in rows) / sum(r.cpu_seconds for r in rows),
        "contenders": [summary((c.task, c.name), rates, rows, unavailable) for c in contenders],
        "scaling": workers,
        "excluded": {Path(path).name: reason for path, reason in excluded.items()},
        "videos": [
            {
                **asdict(facts := describe(path)),
                "path": Path(path).name,  # results get published
                "kbit_per_sec": facts.kbit_per_sec,
                "psnr_luma_db": decibels,
                "store_bytes": os.path.getsize(stored),
            }
            for path, stored, decibels in zip(store.originals, store.pyramids, psnr, strict=True)
        ],
        "videos_made": made,
        "settings": {**asdict(settings), **asdict(amount), "seed": SEED},
        "machine": machine(core),
        "versions": versions(),
        "rows": [asdict(row) for row in rows],
        "preprocess_rows": [asdict(encoding) for encoding in store.encodings],
    }


@contextmanager
def one_core() -> Iterator[int]:
    """Keep this process, with the threads it has, on one core; yield the core's number."""
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    core = max(allowed)  # the first ones answer the machine's interrupts
    _pin({core})
    torch.set_num_threads(1)
    try:
        yield core
    finally:
        _pin(allowed)
        torch.set_num_threads(threads)


def _pin(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:  # it has just ended
            continue


def readable(store: Store) -> tuple[list[str], list[str], dict[str, str], dict[Key, str]]:
    """Let every contender read one clip of every video, which also warms everything up.

    Returns:
        Originals and pyramids that all can read; the other originals, each with the reason;
        contenders that cannot run here, each with the reason.

    Raises:
        DataError: nothing is left.
    """
    excluded = dict(store.refused)
    unavailable: dict[Key, str] = {}
    errors = peers.read_errors()
    numbers = [0.0] * sampling.RESIZED_CROP_DRAWS  # the first frames: quick to reach
    spots = [Spot(video, 0, 0.0, numbers) for video in range(len(store.originals))]
    for contender in all_contenders(store.originals, store.pyramids):
        key = contender.task, contender.name
        if reason := peers.missing(contender.needs):
            unavailable[key] = reason
            continue
        if contender.task == EVAL:
            continue  # the same readers as in training, and slow
        failed: dict[str, str] = {}
        for spot in spots:
            try:
                contender.load(spot)
            except errors as error:
                failed[store.originals[spot.video]] = peers.first_line(error)
        if failed and len(failed) == len(spots):
            unavailable[key] = next(iter(failed.values()))
        else:
            excluded |= {path: f"{contender.name}: {why}" for path, why in failed.items()}
    pairs = zip(store.originals, store.pyramids, strict=True)
    kept = [pair for pair in pairs if pair[0] not in excluded]
    if not kept:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in excluded.items())
        raise DataError(f"there is no video that all contenders can read. {reasons}")
    return [pair[0] for pair in kept], [pair[1] for pair in kept], excluded, unavailable


def take_turns(
    contenders: Sequence[Contender], num_videos: int, amount: Amount, say: Say
) -> list[Row]:
    """Time every contender in every repeat; who begins changes from repeat to repeat."""
    spots = spread_spots(num_videos, amount.clips_per_video)
    test_spots = spread_spots(min(num_videos, amount.eval_videos), 1)
    rows = []
    for repeat in range(amount.repeats):
        say(f"repeat {repeat + 1} of {amount.repeats}")
        first = repeat * 3 % len(contenders)
        for contender in [*contenders[first:], *contenders[:first]]:
            testing = contender.task == EVAL
            side = amount.side_repeats if contender.name in SIDE else amount.repeats
            if repeat < (min(side, amount.eval_repeats) if testing else side):
                rows.append(timed(contender, test_spots if testing else spots, repeat))
    return rows


def timed(contender: Contender, spots: Sequence[Spot], repeat: int) -> Row:
    """Time passes over all spots, as many as take a while; every repeat draws the same numbers."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    passes, cpu_seconds = 0, 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    while cpu_seconds < SHORTEST:
        for spot in spots:
            contender.load(spot)
        passes, cpu_seconds = passes + 1, time.process_time() - cpu
    seconds = time.perf_counter() - wall
    units = contender.units * len(spots) * passes
    return Row(contender.task, contender.name, repeat, units, seconds, cpu_seconds)


def measure_scaling(
    pyramids: Sequence[str], say: Say, *, seconds: float = 3.0
) -> list[dict[str, Any]]:
    """Pretraining clips/s of the training loader with 0, 1, 2 … workers, all cores allowed.

    The clock runs from the batch by which all workers are busy to the last one.
    """
    batch_size, guess = 8, 100.0  # clips/s of one worker
    table = video_table([path for path in pyramids for _ in range(batch_size)])
    found = []
    for num_workers in worker_counts(len(os.sched_getaffinity(0))):
        say(f"loading with {num_workers} workers")
        warm_up = 2 * max(num_workers, 1)  # batches that are under way when the first arrives
        counted = max(warm_up, round(seconds * guess * max(num_workers, 1) / batch_size))
        loader = train_loader(
            clip_dataset(table, PRETRAIN),
            Layout(batch_size=batch_size),
            start_step=0,
            total_steps=warm_up + counted,
            num_workers=num_workers,
        )
        start = 0.0
        for number, _ in enumerate(loader, 1):
            if number == warm_up:
                start = time.perf_counter()
        rate = counted * batch_size / (time.perf_counter() - start)
        found.append({"workers": num_workers, "clips_per_sec": rate})
    return found


def worker_counts(cores: int) -> list[int]:
    """0, 1, 2, then doubled up to the number of cores.

    >>> worker_counts(6)
    [0, 1, 2, 4, 6]
    """
    counts = [0, 1]
    while counts[-1] < cores:
        counts.append(min(2 * counts[-1], cores))
    return counts
