"""The peers do what they say: which frames, how often decoded, which pixels, which randomness.

Frames and boxes are compared with the published formulas, written here as they stand in kinetics.py
(numpy), and pixels with our own exact reading of the same frames.
"""

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import decord
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kinetics400.batch import denormalize
from kinetics400.bench import contenders, peers
from kinetics400.data.decode import VideoReader

CROP = [0.3, 0.4, 0.6, 0.7] * 10
LENGTH, HEIGHT, WIDTH = 100, 64, 80  # of the fixture `original`
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Log:
    """What decord was asked for."""

    def __init__(self) -> None:
        self.options: list[dict[str, object]] = []
        self.batches: list[list[int]] = []
        self.seeks: list[int] = []


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()

    class Reader(decord.VideoReader):
        def __init__(self, path: str, **options: object) -> None:
            log.options.append(options)
            super().__init__(path, **options)

        def seek(self, position: int) -> None:
            log.seeks.append(position)
            super().seek(position)

        def get_batch(self, indices: list[int]):
            log.batches.append(list(indices))
            return super().get_batch(indices)

    monkeypatch.setattr(decord, "VideoReader", Reader)
    return log


def exact(path: str, frames: list[int]) -> np.ndarray:
    with VideoReader(path) as reader:
        return reader.read(frames)


def pixels(clip: Tensor) -> Tensor:
    """Normalised (C, T, H, W) to 0..255."""
    return denormalize(clip, channel_dim=0) * 255


def apart(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """Mean distance, grey levels; conversions of colour and scaling are worth about one."""
    return float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean())


# --- pretraining ----------------------------------------------------------------------------------


def test_pretraining_reads_16_frames_at_stride_4_once(original: str, log: Log) -> None:
    clip, mask = peers.decord_pretraining(original, 0.5, CROP)
    start = int(0.5 * (LENGTH - 64 + 1))
    assert log.batches == [list(range(start, start + 64, 4))]
    assert log.options == [{"num_threads": 1}]
    assert (clip.shape, clip.dtype) == ((3, 16, 224, 224), torch.float32)
    assert mask.reshape(8, 196).sum(1).tolist() == [176] * 8
    assert (mask.reshape(8, 196) == mask[:196]).all()
    assert not (peers.tube_mask() == mask).all()


def test_pretraining_delivers_the_crop_scaled_by_pil_and_normalised(
    original: str, log: Log
) -> None:
    clip, _ = peers.decord_pretraining(original, 0.5, CROP)
    frames = exact(original, log.batches[0])
    # The fourth pair of 64 × (1, .875, .75, .66) is 56 × 56; the sixth place is halfway down the
    # left edge.
    expected = []
    for frame in frames:
        corners = (0, 4, 56, 4 + 56)
        image = Image.fromarray(frame).resize((224, 224), Image.Resampling.BILINEAR, box=corners)
        expected.append(np.asarray(image).transpose(2, 0, 1))
    expected = np.stack(expected, axis=1)
    normalised = (expected / 255 - np.reshape(MEAN, (3, 1, 1, 1))) / np.reshape(STD, (3, 1, 1, 1))
    assert np.abs(clip.numpy() - normalised).mean() < 0.05
    assert apart(pixels(clip), expected) < 2.5
    assert apart(pixels(clip), np.roll(expected, 1, axis=1)) > 6  # another frame


# --- finetuning -----------------------------------------------------------------------------------


def test_finetuning_decodes_once_for_two_samples(original: str, log: Log) -> None:
    random.seed(0)
    samples = peers.decord_finetuning(original, 0.5, [CROP, CROP[::-1]])
    end = 64 + int(0.5 * (LENGTH - 64))
    indices = np.clip(np.linspace(end - 64, end, 16), end - 64, end - 1).astype(int)
    assert log.batches == [indices.tolist()]
    assert [options["num_threads"] for options in log.options] == [1]
    assert log.seeks == [0]
    assert [sample.shape for sample in samples] == [(3, 16, 224, 224)] * 2
    assert all(sample.dtype == torch.float32 for sample in samples)
    assert apart(*samples) > 0.1


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """No flip, no erasing, no RandAugment; collects the sizes of what RandAugment was given."""
    sizes: list[tuple[int, int]] = []

    def identity(images: list[Image.Image]) -> list[Image.Image]:
        sizes.extend(image.size for image in images)
        return images

    monkeypatch.setattr(peers, "rand_augment", identity)
    monkeypatch.setattr(random, "random", lambda: 0.99)
    return sizes


