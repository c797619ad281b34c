import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from kinetics400.bench import store as store_module
from kinetics400.bench.store import (
    WARM_UP,
    Encoding,
    Job,
    bare_loop,
    encode,
    luma_psnr,
    measure_store,
    seconds_per_video,
)
from kinetics400.data.decode import VideoReader
from kinetics400.data.isolation import Result
from kinetics400.data.transcode import EncodeSettings, transcode_video
from kinetics400.errors import StorageError

SETTINGS = EncodeSettings(short_side=32, crf=20)


def test_the_store_is_made_in_isolation_and_timed_both_ways(
    original: str, make_video: Callable[..., Path], tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"no video at all" * 100)
    other = str(make_video(tmp_path / "other.mp4", n_frames=30))
    folder = tmp_path / "store"
    folder.mkdir()
    store = measure_store([original, str(damaged), other], folder, SETTINGS, repeats=2)
    assert store.originals == [original, other]
    assert list(store.refused) == [str(damaged)]
    assert "not a video" in store.refused[str(damaged)]
    for path, length in zip(store.pyramids, (100, 30), strict=True):
        with VideoReader(path) as reader:
            assert reader.is_pyramid
            assert (len(reader), reader.height) == (length, 32)
    timed = {(one.video, one.repeat, one.kind) for one in store.encodings}
    assert timed == {(v, r, k) for v in (0, 1) for r in (0, 1) for k in ("bare", "product")}
    assert all(0 < one.cpu_seconds < 30 for one in store.encodings)


def _answers(problem: dict[str, str] | None = None):
    """Stand for the isolated process: answers at once, with what each job would give."""
    seen: list[Job] = []

    def run(function, jobs, *, n_worker: int):
        assert (function, n_worker) == (encode, 1)
        for job in jobs:
            seen.append(job)
            answer = problem if problem and job.source == "bad" else {"n_frames": 1}
            yield Result(job, {"seconds": 2.0, "cpu_seconds": 1.0, "answer": answer})

    return seen, run


def test_kinds_take_turns_and_the_first_encoding_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, run = _answers()
    monkeypatch.setattr(store_module, "run_isolated", run)
    store = measure_store(["a", "b"], tmp_path, SETTINGS, repeats=2)
    assert (seen[0].repeat, seen[0].kind) == (WARM_UP, "product")
    kinds = "".join(job.kind[0] for job in seen[1:])
    assert kinds == "pbpb" + "bpbp"
    assert [one.repeat for one in store.encodings] == [0] * 4 + [1] * 4


def test_a_refused_video_is_not_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, run = _answers({"reason": "truncated", "detail": "at 60 %"})
    monkeypatch.setattr(store_module, "run_isolated", run)
    store = measure_store(["a", "bad", "c"], tmp_path, SETTINGS, repeats=3)
    assert store.refused == {"bad": "truncated: at 60 %"}
    assert sum(job.source == "bad" for job in seen) == 1
    assert store.originals == ["a", "c"]
    assert {one.video for one in store.encodings} == {0, 1}


def test_a_full_disk_ends_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = _answers({"storage_error": "no space left"})
    monkeypatch.setattr(store_module, "run_isolated", run)
    with pytest.raises(StorageError, match="no space left"):
        measure_store(["bad"], tmp_path, SETTINGS, repeats=1)


def test_a_full_disk_is_reported_by_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(store_module, "transcode_video", full)
    answer = encode(Job(0, 0, "product", "a", "b", SETTINGS))["answer"]
    assert answer == {"storage_error": "no space left"}


def _packets(path: str) -> list[tuple[int, int, bool]]:
    """(time, size, key frame) of every packet."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        return [(packet.pts, packet.size, packet.is_keyframe) for packet in packets]


def test_the_bare_loop_does_the_same_encoding(original: str, tmp_path: Path) -> None:
    """Same frames, same types in the same places, and, where nothing is scaled, the same bytes."""
    bare, product = str(tmp_path / "bare.mp4"), str(tmp_path / "product.mp4")
    assert bare_loop(original, bare, EncodeSettings()) == {"n_frames": 100}
    transcode_video(original, product, EncodeSettings())
    assert _packets(bare) == _packets(product)
    bare_loop(original, bare, SETTINGS)
    with av.open(bare) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (40, 32)


def test_the_bare_loop_says_that_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"no video at all" * 100)
    answer = bare_loop(str(tmp_path / "v.mp4"), str(tmp_path / "out.mp4"), SETTINGS)
    assert answer["reason"] == "the bare loop failed"


def test_seconds_are_the_median_over_repeats_of_the_mean_over_videos() -> None:
    times = {0: (1.0, 3.0), 1: (10.0, 12.0), 2: (4.0, 2.0)}
    encodings = [
        Encoding(video, repeat, kind, 99.0, seconds * (2 if kind == "bare" else 1))
        for repeat, both in times.items()
        for video, seconds in enumerate(both)
        for kind in ("bare", "product")
    ]
    assert seconds_per_video(encodings, "product") == 3.0  # of 2, 11, 3
    assert seconds_per_video(encodings, "bare") == 6.0


def _lossless(path: Path, lumas: list[int], size: tuple[int, int] = (32, 16)) -> str:
    """Flat grey frames, every pixel of the luma as given."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for luma in lumas:
            planes = np.full((height * 3 // 2, width), 128, np.uint8)
            planes[:height] = luma
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())
    return str(path)


def test_psnr_is_the_mean_over_frames(tmp_path: Path) -> None:
    """5 levels off are 34.15 dB, 10 are 28.13; a frame without error counts 100."""
    before = _lossless(tmp_path / "a.mp4", [100, 100, 100])
    assert luma_psnr(before, _lossless(tmp_path / "b.mp4", [105] * 3)) == pytest.approx(34.1514)
    mixed = luma_psnr(before, _lossless(tmp_path / "c.mp4", [105, 110, 100]))
    assert mixed == pytest.approx((34.1514 + 28.1308 + 100) / 3, abs=1e-3)


def test_psnr_scales_the_original_to_the_stored_size(tmp_path: Path) -> None:
    large = _lossless(tmp_path / "a.mp4", [100] * 2, size=(64, 32))
    assert luma_psnr(large, _lossless(tmp_path / "b.mp4", [105] * 2)) == pytest.approx(34.1514)


def test_psnr_scales_as_the_store_does(original: str, tmp_path: Path) -> None:
    """Next to nothing is lost at crf 1; a bilinear reference would be as far as 30 dB away."""
    stored = str(tmp_path / "stored.mp4")
    transcode_video(original, stored, EncodeSettings(short_side=32, crf=1))
    decibels = luma_psnr(original, stored)
    assert decibels is not None
    assert decibels > 45


def test_psnr_means_nothing_where_pixels_were_turned(original: str, tmp_path: Path) -> None:
    """The header says upside down (ISO 14496-12, tkhd), and the store holds it upright."""
    data = bytearray(Path(original).read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(
        ">9i", -(1 << 16), 0, 0, 0, -(1 << 16), 0, 0, 0, 1 << 30
    )
    turned, stored = tmp_path / "turned.mp4", str(tmp_path / "stored.mp4")
    turned.write_bytes(data)
    transcode_video(str(turned), stored, SETTINGS)
    assert luma_psnr(str(turned), stored) is None


def test_psnr_needs_frames_that_correspond(tmp_path: Path) -> None:
    before = _lossless(tmp_path / "a.mp4", [100, 100])
    assert luma_psnr(before, _lossless(tmp_path / "b.mp4", [100] * 3)) is None
    assert luma_psnr(_lossless(tmp_path / "c.mp4", [100] * 3), before) is None
