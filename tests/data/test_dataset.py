"""Clips and views against a full decode, cut and scaled by other code."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from kinetics400.data import keys, sampling
from kinetics400.data.annotations import VideoTable
from kinetics400.data.dataset import ClipDataset, ViewDataset, to_square
from kinetics400.data.decode import VideoReader
from kinetics400.data.library import open_split
from kinetics400.data.watch import Heartbeats

MakeVideo = Callable[..., Path]
SIZE = 32


def decode_all(path: str) -> np.ndarray:
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def noise(height: int, width: int) -> np.ndarray:
    """(2, H, W, 3) uint8, smooth enough that scaling means something."""
    small = np.random.default_rng(0).integers(0, 255, (2, 3, 9, 12), dtype=np.uint8)
    big = F.interpolate(torch.from_numpy(small).float(), (height, width), mode="bicubic")
    return big.clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()


def clips(
    table: VideoTable, *, seed: int = 0, size: int = SIZE, antialias: bool = True
) -> ClipDataset:
    """A pretraining-like dataset whose box is a fixed function of one random number."""
    return ClipDataset(
        table,
        sample_frames=lambda length, fps, u: sampling.pretraining_frames(length, 4, 3, u[0]),
        num_frame_draws=1,
        num_frames=4,
        sample_box=lambda height, width, u: sampling.Box(2, int(u[0] * 10), 30, 28),
        num_box_draws=1,
        size=size,
        antialias=antialias,
        seed=seed,
    )


def as_float(clip: torch.Tensor) -> np.ndarray:
    return clip.numpy().astype(np.float64)


# --- to_square ------------------------------------------------------------------------------------


def test_without_scaling_pixels_stay_as_they_are() -> None:
    cut = noise(48, 64)[:, 5:25, 9:29]
    square = to_square(cut, 20, antialias=True)
    assert (square.shape, square.dtype) == ((3, 2, 20, 20), torch.uint8)
    np.testing.assert_array_equal(square.permute(1, 2, 3, 0), cut)


@pytest.mark.parametrize("box", [(3, 4, 40, 50), (0, 0, 48, 64), (10, 1, 11, 60), (7, 7, 9, 9)])
def test_without_antialias_equals_bilinear_on_floats(box: tuple[int, int, int, int]) -> None:
    """As torch's own on float64, and as the textbook formula, to a level."""
    top, left, height, width = box
    frames = noise(48, 64)
    cut = frames[:, top : top + height, left : left + width]
    got = as_float(to_square(cut, SIZE, antialias=False))
    exact = F.interpolate(
        torch.from_numpy(cut).permute(0, 3, 1, 2).double(),
        (SIZE, SIZE),
        mode="bilinear",
        align_corners=False,
    )
    assert np.abs(got - exact.transpose(0, 1).numpy()).max() <= 1

    def positions(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.clip((np.arange(SIZE) + 0.5) * length / SIZE - 0.5, 0, length - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, length - 1), at - low

    (y0, y1, dy), (x0, x1, dx) = positions(height), positions(width)
    rows = cut[:, y0] * (1 - dy)[:, None, None] + cut[:, y1] * dy[:, None, None]
    formula = rows[:, :, x0] * (1 - dx)[:, None] + rows[:, :, x1] * dx[:, None]
    assert np.abs(got - formula.transpose(3, 0, 1, 2)).max() <= 1


@pytest.mark.parametrize("box", [(3, 4, 40, 50), (0, 0, 90, 120), (10, 1, 11, 60), (7, 7, 9, 9)])
def test_with_antialias_equals_pil_within_a_level(box: tuple[int, int, int, int]) -> None:
    top, left, height, width = box
    frames = noise(90, 120)
    cut = frames[:, top : top + height, left : left + width]
    got = as_float(to_square(cut, SIZE, antialias=True))
    for i, frame in enumerate(cut):
        image = Image.fromarray(frame)
        pil = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)).astype(float)
        assert np.abs(got[:, i] - pil.transpose(2, 0, 1)).max() <= 1