def test_finetuning_augments_whole_frames_before_it_crops(
    original: str, log: Log, plain: list[tuple[int, int]]
) -> None:
    crop = [0.999, 0.5, 0.0, 0.0] * 10
    box = peers.FINETUNING.box(HEIGHT, WIDTH, crop)
    (sample,) = peers.decord_finetuning(original, 0.0, [crop])
    assert plain == [(WIDTH, HEIGHT)] * 16
    frames = torch.from_numpy(exact(original, log.batches[0])).permute(3, 0, 1, 2).float()
    part = frames[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
    assert apart(pixels(sample), F.interpolate(part, (224, 224), mode="bilinear")) < 2.5


def test_finetuning_does_not_antialias(
    plain: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "SIZE", 16)
    frames = np.random.default_rng(0).integers(0, 255, (16, 128, 128, 3), dtype=np.uint8)
    sample = peers.finetuning_sample(frames, CROP)
    top, left, height, width = peers.FINETUNING.box(128, 128, CROP)
    part = torch.from_numpy(frames).permute(3, 0, 1, 2)[..., top : top + height, :].float()
    part = part[..., left : left + width]
    for antialias, expected in ((False, True), (True, False)):
        scaled = F.interpolate(part, (16, 16), mode="bilinear", antialias=antialias)
        assert (apart(pixels(sample), scaled) < 0.01) is expected


def test_flip_and_erasing_happen_as_often_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[:, :, 16:] = 255  # right half white
    monkeypatch.setattr(peers, "rand_augment", lambda images: images)
    monkeypatch.setattr(peers, "SIZE", 32)
    whole = peers.Recipe(None, lambda height, width, u: (0, 0, height, width), 0, False)
    monkeypatch.setattr(peers, "FINETUNING", whole)
    random.seed(0)
    flipped, erased = 0, 0
    for _ in range(400):
        clip = pixels(peers.finetuning_sample(frames, CROP)).round()
        erased += not set(clip.unique().tolist()) <= {0.0, 255.0}
        flipped += bool(clip[..., :16].mean() > clip[..., 16:].mean())
    assert 0.4 < flipped / 400 < 0.6
    assert 0.19 < erased / 400 < 0.31


def test_rand_augment_does_the_same_to_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8))
    changed = 0
    for seed in range(40):
        random.seed(seed)
        np.random.seed(seed)
        results = [np.asarray(one) for one in peers.rand_augment([image] * 4)]
        assert all((one == results[0]).all() for one in results)
        assert results[0].shape == (32, 40, 3)
        changed += not (results[0] == np.asarray(image)).all()
    assert changed > 30  # each of four operations takes place half of the time


def test_rand_augment_is_m7_n4_mstd05_inc1(monkeypatch: pytest.MonkeyPatch) -> None:
    """15 increasing operations, strength 7 ± .5, four of them drawn with replacement."""
    drawn, strengths = [], []
    choice, gauss = np.random.choice, random.gauss

    def choose(operations, count, *rest):
        drawn.append((sorted(operation.name for operation in operations), count))
        return choice(operations, count, *rest)

    def spread(mean: float, deviation: float) -> float:
        strengths.append((mean, deviation))
        return gauss(mean, deviation)

    monkeypatch.setattr(np.random, "choice", choose)
    monkeypatch.setattr(random, "gauss", spread)
    monkeypatch.setattr(random, "random", lambda: 0.0)  # every operation takes place
    peers.rand_augment([Image.new("RGB", (32, 32))] * 2)
    ((names, count),) = drawn
    assert (len(names), count) == (15, 4)
    assert {"SolarizeIncreasing", "PosterizeIncreasing", "TranslateXRel"} <= set(names)
    assert strengths == [(7, 0.5)] * 4
    monkeypatch.setattr(random, "random", lambda: 0.51)  # none does: each has a chance of a half
    peers.rand_augment([Image.new("RGB", (32, 32))] * 2)
    assert len(strengths) == 4


