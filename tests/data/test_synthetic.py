"""The embedded motion dataset: what it writes, and that one frame says nothing about the class."""

import io
import os
import re
import tarfile
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from kinetics400.data.synthetic import (
    MOTION_CLASSES,
    draw_scene,
    encode_video,
    render_mask,
    render_video,
    trajectory,
    write_archive,
)
from kinetics400.errors import InputError, StorageError

N_CLASS = len(MOTION_CLASSES)


def label_of(name: str) -> int:
    return MOTION_CLASSES.index(name)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "new folder" / "Kinetics-400.tar.gz"
    write_archive(path, n_train_per_class=2, n_val_per_class=1, seed=3, n_worker=0)
    return path


@pytest.fixture(scope="module")
def members(archive):
    with tarfile.open(archive) as tar:
        return {m.name: tar.extractfile(m).read() if m.isfile() else None for m in tar}


def test_archive_has_the_layout_of_kinetics400(members):
    names = set(members)
    assert {n for n in names if members[n] is None} == {
        "Kinetics-400",
        "Kinetics-400/videos_train",
        "Kinetics-400/videos_val",
    }
    for split, n_per_class in (("train", 2), ("val", 1)):
        lines = members[f"Kinetics-400/kinetics400_{split}_list_videos.txt"].decode().splitlines()
        fields = [re.fullmatch(r"([A-Za-z0-9_-]{11}\.mp4) (\d+)", line).groups() for line in lines]
        files = {n for n in names if n.startswith(f"Kinetics-400/videos_{split}/")}
        assert files == {f"Kinetics-400/videos_{split}/{name}" for name, _ in fields}
        labels = [int(label) for _, label in fields]
        assert sorted(labels) == sorted(list(range(N_CLASS)) * n_per_class)
        assert labels != sorted(labels)
        assert any(name.startswith("-") for name, _ in fields)
    assert len({n.lower() for n in names}) == len(names) == 3 + 2 + 3 * N_CLASS


def test_archive_is_the_same_bytes_with_one_worker_and_with_two(archive, tmp_path):
    for n_worker in (1, 2):
        other = tmp_path / f"{n_worker}.tar.gz"
        write_archive(other, n_train_per_class=2, n_val_per_class=1, seed=3, n_worker=n_worker)
        assert other.read_bytes() == archive.read_bytes()


def test_another_seed_gives_other_names_and_other_videos(members, tmp_path):
    path = tmp_path / "a.tar.gz"
    write_archive(path, n_train_per_class=1, n_val_per_class=1, seed=4)
    with tarfile.open(path) as tar:
        other = {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".mp4")}
    assert not set(other) & set(members)
    assert not set(other.values()) & set(members.values())


def test_members_carry_no_time_owner_or_host(archive):
    assert archive.read_bytes()[4:8] == bytes(4)  # mtime in the gzip header, RFC 1952
    with tarfile.open(archive) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            assert member.mode == (0o755 if member.isdir() else 0o644)


def test_every_video_decodes_to_its_frames_and_some_are_too_short_for_a_clip(members):
    lengths = []
    for name, content in members.items():
        if not name.endswith(".mp4"):
            continue
        with av.open(io.BytesIO(content)) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(video=0))
            assert stream.codec_context.name == "h264"
            assert len(frames) == stream.frames
            assert float(len(frames) / stream.average_rate) == pytest.approx(
                float(stream.duration * stream.time_base), rel=0.05
            )
            assert [f.key_frame for f in frames[:3]] == [True, False, False]
        lengths.append(len(frames))
    assert len(lengths) == 3 * N_CLASS
    short = [n for n in lengths if n < 64]
    assert 2 <= len(short) <= 3 and min(short) >= 16
    assert min(n for n in lengths if n >= 64) > 65 and max(lengths) <= 120