def test_antialias_matters_when_shrinking() -> None:
    """A fine checkerboard becomes grey; without antialiasing it aliases."""
    board = (np.indices((96, 96)).sum(axis=0) % 2 * 255).astype(np.uint8)
    frames = np.repeat(board[None, :, :, None], 3, axis=3)
    smooth = as_float(to_square(frames, SIZE, antialias=True))
    rough = as_float(to_square(frames, SIZE, antialias=False))
    assert np.abs(smooth - 127.5).max() < 20
    assert np.abs(rough - 127.5).max() > 100


# --- training clips -------------------------------------------------------------------------------


def test_a_clip_is_the_cut_from_a_full_decode(library: Path) -> None:
    table = open_split(library, "train", num_classes=4)
    for index, epoch, slot in [(0, 0, 0), (1, 0, 5), (7, 3, 2), (7, 3, 3)]:
        sample = clips(table, seed=9)[(index, epoch, slot)]
        key = keys.sample_key(9, epoch, slot)
        whole = decode_all(table.path(index))
        u_clip = keys.uniform(key, "clip", 1).item()
        u_crop = keys.uniform(key, "crop", 1).item()
        frames = whole[sampling.pretraining_frames(len(whole), 4, 3, u_clip)]
        left = int(u_crop * 10)
        cut = torch.from_numpy(frames[:, 2:32, left : left + 28]).permute(0, 3, 1, 2)
        expected = F.interpolate(cut, (SIZE, SIZE), mode="bilinear", antialias=True)
        assert torch.equal(sample.clips[0], expected.transpose(0, 1))
        assert (sample.label, sample.failures) == (index % 4, [])
        assert sample.keys[0] == key


def test_clips_differ_between_epochs_slots_and_seeds(library: Path) -> None:
    table = open_split(library, "train", num_classes=4)
    items = [(0, (9, 0, 0)), (0, (9, 1, 0)), (0, (9, 0, 1)), (1, (9, 0, 0))]
    found = [clips(table, seed=seed)[item].clips[0] for seed, item in items]
    assert len({clip.numpy().tobytes() for clip in found}) == 4
    again = clips(table, seed=0)[(9, 0, 0)].clips[0]
    assert torch.equal(again, found[0])


@pytest.fixture
def damaged(library: Path, tmp_path: Path) -> VideoTable:
    """The training videos, of which number 4 is absent and number 6 no video."""
    folder = shutil.copytree(library, tmp_path / "Kinetics-400")
    table = open_split(folder, "train", num_classes=4)
    Path(table.path(4)).unlink()
    Path(table.path(6)).write_text("no video")
    return table


def test_a_bad_video_is_replaced_by_a_fixed_other_one(damaged: VideoTable) -> None:
    """The substitute follows from the sample's key; its own label and clip come with it."""
    for slot in range(12):
        sample = clips(damaged)[(4, 0, slot)]
        key = keys.sample_key(0, 0, slot)
        draws = (keys.uniform(key, "substitute", 8) * len(damaged)).long().tolist()
        tried = [4]
        while tried[-1] in (4, 6):
            tried.append(draws[len(tried) - 1])
        honest = clips(damaged)[(tried[-1], 0, slot)]
        assert torch.equal(sample.clips[0], honest.clips[0])
        assert sample.label == tried[-1] % 4
        assert torch.equal(sample.keys[0], key)
        assert [failure.path for failure in sample.failures] == [
            damaged.path(index) for index in tried[:-1]
        ]
        assert "No such file" in sample.failures[0].reason


def test_substitutes_are_spread_over_the_videos(damaged: VideoTable) -> None:
    """Not always the neighbour: that one would be seen twice as often."""
    labels = [clips(damaged)[(4, 0, slot)].label for slot in range(30)]
    assert set(labels) == {0, 1, 2, 3}


