"""Batches for training and evaluation. Workers hold no state: a batch is a function of its step."""

import gc
import os
import signal
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from kinetics400.batch import Batch
from kinetics400.data import keys
from kinetics400.data.dataset import ClipDataset, Sample, Unreadable, VideoViews, ViewDataset
from kinetics400.data.orphans import die_with_parent
from kinetics400.data.shared_memory import PREFETCH

# A forked worker must not free what was garbage in its parent: a decoder or converter would wait
# for threads that only the parent has. Frozen before the fork, as any moment later is too late.
os.register_at_fork(before=gc.freeze, after_in_parent=gc.unfreeze)

Item = tuple[int, int, int]  # (video index, epoch, slot)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an epoch's slots fall to steps, ranks and micro-batches.

    Step s of an epoch takes the slots [s * G, (s + 1) * G) of the epoch's order, G the global
    batch, whatever the number of ranks; what is left at the end of the order is dropped.

    Attributes:
        batch_size: clips per rank and micro-batch.
        accumulate: micro-batches per step.
        world_size: ranks.
        rank: this one.
    """

    batch_size: int
    accumulate: int = 1
    world_size: int = 1
    rank: int = 0

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.accumulate * self.world_size

    def steps_per_epoch(self, num_videos: int) -> int:
        return num_videos // self.global_batch_size

    def slots(self, step_in_epoch: int, micro: int) -> range:
        """This rank's slots of one micro-batch."""
        share = micro * self.world_size + self.rank
        start = step_in_epoch * self.global_batch_size + share * self.batch_size
        return range(start, start + self.batch_size)


class StepSampler(Sampler[list[Item]]):
    """The items of every micro-batch from `start_step` to `total_steps`, over all epochs."""

    def __init__(
        self, num_videos: int, layout: Layout, *, seed: int, start_step: int, total_steps: int
    ) -> None:
        self.num_videos = num_videos
        self.layout = layout
        self.seed = seed
        self.start_step = start_step
        self.total_steps = total_steps

    def __len__(self) -> int:
        return (self.total_steps - self.start_step) * self.layout.accumulate

    def __iter__(self) -> Iterator[list[Item]]:
        steps_per_epoch = self.layout.steps_per_epoch(self.num_videos)
        order, order_epoch = torch.empty(0, dtype=torch.int64), None
        for step in range(self.start_step, self.total_steps):
            epoch, step_in_epoch = divmod(step, steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = keys.permutation(self.seed, epoch, self.num_videos), epoch
            for micro in range(self.layout.accumulate):
                slots = self.layout.slots(step_in_epoch, micro)
                videos = order[slots.start : slots.stop].tolist()
                yield [(video, epoch, slot) for video, slot in zip(videos, slots, strict=True)]


def collate(samples: Sequence[Sample]) -> tuple[Batch, list[Unreadable]]:
    """Stack samples into a batch; collect the failures behind them."""
    # Pixels stay in the order in which they were decoded (T, H, W, C): stacking copies whole
    # blocks, and the batch (B, C, T, H, W) is a view of them.
    clips = torch.stack([clip.permute(1, 2, 3, 0) for sample in samples for clip in sample.clips])
    batch = Batch(
        clips.permute(0, 4, 1, 2, 3),
        torch.tensor([sample.label for sample in samples for _ in sample.clips]),
        torch.stack([key for sample in samples for key in sample.keys]),
    )
    return batch, [failure for sample in samples for failure in sample.failures]


def on_device(
    batches: Iterable[tuple[Batch, list[Unreadable]]], device: torch.device
) -> Iterator[tuple[Batch, list[Unreadable]]]:
    """Copy batches to a device, on CUDA beside the computation of the step before.

    The host runs ahead of the device: it asks for the next batch while the device is still busy
    with the last one, so a stream of their own is all that copies need to overlap with it.
    """
    if device.type != "cuda":
        for batch, failures in batches:
            yield batch.to(device), failures
        return
    stream = torch.cuda.Stream(device)
    for batch, failures in batches:
        with torch.cuda.stream(stream):
            copy = batch.to(device, non_blocking=True)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        # Allocated on the copying stream: not to be given away there while it is computed with.
        for part in (copy.clips, copy.labels, copy.keys):
            part.record_stream(computing)
        yield copy, failures


def _settle(parent: int, worker: int) -> None:
    """What a worker does first. Signals to the whole run are for its parent to handle."""
    die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _worker_options(num_workers: int) -> dict[str, Any]:
    """What all loaders have in common."""
    options: dict[str, Any] = {
        "num_workers": num_workers,
        # Otherwise the loader would draw from the global generator, and dropout with it.
        "generator": torch.Generator(),
    }
    if num_workers:
        options["worker_init_fn"] = partial(_settle, os.getpid())
        options["prefetch_factor"] = PREFETCH
        if sys.platform == "linux":  # workers share the parent's tables, and die with it
            options["multiprocessing_context"] = "fork"
    return options


def train_loader(
    dataset: ClipDataset,
    layout: Layout,
    *,
    start_step: int,
    total_steps: int,
    num_workers: int,
    pin_memory: bool = False,
) -> "DataLoader[Any]":
    """Micro-batches `(Batch, failures)` for one rank, from `start_step` to the end of training."""
    sampler = StepSampler(
        len(dataset), layout, seed=dataset.seed, start_step=start_step, total_steps=total_steps
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        pin_memory=pin_memory,
        **_worker_options(num_workers),
    )


def view_loader(
    dataset: ViewDataset,
    *,
    rank: int,
    world_size: int,
    num_workers: int,
    done: Container[int] = (),
) -> "DataLoader[VideoViews]":
    """This rank's videos of a test, one at a time; together the ranks see each video once.

    Those that are done are left out.
    """
    return DataLoader(
        dataset,
        sampler=[index for index in range(len(dataset)) if index not in done][rank::world_size],
        batch_size=None,
        **_worker_options(num_workers),
    )
