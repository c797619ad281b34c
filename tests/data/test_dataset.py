"""Clips and views against a full decode, cut and scaled by other code."""

import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from kinetics400.data import keys, sampling
from kinetics400.data.annotations import VideoTable
from kinetics400.data.dataset import ClipDataset, ViewDataset, crop_resize
from kinetics400.data.library import open_split

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
        sample_frames=lambda length, u: sampling.pretraining_frames(length, 4, 3, u),
        sample_box=lambda height, width, u: sampling.Box(2, int(u[0] * 10), 30, 28),
        num_box_draws=1,
        size=size,
        antialias=antialias,
        seed=seed,
    )


def as_float(clip: torch.Tensor) -> np.ndarray:
    return clip.numpy().astype(np.float64)


# --- crop_resize ----------------------------------------------------------------------------------


def test_crop_without_scaling_is_the_cut() -> None:
    frames = noise(48, 64)
    cut = crop_resize(frames, sampling.Box(5, 9, 20, 20), 20, antialias=True)
    assert (cut.shape, cut.dtype) == ((3, 2, 20, 20), torch.uint8)
    np.testing.assert_array_equal(cut.permute(1, 2, 3, 0), frames[:, 5:25, 9:29])


@pytest.mark.parametrize("box", [(3, 4, 40, 50), (0, 0, 48, 64), (10, 1, 11, 60), (7, 7, 9, 9)])
def test_without_antialias_equals_bilinear_on_floats(box: tuple[int, int, int, int]) -> None:
    """As torch's own on float64, and as the textbook formula, to a level."""
    top, left, height, width = box
    frames = noise(48, 64)
    cut = frames[:, top : top + height, left : left + width]
    got = as_float(crop_resize(frames, sampling.Box(*box), SIZE, antialias=False))
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
    got = as_float(crop_resize(frames, sampling.Box(*box), SIZE, antialias=True))
    for i, frame in enumerate(frames):
        cut = Image.fromarray(frame[top : top + height, left : left + width])
        pil = np.asarray(cut.resize((SIZE, SIZE), Image.Resampling.BILINEAR)).astype(float)
        assert np.abs(got[:, i] - pil.transpose(2, 0, 1)).max() <= 1


def test_antialias_matters_when_shrinking() -> None:
    """A fine checkerboard becomes grey; without antialiasing it aliases."""
    board = (np.indices((96, 96)).sum(axis=0) % 2 * 255).astype(np.uint8)
    frames = np.repeat(board[None, :, :, None], 3, axis=3)
    box = sampling.Box(0, 0, 96, 96)
    smooth = as_float(crop_resize(frames, box, SIZE, antialias=True))
    rough = as_float(crop_resize(frames, box, SIZE, antialias=False))
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
        assert torch.equal(sample.clip, expected.transpose(0, 1))
        assert (sample.label, sample.failures) == (index % 4, [])
        assert sample.key == key


def test_clips_differ_between_epochs_slots_and_seeds(library: Path) -> None:
    table = open_split(library, "train", num_classes=4)
    items = [(0, (9, 0, 0)), (0, (9, 1, 0)), (0, (9, 0, 1)), (1, (9, 0, 0))]
    found = [clips(table, seed=seed)[item].clip for seed, item in items]
    assert len({clip.numpy().tobytes() for clip in found}) == 4
    again = clips(table, seed=0)[(9, 0, 0)].clip
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
        assert torch.equal(sample.clip, honest.clip)
        assert sample.label == tried[-1] % 4
        assert torch.equal(sample.key, key)
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
    assert (sample.clip.shape, sample.clip.dtype) == ((3, 4, SIZE, SIZE), torch.uint8)
    assert not sample.clip.any()


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
    assert torch.equal(sample.clip, clips(damaged)[(last, 0, slot)].clip)


# --- test views -----------------------------------------------------------------------------------


def views_of(table: VideoTable, *, segments: int, crops: int, size: int = 24) -> ViewDataset:
    return ViewDataset(
        table,
        num_frames=4,
        sampling_rate=3,
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
    opened = []
    original = av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: opened.append(a) or original(*a, **k))
    views_of(open_split(library, "val", num_classes=4), segments=5, crops=3)[2]
    assert len(opened) == 1