def test_after_nine_bad_videos_in_a_row_the_clip_is_blank_and_says_so(damaged: VideoTable) -> None:
    """It does not raise: in one of several ranks that would leave the others waiting."""
    for index in range(len(damaged)):
        Path(damaged.path(index)).unlink(missing_ok=True)
    sample = clips(damaged)[(0, 0, 0)]
    assert [failure.gave_up for failure in sample.failures] == [False] * 8 + [True]
    assert (sample.clips[0].shape, sample.clips[0].dtype) == ((3, 4, SIZE, SIZE), torch.uint8)
    assert not sample.clips[0].any()


def test_eight_bad_videos_in_a_row_do_not(damaged: VideoTable) -> None:
    def tried(slot: int) -> list[int]:
        draws = keys.uniform(keys.sample_key(0, 0, slot), "substitute", 8)
        return [0, *(draws * len(damaged)).long().tolist()]

    # A slot whose last substitute is a sound video that was not tried before.
    slot = next(n for n in range(1000) if tried(n)[-1] not in {4, 6, *tried(n)[:-1]})
    last = tried(slot)[-1]
    for index in set(range(len(damaged))) - {last}:
        Path(damaged.path(index)).unlink(missing_ok=True)
    sample = clips(damaged)[(0, 0, slot)]
    assert (len(sample.failures), sample.label) == (8, last % 4)
    assert not any(failure.gave_up for failure in sample.failures)
    assert torch.equal(sample.clips[0], clips(damaged)[(last, 0, slot)].clips[0])


# --- test views -----------------------------------------------------------------------------------


def _segment_frames(length: int, fps: float, segment: int, num_segments: int) -> list[int]:
    return sampling.segment_frames(length, 4, 3, segment, num_segments)


def views_of(table: VideoTable, *, segments: int, crops: int, size: int = 24) -> ViewDataset:
    return ViewDataset(
        table,
        segment_frames=_segment_frames,
        num_segments=segments,
        num_crops=crops,
        size=size,
    )


@pytest.mark.parametrize(("segments", "crops"), [(5, 3), (1, 1), (2, 3)])
def test_views_equal_a_brute_force_cut(library: Path, segments: int, crops: int) -> None:
    """Whole video decoded and scaled, then cut; landscape, portrait and a short one."""
    table = open_split(library, "val", num_classes=4)
    for index in range(3):
        got = views_of(table, segments=segments, crops=crops)[index]
        whole = torch.from_numpy(decode_all(table.path(index))).permute(0, 3, 1, 2)
        tall = whole.shape[2] > whole.shape[3]
        scaled = F.interpolate(whole, (32, 24) if tall else (24, 32), mode="bilinear")
        strided = list(scaled[::3])
        strided += [strided[-1]] * (4 - len(strided))
        expected = []
        for segment in range(segments):
            spare = len(strided) - 4
            start = segment * spare // (segments - 1) if segments > 1 else spare // 2
            clip = torch.stack(strided[start : start + 4], dim=1)
            for crop in range(crops):
                offset = 4 * crop if crops > 1 else 4  # 8 pixels to spare along the long side
                cut = slice(offset, offset + 24)
                expected.append(clip[:, :, cut] if tall else clip[:, :, :, cut])
        assert (got.index, got.label, got.failure) == (index, index % 4, None)
        assert got.views is not None
        assert torch.equal(got.views, torch.stack(expected))