def test_sizes_rates_and_durations_vary_like_kinetics():
    scenes = [draw_scene(0, (5, i)) for i in range(400)]
    wide = np.array([s.width / s.height for s in scenes])
    assert 0.7 < np.mean(wide > 1.2) < 0.86 and 0.08 < np.mean(wide < 0.8) < 0.23
    assert {s.fps for s in scenes} == {Fraction(24), Fraction(25), Fraction(30000, 1001), 30}
    assert all(s.width % 2 == s.height % 2 == 0 for s in scenes)
    assert {min(s.width, s.height) for s in scenes} == {64, 72, 80}
    seconds = [s.n_frames / s.fps for s in scenes]
    assert min(seconds) < 2.9 and max(seconds) > 3.8


def test_pixels_survive_the_codec():
    scene = draw_scene(0, (6,))
    drawn, file = render_video(scene), io.BytesIO()
    encode_video(drawn, file, scene.fps)
    file.seek(0)
    with av.open(file) as container:
        decoded = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert decoded.shape == drawn.shape
    error = (decoded.mean(-1) - drawn.mean(-1)) ** 2  # luma: chroma is subsampled
    assert 10 * np.log10(255**2 / error.mean()) > 35


def test_encoding_again_gives_the_same_bytes():
    """With sides that are no multiples of 16 x264 varied from call to call (see encode_video)."""
    scenes = (draw_scene(0, (16, i), short=True) for i in range(40))
    scene = next(s for s in scenes if s.height % 16 or s.height == 80)
    drawn, encoded = render_video(scene), set()
    for i in range(6):
        noise = np.full(10**6 + i, i, np.uint8)  # moves what memory holds between the calls
        file = io.BytesIO()
        encode_video(drawn, file, scene.fps)
        encoded.add(file.getvalue())
        del noise
    assert len(encoded) == 1


def test_first_frame_is_the_same_picture_distribution_whatever_the_class():
    """With one key, only the motion differs: background, object, and length are the same."""
    for i in range(2):
        scenes = [draw_scene(label, (7, i), short=True) for label in range(N_CLASS)]
        frames = [render_video(s)[0] for s in scenes]
        for frame in frames:
            np.testing.assert_array_equal(frame, frames[0])
        assert len({s.n_frames for s in scenes}) == 1


@pytest.mark.parametrize("label", range(N_CLASS), ids=MOTION_CLASSES)
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_position_and_size_are_uniform_at_any_time_in_every_class(label, at):
    """Kolmogorov-Smirnov against the uniform distribution, n = 400: 1.95 / sqrt(n) is p = 0.001."""
    values = []
    for i in range(400):
        scene = draw_scene(label, (8, i))
        centres, diameters = trajectory(scene)
        t = round(at * (scene.n_frames - 1))
        values.append((*centres[t], np.log(diameters[t] / 0.25) / np.log(0.55 / 0.25)))
    expected = (np.arange(400) + 0.5) / 400
    for column in np.sort(np.array(values), axis=0).T:
        assert np.abs(column - expected).max() < 1.95 / 20