def test_erasing_fills_one_box_with_noise_at_all_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ERASE_PROBABILITY", 1.0)
    random.seed(1)
    for _ in range(20):
        clip = peers.random_erase(torch.full((3, 4, 60, 80), 9.0))
        erased = clip != 9.0
        assert (erased == erased[:1, :1]).all()
        rows, columns = erased[0, 0].any(1).nonzero(), erased[0, 0].any(0).nonzero()
        inside = erased[0, 0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert inside.all()
        assert 0.015 < inside.numel() / 4800 < 0.35
        assert clip[:, 0][erased[:, 0]].std() > 0.7
        assert not (clip[:, 0] == clip[:, 1])[erased[:, 0]].any()


# --- evaluation -----------------------------------------------------------------------------------


def test_evaluation_decodes_a_quarter_of_the_video_for_each_view(original: str, log: Log) -> None:
    views = list(peers.decord_evaluation(original))
    assert log.batches == [list(range(0, LENGTH, 4))] * 15
    assert len(log.options) == 15
    assert [view.shape for view in views] == [(3, 16, 224, 224)] * 15
    # Our data set makes the same views in one go, with code that shares only the crop's place.
    ours = contenders.view_dataset(contenders.video_table([original]))[0].views
    assert ours is not None
    for view, other in zip(views, ours, strict=True):
        assert apart(pixels(view), other) < 2.5
    assert apart(pixels(views[0]), ours[3]) > 6  # another segment
    assert apart(pixels(views[0]), ours[1]) > 6  # another crop


def test_a_video_shorter_than_a_clip_repeats_its_last_strided_frame() -> None:
    assert peers.strided_frames(30) == [0, 4, 8, 12, 16, 20, 24, 28] + [28] * 8


# --- other decoders -------------------------------------------------------------------------------


class FakeDecoder:
    """torchcodec's interface over our exact reader: its FFmpeg libraries are rarely installed."""

    options: dict[str, object]

    def __init__(self, path: str, **options: object) -> None:
        FakeDecoder.options = options
        self.path = path

    def __len__(self) -> int:
        return LENGTH

    def get_frames_at(self, indices: list[int]) -> SimpleNamespace:
        return SimpleNamespace(data=torch.from_numpy(exact(self.path, indices)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("recipe", [peers.PRETRAINING, peers.FINETUNING])
@pytest.mark.parametrize("reader", [peers.pyav_clip, peers.torchcodec_clip])
@pytest.mark.parametrize("u", [0.0, 0.5, 0.99])
def test_other_decoders_deliver_our_clip(
    reader: Callable[..., Tensor],
    recipe: peers.Recipe,
    u: float,
    original: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(
        sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=FakeDecoder)
    )
    monkeypatch.setattr(peers, "SIZE", 24)  # so that it matters how pixels are averaged
    clip = reader(original, recipe, u, CROP)
    assert (clip.shape, clip.dtype) == ((3, 16, 24, 24), torch.uint8)
    frames = recipe.frames(LENGTH, 16, 4, u)
    top, left, height, width = recipe.box(HEIGHT, WIDTH, CROP)
    cut = exact(original, frames)[:, top : top + height, left : left + width]
    scaled = F.interpolate(
        torch.from_numpy(cut).permute(0, 3, 1, 2),
        (24, 24),
        mode="bilinear",
        antialias=recipe.antialias,
    )
    assert apart(clip, scaled.transpose(0, 1)) < 0.5
    if reader is peers.torchcodec_clip:
        assert FakeDecoder.options == {"num_ffmpeg_threads": 1}


def test_pyav_stops_at_the_last_frame_wanted(
    original: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    class Container:
        def __init__(self, path: str) -> None:
            self._container = av.open(path)
            self.streams, self.seek = self._container.streams, self._container.seek

        def __enter__(self) -> "Container":
            return self

        def __exit__(self, *error: object) -> None:
            self._container.close()

        def decode(self, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
            for frame in self._container.decode(stream):
                decoded.append(frame.pts)
                yield frame

    monkeypatch.setattr(peers, "av", SimpleNamespace(open=Container, time_base=av.time_base))
    peers.pyav_clip(original, peers.PRETRAINING, 0.5, CROP)
    # Frames 18 to 78: from the key frame at 0 on, and none after.
    assert len(decoded) == 79


def test_pyav_reads_a_file_without_a_count_of_frames(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    path = str(make_video(tmp_path / "v.mkv", n_frames=100))
    clip = peers.pyav_clip(path, peers.PRETRAINING, 0.5, CROP)
    assert clip.shape == (3, 16, 224, 224)


def test_pyav_says_that_frames_are_missing(make_video: Callable[..., Path], tmp_path: Path) -> None:
    """A variable frame rate: frame numbers by time do not exist."""
    path = make_video(tmp_path / "v.mp4", n_frames=30, times=[6 * i for i in range(30)])
    uneven = make_video(
        tmp_path / "u.mp4", n_frames=30, times=[3 * i + 40 * (i > 9) for i in range(30)]
    )
    assert peers.pyav_clip(str(path), peers.PRETRAINING, 0.0, CROP).shape[1] == 16
    with pytest.raises(ValueError, match="lacks frames"):
        peers.pyav_clip(str(uneven), peers.PRETRAINING, 0.0, CROP)


# --- what is missing ------------------------------------------------------------------------------


def test_a_missing_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_ffmpeg.py").write_text("raise RuntimeError('no libavutil\\n' + 'x\\n' * 99)")
    monkeypatch.syspath_prepend(tmp_path)
    assert peers.missing([]) is None
    assert peers.missing(["json", "decord"]) is None
    assert peers.missing(["json", "not_there"]) == "not_there: No module named 'not_there'"
    assert peers.missing(["needs_ffmpeg"]) == "needs_ffmpeg: no libavutil"


def test_decords_errors_count_as_unreadable(tmp_path: Path) -> None:
    assert decord.DECORDError in peers.read_errors()
    (tmp_path / "v.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(peers.read_errors()):
        peers.decord_pretraining(str(tmp_path / "v.mp4"), 0.5, CROP)


def test_without_decord_the_other_errors_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    assert peers.read_errors() == peers.READ_ERRORS