def test_a_test_video_that_cannot_be_read_is_reported_not_replaced(
    library: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(library, tmp_path / "Kinetics-400")
    table = open_split(folder, "val", num_classes=4)
    Path(table.path(5)).write_bytes(Path(table.path(5)).read_bytes()[:-300])
    video = views_of(table, segments=2, crops=1)[5]
    assert (video.index, video.label, video.views) == (5, 1, None)
    assert video.failure is not None
    assert video.failure.path == table.path(5)
    assert "val_05.mp4" in video.failure.reason


def test_each_test_video_is_decoded_once_for_all_views(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    read = VideoReader.read

    def watched(self: VideoReader, frames: list[int], **arguments: Any) -> np.ndarray:
        asked.append(frames)
        return read(self, frames, **arguments)

    monkeypatch.setattr(VideoReader, "read", watched)
    views_of(open_split(library, "val", num_classes=4), segments=5, crops=3)[2]
    assert len(asked) == 1
    assert len(set(asked[0])) == len(asked[0])


# --- pyramids and samplers ------------------------------------------------------------------------


def test_a_clip_of_a_pyramid_is_the_cut_from_its_full_decode(
    tmp_path: Path, make_pyramid: MakeVideo
) -> None:
    path = make_pyramid(tmp_path / "v.mp4", n_frames=75, height=48, width=64)
    whole = decode_all(str(path))
    table = VideoTable.from_rows([(str(path), 0)])
    for grid in (4, 1):
        dataset = clips(table)
        dataset.sample_frames = lambda length, fps, u, grid=grid: sampling.pretraining_frames(
            length, 4, 4, u[0], grid=grid
        )
        starts = set()
        for slot in range(12):
            u = keys.uniform(keys.sample_key(0, 0, slot), "clip", 1).item()
            left = int(keys.uniform(keys.sample_key(0, 0, slot), "crop", 1).item() * 10)
            frames = sampling.pretraining_frames(75, 4, 4, u, grid=grid)
            cut = torch.from_numpy(whole[frames][:, 2:32, left : left + 28]).permute(0, 3, 1, 2)
            expected = F.interpolate(cut, (SIZE, SIZE), mode="bilinear", antialias=True)
            assert torch.equal(dataset[(0, 0, slot)].clips[0], expected.transpose(0, 1))
            starts.add(frames[0] % 4)
        assert (starts == {0}) == (grid == 4)


def test_samplers_get_length_rate_and_as_many_numbers_as_they_ask_for(
    tmp_path: Path, make_pyramid: MakeVideo
) -> None:
    path = make_pyramid(tmp_path / "v.mp4", n_frames=41, fps=25)
    asked = []

    def frames(length: int, fps: float, u: Sequence[float]) -> list[int]:
        asked.append((length, fps, list(u)))
        return [0, 4]

    dataset = clips(VideoTable.from_rows([(str(path), 0)]))
    dataset.sample_frames, dataset.num_frame_draws = frames, 7
    assert dataset[(0, 2, 3)].clips[0].shape[1] == 2
    expected = keys.uniform(keys.sample_key(0, 2, 3), "clip", 7).tolist()
    assert asked == [(41, 25.0, expected)]


def test_a_clip_stays_when_the_next_one_is_loaded(library: Path) -> None:
    """Also where nothing was scaled: the memory of its pixels is used again."""
    dataset = clips(open_split(library, "train", num_classes=4))
    dataset.sample_box = lambda height, width, u: sampling.Box(0, 0, SIZE, SIZE)
    first = dataset[(3, 0, 0)].clips[0]
    copy = first.clone()
    second = dataset[(4, 0, 1)].clips[0]
    assert torch.equal(first, copy) and not torch.equal(first, second)


def test_views_stay_when_the_next_ones_are_loaded(library: Path) -> None:
    views = views_of(open_split(library, "val", num_classes=4), segments=2, crops=1, size=48)
    first = views[3].views
    assert first is not None
    copy = first.clone()
    second = views[4].views
    assert second is not None
    assert torch.equal(first, copy) and not torch.equal(first, second)


# --- memory ---------------------------------------------------------------------------------------

VIDEOS = 246_535  # of Kinetics-400


def name_of(i: int) -> str:
    return f"class {i % 400:03}/{i:011}_000{i % 10:03}_000{i % 10 + 10:03}.mp4"


class Touched(Dataset[int]):
    """Item n reads all rows n times in random order and tells what memory that took, in bytes."""

    def __init__(self, row: Callable[[int], tuple[str, int]]) -> None:
        self.row = row
        self.order = np.random.default_rng(0).permutation(VIDEOS)

    def __getitem__(self, passes: int) -> int:
        private_bytes()  # what asking itself costs
        before = private_bytes()
        for _ in range(passes):
            for i in self.order:
                path, label = self.row(int(i))
                assert path and label >= 0
        return private_bytes() - before


def growth_in_a_worker(row: Callable[[int], tuple[str, int]], passes: int) -> float:
    """MiB of private memory that reading all rows costs a loader's worker."""
    # In one item: what the main process writes meanwhile becomes private in the worker as well.
    loader = DataLoader(Touched(row), sampler=[0, passes], batch_size=None, num_workers=1)
    _, growth = loader
    return growth / 2**20


def private_bytes() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(int(size) for size in re.findall(r"Private_\w+: +(\d+) kB", text))


def test_touching_all_videos_costs_a_worker_no_memory() -> None:
    table = VideoTable.from_rows(((name_of(i), i % 400) for i in range(VIDEOS)), "/data/videos")

    def row(i: int) -> tuple[str, int]:
        return table.path(i), table.label(i)

    assert row(7) == ("/data/videos/" + name_of(7), 7)
    assert growth_in_a_worker(row, passes=3) <= 1


def test_a_list_of_tuples_would_cost_each_worker_a_copy() -> None:
    """The control: reading an object counts a reference, and its page is copied."""
    rows = [("/data/videos/" + name_of(i), i % 400) for i in range(VIDEOS)]

    def row(i: int) -> tuple[str, int]:
        path, label = rows[i]
        return path, label

    assert growth_in_a_worker(row, passes=1) > 30


# --- repeated augmentation ------------------------------------------------------------------------


def repeated(table: VideoTable, num_sample: int, **more: Any) -> ClipDataset:
    """Boxes that differ in place and in size."""
    return ClipDataset(
        table,
        sample_frames=lambda length, fps, u: sampling.pretraining_frames(length, 4, 3, u[0]),
        num_frame_draws=1,
        num_frames=4,
        sample_box=_any_box,
        num_box_draws=4,
        size=SIZE,
        antialias=False,
        seed=7,
        num_sample=num_sample,
        **more,
    )


def _any_box(height: int, width: int, u: Sequence[float]) -> sampling.Box:
    inner = (int(8 + u[0] * (height - 8)), int(8 + u[1] * (width - 8)))
    return sampling.Box(int(u[2] * (height - inner[0])), int(u[3] * (width - inner[1])), *inner)


def test_repeats_are_cut_from_the_same_frames_each_by_its_own_key(library: Path) -> None:
    table = open_split(library, "train", num_classes=4)
    for slot in range(5):
        sample = repeated(table, 3)[(slot, 1, slot)]
        expected_keys = [keys.sample_key(7, 1, slot, repeat) for repeat in range(3)]
        assert torch.equal(torch.stack(sample.keys), torch.stack(expected_keys))
        frames = decode_all(table.path(slot))
        u = keys.uniform(expected_keys[0], "clip", 1).tolist()
        chosen = frames[sampling.pretraining_frames(len(frames), 4, 3, u[0])]
        for clip, key in zip(sample.clips, expected_keys, strict=True):
            box = _any_box(*frames.shape[1:3], keys.uniform(key, "crop", 4).tolist())
            top, left, height, width = box
            cut = chosen[:, top : top + height, left : left + width]
            assert torch.equal(clip, to_square(cut, SIZE, antialias=False))
        assert len({clip.numpy().tobytes() for clip in sample.clips}) == 3


def test_the_first_of_several_clips_is_the_only_one_of_one(library: Path) -> None:
    table = open_split(library, "train", num_classes=4)
    one, three = (repeated(table, n)[(2, 0, 5)] for n in (1, 3))
    assert torch.equal(one.clips[0], three.clips[0])
    assert torch.equal(one.keys[0], three.keys[0])


def test_a_video_is_decoded_once_for_all_its_clips(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = open_split(library, "train", num_classes=4)
    asked: list[int] = []
    read = VideoReader.frames

    def counted(self: VideoReader, indices: Sequence[int]) -> Any:
        asked.append(len(indices))
        return read(self, indices)

    monkeypatch.setattr(VideoReader, "frames", counted)
    assert len(repeated(table, 4)[(0, 0, 0)].clips) == 4
    assert asked == [4]


# --- augmentation before the cut ------------------------------------------------------------------


def _inverted_by_key(clips: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Every other sample inverted."""
    assert (clips.shape[0], clips.dtype, key.shape) == (1, torch.uint8, (1,))
    return clips.bitwise_not() if keys.uniform(key, "test", 1)[0, 0] < 0.5 else clips


def test_whole_frames_are_augmented_before_they_are_cut(library: Path) -> None:
    """Each repeat by its own key."""
    table = open_split(library, "train", num_classes=4)
    plain = repeated(table, 6)[(1, 0, 1)]
    shapes = []

    def augment(clips: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(clips.shape))
        return _inverted_by_key(clips, key)

    found = repeated(table, 6, augment_frames=augment)[(1, 0, 1)]
    frames = decode_all(table.path(1))
    assert set(shapes) == {(1, 3, 4, *frames.shape[1:3])}
    turned = [keys.draws(key, "test", 1)[0] < 0.5 for key in plain.keys]
    assert set(turned) == {True, False}
    for before, after, turn in zip(plain.clips, found.clips, turned, strict=True):
        expected = 255 - before.int() if turn else before.int()
        assert (after.int() - expected).abs().max() <= 2  # two roundings when scaling


# --- quarantine -----------------------------------------------------------------------------------


def test_a_quarantined_video_is_not_opened_and_others_stay_what_they_were(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = open_split(library, "train", num_classes=4)
    opened: list[str] = []
    honest = [clips(table)[(index, 0, index)] for index in range(6)]
    init = VideoReader.__init__

    def noted(self: VideoReader, path: str) -> None:
        opened.append(path)
        init(self, path)

    monkeypatch.setattr(VideoReader, "__init__", noted)
    dataset = clips(table)
    dataset.quarantined = {3: "hung, no frame after 60 s"}
    for index in range(6):
        sample = dataset[(index, 0, index)]
        if index == 3:
            (failure,) = sample.failures
            assert failure.path == table.path(3)
            assert "quarantined: hung, no frame after 60 s" in failure.reason
            assert not torch.equal(sample.clips[0], honest[3].clips[0])
        else:
            assert sample.failures == []
            assert torch.equal(sample.clips[0], honest[index].clips[0])
    assert table.path(3) not in opened


def test_a_quarantined_video_of_a_test_counts_as_unreadable(library: Path) -> None:
    table = open_split(library, "val", num_classes=4)
    dataset = ViewDataset(
        table,
        segment_frames=_segment_frames,
        num_segments=1,
        num_crops=1,
        size=16,
        quarantined={2: "crashed, signal 11"},
    )
    assert dataset[1].views is not None
    refused = dataset[2]
    assert refused.views is None and refused.failure is not None
    assert "quarantined: crashed" in refused.failure.reason


def test_a_worker_notes_the_video_only_while_it_reads_it(library: Path) -> None:
    table = open_split(library, "train", num_classes=4)
    beats = Heartbeats(0)
    seen = []

    def frames(length: int, fps: float, u: Sequence[float]) -> list[int]:
        seen.append(beats.row(0)[1])
        return sampling.pretraining_frames(length, 4, 3, u[0])

    dataset = clips(table)
    dataset.beats, dataset.sample_frames = beats, frames
    dataset[(5, 0, 0)]
    assert seen == [5]
    assert beats.row(0)[1] == -1