def test_drawn_masks_and_colours_do_not_depend_on_the_class():
    """Brute force over pixels: per class, of frames at random times, each video another scene."""
    n = 100
    rng = np.random.default_rng(0)
    statistics = np.zeros((N_CLASS, n, 6))
    for label in range(N_CLASS):
        for i in range(n):
            # Two frames, the second of them after 0 to 4 s: much less to draw than the video.
            rate = Fraction(1000, int(rng.integers(1, 4000)))
            scene = replace(draw_scene(label, (9, label, i)), n_frames=2, fps=rate)
            opacity, image = render_mask(scene)[0][1], render_video(scene)[1]
            side = min(opacity.shape)
            square = opacity[:side, :side]  # one period in both directions
            halves = square[: side // 2].mean(), square[:, : side // 2].mean()
            statistics[label, i] = (square.mean(), *halves, *image.mean((0, 1)))
    means, errors = statistics.mean(1), statistics.std(1) / np.sqrt(n)
    z = (means - means.mean(0)) / np.sqrt((errors**2).mean(0))
    assert np.abs(z).max() < 4  # 72 numbers: one in 200 runs by chance, and the seed is fixed


def test_mask_area_is_that_of_the_disc_of_the_diameter():
    for i in range(12):
        scene = draw_scene(label_of("growing"), (10, i))
        side = min(scene.width, scene.height)
        area = render_mask(scene)[0][:, :side, :side].mean((1, 2))
        np.testing.assert_allclose(area, np.pi / 4 * trajectory(scene)[1] ** 2, rtol=0.03)


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("moving right", 1, 0),
        ("moving left", -1, 0),
        ("moving up", 0, -1),
        ("moving down", 0, 1),
        ("moving up and right", 1, -1),
        ("moving down and left", -1, 1),
        ("moving up and left", -1, -1),
        ("moving down and right", 1, 1),
    ],
)
def test_the_object_moves_where_the_name_says(name, x, y):
    """The displacement between two drawn frames, by circular correlation of their masks."""
    for i in range(4):
        opacity = render_mask(draw_scene(label_of(name), (11, i)))[0]
        side = min(opacity.shape[1:])
        first, later = (np.fft.fft2(opacity[t, :side, :side]) for t in (0, 12))
        peak = np.fft.ifft2(later * first.conj()).real
        shift = np.unravel_index(peak.argmax(), peak.shape)
        down, right = ((s + side // 2) % side - side // 2 for s in shift)
        assert (np.sign(right), np.sign(down)) == (x, y)


def test_growing_grows_and_falls_back():
    steps = np.diff(trajectory(draw_scene(label_of("growing"), (13,)))[1])
    assert (steps > 0).mean() > 0.95 and (steps[steps < 0] < -0.25).all()


@pytest.mark.parametrize("label", range(0, N_CLASS, 2), ids=MOTION_CLASSES[::2])
def test_opposite_classes_are_time_reversals(label):
    """The forward motion read backwards is the opposite class's motion from another start."""
    for i in range(3):
        forward = trajectory(draw_scene(label, (14, i)))
        opposite = trajectory(draw_scene(label + 1, (14, i)))
        for a, b, period in ((forward[0], opposite[0], 1), *_log_sizes(forward, opposite)):
            there = np.diff(a[::-1], axis=0)
            here = np.diff(b, axis=0)
            difference = (there - here[: len(there)] + period / 2) % period - period / 2
            np.testing.assert_allclose(difference, 0, atol=1e-6)


def _log_sizes(forward, opposite):
    yield np.log(forward[1]), np.log(opposite[1]), np.log(0.55 / 0.25)


def test_video_is_a_function_of_label_and_key():
    a, b = (render_video(draw_scene(2, (15, 1), short=True)) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert a.dtype == np.uint8 and a.ndim == 4 and len(a) < 64
    assert (
        render_video(draw_scene(2, (15, 2), short=True)).shape != a.shape
        or (render_video(draw_scene(2, (15, 2), short=True)) != a).any()
    )


def test_progress_counts_every_video(tmp_path):
    seen = []
    write_archive(
        tmp_path / "a.tar.gz",
        n_train_per_class=1,
        n_val_per_class=1,
        on_video=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(i, 2 * N_CLASS) for i in range(1, 2 * N_CLASS + 1)]


def test_an_interrupted_archive_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "Kinetics-400.tar.gz"
    path.write_bytes(b"old")

    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_archive(path, n_train_per_class=1, n_val_per_class=1, on_video=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_archive(tmp_path / "a.tar.gz", n_train_per_class=1, n_val_per_class=1)
    assert list(tmp_path.iterdir()) == []


def test_counts_out_of_range_are_all_named_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match=r"n_train_per_class .*; n_val_per_class .*; seed .*-1"):
        write_archive(tmp_path / "a.tar.gz", n_train_per_class=0, n_val_per_class=0, seed=-1)
    with pytest.raises(InputError, match="label"):
        draw_scene(N_CLASS, (0,))
    with pytest.raises(InputError, match="even"):
        encode_video(np.zeros((2, 63, 64, 3), np.uint8), io.BytesIO(), Fraction(24))
    assert list(tmp_path.iterdir()) == []
