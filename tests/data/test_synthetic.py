"""The embedded motion dataset as an archive."""

import io
import os
import re
import tarfile
from fractions import Fraction

import av
import numpy as np
import pytest

from kinetics400.data.motion import MOTION_CLASSES, draw_scene, render_video
from kinetics400.data.synthetic import encode_video, write_archive
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
