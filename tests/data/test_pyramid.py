"""The pyramid's arithmetic against what x264 writes, a dependency graph, and slow definitions."""

import random
from pathlib import Path

import av
import numpy as np
import pytest

from kinetics400.data import pyramid

LENGTHS = range(1, 37)


def write(path: Path, n_frames: int, interval: int) -> None:
    """Noise with the pyramid's options, and nothing else of ours."""
    images = np.random.default_rng(0).integers(0, 255, (n_frames, 16, 16), dtype=np.uint8)
    options = pyramid.encoder_options(30, "veryfast", interval)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="gray")))
        container.mux(stream.encode())


def packets(path: Path) -> list[tuple[int, bool, bool]]:
    """(frame number, key frame, other frames refer to it) in the order of the file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        tick = 1 / (stream.time_base * stream.average_rate)
        return [
            (int(packet.pts / tick), packet.is_keyframe, is_reference(bytes(packet)))
            for packet in container.demux(stream)
            if packet.pts is not None
        ]


def is_reference(sample: bytes) -> bool:
    """nal_ref_idc of the slices of an H.264 sample in MP4 (ISO 14496-15)."""
    flags, at = set(), 0
    while at < len(sample):
        kind = sample[at + 4] & 31
        if kind in (1, 5):
            flags.add(sample[at + 4] >> 5 & 3 > 0)
        at += 4 + int.from_bytes(sample[at : at + 4])
    (flag,) = flags
    return flag


def types(path: Path) -> str:
    """Letters I, P, B of the frames as shown."""
    with av.open(str(path)) as container:
        return "".join(
            av.video.frame.PictureType(f.pict_type).name for f in container.decode(video=0)
        )


# --- order of packets -----------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [4, 8, 32, 36])
def test_decoding_order_is_what_x264_writes(tmp_path: Path, interval: int) -> None:
    """Every group length from 1 to 36; shorter intervals make several groups of it."""
    for n_frames in LENGTHS:
        write(tmp_path / "v.mp4", n_frames, interval)
        groups = [min(interval, n_frames - start) for start in range(0, n_frames, interval)]
        expected = [
            interval * group + number
            for group, length in enumerate(groups)
            for number in pyramid.decoding_order(length)
        ]
        written = packets(tmp_path / "v.mp4")
        assert [number for number, _, _ in written] == expected, n_frames
        keys = [number for number, is_key, _ in written if is_key]
        assert keys == list(range(0, n_frames, interval)), n_frames


@pytest.mark.parametrize("length", LENGTHS)
def test_decoding_order_holds_each_frame_once(length: int) -> None:
    assert sorted(pyramid.decoding_order(length)) == list(range(length))


# --- what a layer needs ---------------------------------------------------------------------------


def references(path: Path) -> dict[int, set[int]]:
    """Frame → the frames it may refer to, from the types and marks that x264 wrote.

    P: every I and P before it, though x264 takes the last one only. B: the I or P on either side,
    and each B between them that others refer to and that was decoded before.
    """
    letters = types(path)
    anchors = [number for number, letter in enumerate(letters) if letter in "IP"]
    may: dict[int, set[int]] = {}
    decoded: list[int] = []
    for number, _, is_referred_to in packets(path):
        if letters[number] == "B":
            left = max(anchor for anchor in anchors if anchor < number)
            right = min(anchor for anchor in anchors if anchor > number)
            may[number] = {left, right} | {n for n in decoded if left < n < right}
        else:
            may[number] = {anchor for anchor in anchors if anchor < number}
        if is_referred_to:
            decoded.append(number)
    return may


def closure(frames: set[int], may: dict[int, set[int]]) -> set[int]:
    found: set[int] = set()
    left = list(frames)
    while left:
        number = left.pop()
        if number not in found:
            found.add(number)
            left += may[number]
    return found


@pytest.mark.parametrize("length", LENGTHS)
def test_a_layer_gets_all_that_its_frames_refer_to(tmp_path: Path, length: int) -> None:
    write(tmp_path / "v.mp4", length, 36)
    may = references(tmp_path / "v.mp4")
    for layer in pyramid.LAYERS:
        needed = {n for n in range(length) if pyramid.is_needed(n, length, layer)}
        least = closure(set(range(0, length, layer)), may)
        assert least <= needed
        # Nothing beyond it, but the referenced B frames whose headers layer 4 looks at.
        counted = {n for n in needed if n % 4 == 2} if layer == 4 else set()
        assert needed - counted == least - counted


def test_layer_4_refers_to_no_b_frame(tmp_path: Path) -> None:
    """So that a decoder may skip all of them."""
    for length in LENGTHS:
        write(tmp_path / "v.mp4", length, 36)
        letters = types(tmp_path / "v.mp4")
        least = closure(set(range(0, length, 4)), references(tmp_path / "v.mp4"))
        assert {letters[number] for number in least} <= {"I", "P"}


def test_layer_4_looks_at_the_headers_of_b_before_a_later_frame() -> None:
    """They count in the numbers of reference frames: without them P would seem to miss one."""
    assert [n for n in range(32) if pyramid.is_needed(n, 32, 4)] == list(range(0, 30, 2))


# --- grids ----------------------------------------------------------------------------------------


def test_layer_of_frames_is_the_widest_that_holds_them_all() -> None:
    rng = random.Random(0)
    for _ in range(500):
        step = rng.choice([1, 2, 3, 4, 6, 8, 12])
        frames = {step * rng.randrange(50) for _ in range(rng.randrange(1, 6))}
        holds = [layer for layer in (1, 2, 4) if all(n in range(0, 1000, layer) for n in frames)]
        assert pyramid.layer_of(frames) == max(holds)


def test_common_grid_holds_every_clip_that_starts_on_it() -> None:
    for stride in range(1, 65):
        holds = [
            layer
            for layer in (1, 2, 4)
            if all(
                (start + stride * i) in range(0, 5000, layer)
                for start in range(0, 40, layer)
                for i in range(16)
            )
        ]
        assert pyramid.common_grid(stride) == max(holds)


def test_near_grid_is_the_widest_not_coarser_than_the_spacing() -> None:
    for hundredths in range(1, 1000):
        spacing = hundredths / 100
        fits = [layer for layer in (2, 4) if layer <= spacing]
        assert pyramid.near_grid(spacing) == max(fits, default=1)


# --- mark -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [4, 32, 36, 252])
def test_a_mark_tells_its_interval(interval: int) -> None:
    assert pyramid.marked_interval(pyramid.mark(interval)) == interval


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "holiday",
        pyramid.mark(0),
        pyramid.mark(6),  # P frames would not keep to the grid
        pyramid.mark(32) + " ",
        "a " + pyramid.mark(32),
        pyramid.mark(32).replace("32", "-32"),
        pyramid.mark(32).replace("32", "x"),
    ],
)
def test_other_comments_are_no_mark(comment: str) -> None:
    assert pyramid.marked_interval(comment) is None
