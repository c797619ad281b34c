"""Which samples reach which step, rank and worker: a function of the step alone."""

import gc
import signal
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from kinetics400.batch import Batch
from kinetics400.data import sampling
from kinetics400.data.dataset import ClipDataset, Unreadable, ViewDataset
from kinetics400.data.library import open_split
from kinetics400.data.loader import Item, Layout, StepSampler, on_device, train_loader, view_loader


def items(
    layout: Layout, num_videos: int, steps: range, seed: int = 3
) -> list[list[tuple[int, int, int]]]:
    sampler = StepSampler(
        num_videos, layout, seed=seed, start_step=steps.start, total_steps=steps.stop
    )
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


def by_step(layouts: list[Layout], num_videos: int, num_steps: int) -> list[list[Item]]:
    """What all ranks together take in each step, sorted."""
    steps: list[list[Item]] = [[] for _ in range(num_steps)]
    for layout in layouts:
        for i, batch in enumerate(items(layout, num_videos, range(num_steps))):
            steps[i // layout.accumulate] += batch
    return [sorted(step) for step in steps]


def ranks(batch_size: int, accumulate: int, world_size: int) -> list[Layout]:
    return [
        Layout(batch_size=batch_size, accumulate=accumulate, world_size=world_size, rank=rank)
        for rank in range(world_size)
    ]


@pytest.mark.parametrize(
    ("num_videos", "batch_size", "accumulate", "world_size"),
    [(24, 4, 1, 1), (24, 2, 2, 3), (26, 4, 1, 3), (25, 1, 4, 2), (7, 7, 1, 1)],
)
def test_an_epoch_takes_each_video_once_and_drops_the_rest(
    num_videos: int, batch_size: int, accumulate: int, world_size: int
) -> None:
    layouts = ranks(batch_size, accumulate, world_size)
    global_batch = batch_size * accumulate * world_size
    steps_per_epoch = num_videos // global_batch
    assert layouts[0].global_batch_size == global_batch
    assert layouts[0].steps_per_epoch(num_videos) == steps_per_epoch
    steps = by_step(layouts, num_videos, 2 * steps_per_epoch)
    for epoch in (0, 1):
        taken = list(chain(*steps[epoch * steps_per_epoch : (epoch + 1) * steps_per_epoch]))
        assert Counter(e for _, e, _ in taken) == {epoch: steps_per_epoch * global_batch}
        assert sorted(slot for _, _, slot in taken) == list(range(len(taken)))
        videos = [video for video, _, _ in taken]
        assert len(set(videos)) == len(videos)
        assert set(videos) <= set(range(num_videos))


def test_epochs_and_seeds_have_different_orders() -> None:
    layout = Layout(batch_size=24)
    first, second = items(layout, 24, range(2))
    (other,) = items(layout, 24, range(1), seed=4)
    orders = [tuple(video for video, _, _ in batch) for batch in (first, second, other)]
    assert len(set(orders)) == 3
    assert all(sorted(order) == list(range(24)) for order in orders)


def test_any_number_of_ranks_takes_the_same_samples_per_step() -> None:
    """At the same global batch of 12, whatever it is made of."""
    splits = [(12, 1, 1), (6, 1, 2), (3, 1, 4), (4, 3, 1), (2, 3, 2), (1, 12, 1)]
    found = [by_step(ranks(*split), 50, 9) for split in splits]
    assert all(steps == found[0] for steps in found)


def test_ranks_do_not_overlap() -> None:
    first, second = (chain(*items(layout, 40, range(2))) for layout in ranks(4, 2, 2))
    assert not {slot for _, _, slot in first} & {slot for _, _, slot in second}


@pytest.mark.parametrize("start", [1, 3, 4, 5, 8])
def test_starting_in_the_middle_skips_and_changes_nothing(start: int) -> None:
    layout = Layout(batch_size=2, accumulate=2, world_size=2, rank=1)
    whole = items(layout, 33, range(12))  # 4 steps per epoch
    assert items(layout, 33, range(start, 12)) == whole[2 * start :]


# --- with videos ----------------------------------------------------------------------------------


def dataset(library: Path, num_sample: int = 1) -> ClipDataset:
    return ClipDataset(
        open_split(library, "train", num_classes=4),
        sample_frames=_frames,
        num_frame_draws=1,
        num_frames=4,
        sample_box=_box,
        num_box_draws=2,
        size=32,
        antialias=True,
        seed=3,
        num_sample=num_sample,
    )


def _frames(length: int, fps: float, u: Sequence[float]) -> list[int]:
    return sampling.pretraining_frames(length, 4, 2, u[0])


def _segments(length: int, fps: float, segment: int, num_segments: int) -> list[int]:
    return sampling.segment_frames(length, 2, 2, segment, num_segments)


def views(library: Path) -> ViewDataset:
    table = open_split(library, "val", num_classes=4)
    return ViewDataset(table, segment_frames=_segments, num_segments=1, num_crops=1, size=16)


def _box(height: int, width: int, u: list[float]) -> sampling.Box:
    return sampling.multi_scale_box(height, width, 32, u)


def load(
    library: Path,
    layout: Layout,
    *,
    start: int = 0,
    stop: int = 4,
    workers: int = 0,
    num_sample: int = 1,
) -> list[Batch]:
    clips = dataset(library, num_sample)
    loader = train_loader(clips, layout, start_step=start, total_steps=stop, num_workers=workers)
    return [batch for batch, failures in loader if not failures]


def content(batch: Batch) -> tuple[bytes, ...]:
    assert batch.clips.dtype == torch.uint8
    return tuple(part.numpy().tobytes() for part in (batch.clips, batch.labels, batch.keys))


@pytest.fixture(scope="module")
def plain(library: Path) -> list[Batch]:
    """Four steps of 8 clips, loaded in this process."""
    return load(library, Layout(batch_size=8))


@pytest.mark.parametrize(("workers", "start"), [(1, 0), (2, 0), (4, 0), (0, 1), (1, 3), (4, 2)])
def test_workers_and_resuming_change_nothing(
    library: Path, plain: list[Batch], workers: int, start: int
) -> None:
    found = load(library, Layout(batch_size=8), start=start, workers=workers)
    assert [content(batch) for batch in found] == [content(batch) for batch in plain[start:]]
    assert plain[0].clips.shape == (8, 3, 4, 32, 32)


@pytest.mark.parametrize("workers", [0, 2])
def test_repeats_lie_beside_each_other(library: Path, plain: list[Batch], workers: int) -> None:
    """Video by video, as published; the first clip of each is the one there is without repeats."""
    found = load(library, Layout(batch_size=8), num_sample=3, workers=workers)
    for batch, single in zip(found, plain, strict=True):
        assert len(batch) == 24
        first = Batch(batch.clips[::3], batch.labels[::3], batch.keys[::3])
        assert content(first) == content(single)
        assert batch.labels.view(8, 3).eq(single.labels[:, None]).all()
        assert len(set(batch.keys.tolist())) == 24


def test_epochs_slots_and_repeats_differ(library: Path) -> None:
    """No two clips of two epochs are the same, though each video is in both."""
    found = load(library, Layout(batch_size=8), stop=6, num_sample=2)  # 3 steps per epoch
    all_keys = torch.cat([batch.keys for batch in found])
    all_clips = torch.cat([batch.clips for batch in found])
    assert len(set(all_keys.tolist())) == len(all_keys) == 96
    assert len({clip.numpy().tobytes() for clip in all_clips}) > 90  # short clips may coincide


def test_two_ranks_load_the_clips_of_one(library: Path, plain: list[Batch]) -> None:
    """The same clips with the same labels and keys, also with micro-batches."""
    shares = [load(library, layout) for layout in ranks(2, 2, 2)]
    for step, whole in enumerate(plain):
        parts = [share[2 * step + micro] for micro in (0, 1) for share in shares]
        assert content(whole) == content(
            Batch(
                torch.cat([part.clips for part in parts]),
                torch.cat([part.labels for part in parts]),
                torch.cat([part.keys for part in parts]),
            )
        )


def test_a_batch_is_its_samples_one_after_the_other(library: Path, plain: list[Batch]) -> None:
    """Pixels lie in memory as they were decoded; the batch's axes are the samples' own."""
    samples = [dataset(library)[item] for item in items(Layout(batch_size=8), 24, range(1))[0]]
    assert torch.equal(plain[0].clips, torch.stack([sample.clips[0] for sample in samples]))
    assert torch.equal(plain[0].keys, torch.stack([sample.keys[0] for sample in samples]))


def test_labels_belong_to_their_clips(library: Path, plain: list[Batch]) -> None:
    order = items(Layout(batch_size=8), 24, range(1))[0]
    assert plain[0].labels.tolist() == [video % 4 for video, _, _ in order]


def test_a_worker_leaves_the_garbage_of_its_parent_alone(library: Path) -> None:
    """FFmpeg's threads do not survive the fork: freeing a decoder that has some waits for ever."""
    videos = open_split(library, "train", num_classes=4)
    container = av.open(videos.path(7))
    container.streams.video[0].codec_context.thread_count = 2
    cycle: list[Any] = [container, next(container.decode(video=0))]
    cycle.append(cycle)

    def frames(length: int, fps: float, u: Sequence[float]) -> list[int]:
        gc.collect()  # in the worker
        return _frames(length, fps, u)

    def give_up(signal_number: int, frame: Any) -> None:
        raise TimeoutError("the worker hangs")

    clips = dataset(library)
    clips.sample_frames = frames
    gc.disable()
    previous = signal.signal(signal.SIGALRM, give_up)
    try:
        del container, cycle
        signal.alarm(30)
        loader = train_loader(
            clips, Layout(batch_size=2), start_step=0, total_steps=1, num_workers=1
        )
        assert len(list(loader)) == 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        gc.enable()


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generator_alone(library: Path, workers: int) -> None:
    """Else dropout would depend on how often a loader was made."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load(library, Layout(batch_size=4), stop=1, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(list(view_loader(views(library), rank=0, world_size=2, num_workers=workers))) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_reach_the_cpu_as_they_are(plain: list[Batch]) -> None:
    failure = Unreadable("a.mp4", "why")
    arrived = list(on_device([(plain[0], [failure]), (plain[1], [])], torch.device("cpu")))
    assert [failures for _, failures in arrived] == [[failure], []]
    assert [content(batch) for batch, _ in arrived] == [content(batch) for batch in plain[:2]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_reach_a_gpu_while_it_is_busy(plain: list[Batch]) -> None:
    """Each is whole when it is used, though nothing waits for its copy but the GPU itself."""
    device = torch.device("cuda")
    busy = torch.randn(4096, 4096, device=device)
    pinned = [(batch.pin_memory(), []) for batch in plain * 5]
    sums = []
    for batch, _ in on_device(pinned, device):
        busy = (busy @ busy).clamp(-1, 1)
        sums.append((batch.clips.long().sum(), batch.keys.clone()))
        assert batch.host_keys.device.type == "cpu"
    for (total, found), batch in zip(sums, plain * 5, strict=True):
        assert total.item() == batch.clips.long().sum().item()
        assert torch.equal(found.cpu(), batch.keys)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 9])
def test_ranks_share_a_test_without_overlap(library: Path, world_size: int) -> None:
    seen = [
        video.index
        for rank in range(world_size)
        for video in view_loader(views(library), rank=rank, world_size=world_size, num_workers=0)
    ]
    assert sorted(seen) == list(range(8))
