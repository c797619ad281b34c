"""Reading by index equals decoding everything, whatever the encoder did and whichever layer."""

import contextlib
import gc
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from kinetics400.data import pyramid
from kinetics400.data.decode import DecodeError, VideoReader
from kinetics400.data.sampling import Box
from kinetics400.data.transcode import EncodeSettings

MakeVideo = Callable[..., Path]

PYRAMID = "keyint=32:min-keyint=32:scenecut=0:bframes=3:b-adapt=0:b-pyramid=strict"
ENCODINGS = {
    "x264's own choice": {},
    "one key frame, many B": {"x264-params": "keyint=250:bframes=8:b-pyramid=normal:b-adapt=0"},
    "no B": {"x264-params": "bframes=0:keyint=16"},
    "only key frames": {"x264-params": "keyint=1"},
    "key frames closer than the B delay": {
        "x264-params": "keyint=3:min-keyint=1:bframes=2:b-adapt=0:b-pyramid=normal:scenecut=0"
    },
    "temporal pyramid": {"x264-params": PYRAMID},
    "open GOP": {"x264-params": "keyint=10:open-gop=1:bframes=3:b-adapt=0"},
    "many references": {"x264-params": "keyint=24:ref=8:bframes=5:weightp=2"},
}


def decode_all(path: Path) -> np.ndarray:
    """(T, H, W, C) by the plainest way there is."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)


def check_every_index(path: Path) -> np.ndarray:
    """Compare each frame read alone, and some groups, with the full decode."""
    whole = decode_all(path)
    groups = [[i] for i in range(len(whole))]
    rng = random.Random(0)
    groups += [rng.choices(range(len(whole)), k=5) for _ in range(5)]  # unsorted, with repeats
    for group in groups:
        with VideoReader(path) as reader:
            assert len(reader) == len(whole)
            read = reader.read(group)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, whole[group], err_msg=f"frames {group}")
    return whole


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_index_equals_a_full_decode(make_video: MakeVideo, tmp_path: Path, name: str) -> None:
    path = make_video(tmp_path / "v.mp4", n_frames=45, options=ENCODINGS[name])
    whole = check_every_index(path)
    assert len({frame.tobytes() for frame in whole}) == 45  # else any frame would do


@pytest.mark.parametrize("fps", [24, 25, "30000/1001", 60])
def test_frame_rates(make_video: MakeVideo, tmp_path: Path, fps: int | str) -> None:
    check_every_index(make_video(tmp_path / "v.mp4", n_frames=30, fps=fps))


def test_uneven_frame_times(make_video: MakeVideo, tmp_path: Path) -> None:
    times = [7 * i + (0, 3, 1)[i % 3] for i in range(30)]
    check_every_index(make_video(tmp_path / "v.mp4", n_frames=30, times=times))


def test_times_that_do_not_start_at_zero(make_video: MakeVideo, tmp_path: Path) -> None:
    times = [500 + 3 * i for i in range(30)]
    check_every_index(make_video(tmp_path / "v.mp4", n_frames=30, times=times))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("v.mkv", "libx264"),
        ("v.webm", "libvpx-vp9"),
        ("v.avi", "mpeg4"),
        ("v.avi", "libx264"),  # B frames, but no presentation times
    ],
)
def test_other_containers(make_video: MakeVideo, tmp_path: Path, name: str, codec: str) -> None:
    options = {"g": "12"} if codec == "libx264" else {}
    check_every_index(make_video(tmp_path / name, n_frames=26, codec=codec, options=options))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("v.mp4", "libx265", "yuv420p10le", {"x265-params": "log-level=none:keyint=10"}),
        ("v.mkv", "libsvtav1", "yuv420p", {"preset": "11", "svtav1-params": "lp=1:keyint=10"}),
        ("v.mp4", "libx264", "yuv444p", {"g": "12"}),
        ("v.mp4", "libx264", "yuvj420p", {"g": "12"}),
    ],
)
def test_other_codings(
    encode: Callable[..., bytes],
    tmp_path: Path,
    name: str,
    codec: str,
    pix_fmt: str,
    options: dict[str, str],
) -> None:
    encode(tmp_path / name, n_frames=26, codec=codec, pix_fmt=pix_fmt, options=options)
    check_every_index(tmp_path / name)


def test_valid_oddity_reads_as_a_full_decode(oddity: Any) -> None:
    whole = decode_all(oddity.path)
    rng = random.Random(0)
    groups = [[0], [len(whole) - 1], *([rng.randrange(len(whole))] for _ in range(5))]
    groups += [rng.choices(range(len(whole)), k=5) for _ in range(3)]
    for group in groups:
        with VideoReader(oddity.path) as reader:
            assert len(reader) == oddity.n_frames
            np.testing.assert_array_equal(reader.read(group), whole[group], err_msg=str(group))


def test_stream_without_a_container_is_refused(make_video: MakeVideo, tmp_path: Path) -> None:
    """The demuxer follows from the first bytes; FFmpeg's guesses could open other files."""
    make_video(tmp_path / "v.h264", n_frames=5)
    assert len(decode_all(tmp_path / "v.h264")) == 5  # FFmpeg takes it
    with pytest.raises(DecodeError, match="is no MP4, Matroska/WebM or AVI"):
        VideoReader(tmp_path / "v.h264")


def test_fragmented_file(make_video: MakeVideo, tmp_path: Path) -> None:
    """No index at the front, as streams recorded live have it."""
    path = make_video(
        tmp_path / "v.mp4",
        n_frames=40,
        options={"x264-params": "keyint=8:bframes=3:b-adapt=0"},
        container_options={"movflags": "frag_keyframe+empty_moov"},
    )
    check_every_index(path)


def test_metadata_that_is_no_text(make_video: MakeVideo, tmp_path: Path) -> None:
    """Such videos pass `data.preprocess`, and play everywhere."""
    path = make_video(tmp_path / "v.mp4", n_frames=5, title="ABCDEFGH")
    sound = path.read_bytes()
    assert sound.count(b"ABCDEFGH") == 1
    path.write_bytes(sound.replace(b"ABCDEFGH", b"\xff\xfe\xc3\x28EFGH"))
    with VideoReader(path) as reader:
        assert len(reader) == 5


def test_single_frame(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", n_frames=1)
    assert check_every_index(path).shape == (1, 48, 64, 3)
    with VideoReader(path) as reader:
        assert reader.read([0] * 16).shape == (16, 48, 64, 3)


def test_repeated_and_unsorted_indices_come_in_the_order_asked(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    path = make_video(tmp_path / "v.mp4", n_frames=40)
    wanted = [39, 3, 3, 17, 0, 39]
    with VideoReader(path) as reader:
        np.testing.assert_array_equal(reader.read(wanted), decode_all(path)[wanted])


def test_a_reader_reads_again_and_backwards(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", n_frames=40, options=ENCODINGS["temporal pyramid"])
    whole = decode_all(path)
    with VideoReader(path) as reader:
        for wanted in ([35, 39], [0, 1], [36], [2, 33], [2, 33]):
            np.testing.assert_array_equal(reader.read(wanted), whole[wanted])


def test_frame_size_is_known_before_decoding(make_video: MakeVideo, tmp_path: Path) -> None:
    with VideoReader(make_video(tmp_path / "v.mp4", n_frames=2, height=90, width=34)) as reader:
        assert (reader.height, reader.width) == (90, 34)
        assert reader.read([1]).shape == (1, 90, 34, 3)


@pytest.mark.parametrize("height", [46, 720])  # colour matrices BT.601 and BT.709, if guessed
@pytest.mark.parametrize("colors", ["", ":colormatrix=bt709", ":fullrange=on"])
def test_the_shared_colour_converter_equals_pyavs_own(
    make_video: MakeVideo, tmp_path: Path, height: int, colors: str
) -> None:
    path = make_video(
        tmp_path / "v.mp4",
        n_frames=3,
        height=height,
        width=50,
        options={"x264-params": f"keyint=2{colors}"},
    )
    with VideoReader(path) as reader:
        np.testing.assert_array_equal(reader.read([0, 1, 2]), decode_all(path))


# --- temporal pyramids ----------------------------------------------------------------------------

CLIP = 6  # frames
SPECIAL_LENGTHS = [2, 3, 4, 5, 8, 9, 31, 32, 33, 34, 63, 65, 97]


def read_from_every_start(path: Path, n_frames: int) -> None:
    """Clips of each stride from each start on its layer's grid, against a plain decode."""
    whole = decode_all(path)
    assert len(whole) == n_frames
    with VideoReader(path) as reader:
        assert reader.is_pyramid and len(reader) == n_frames
        for stride in (4, 2, 1):
            for start in range(0, n_frames, stride):
                clip = list(range(start, n_frames, stride))[:CLIP]
                np.testing.assert_array_equal(
                    reader.read(clip), whole[clip], err_msg=f"stride {stride} from {start}"
                )


@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 32)])
@pytest.mark.parametrize("fps", [24, 25, 28, "30000/1001", 30])
def test_layers_equal_a_full_decode_from_every_start(
    make_pyramid: MakeVideo, tmp_path: Path, fps: int | str, height: int, width: int
) -> None:
    for n_frames in SPECIAL_LENGTHS:
        path = tmp_path / f"{n_frames}.mp4"
        make_pyramid(path, n_frames=n_frames, fps=fps, height=height, width=width)
        read_from_every_start(path, n_frames)
        with VideoReader(path) as reader:
            assert reader.fps == pytest.approx(float(Fraction(fps)))


def test_layers_equal_a_full_decode_for_every_length(
    make_pyramid: MakeVideo, tmp_path: Path
) -> None:
    for n_frames in range(2, 41):
        path = make_pyramid(tmp_path / f"{n_frames}.mp4", n_frames=n_frames, height=32, width=32)
        read_from_every_start(path, n_frames)


@pytest.mark.parametrize(
    "settings",
    [
        {"keyframe_interval": 4},
        {"keyframe_interval": 8},
        {"keyframe_interval": 64},
        {"preset": "ultrafast"},
        {"preset": "slower"},  # many reference frames
        {"crf": 1},
        {"crf": 51},
    ],
)
def test_layers_equal_a_full_decode_for_all_settings(
    make_pyramid: MakeVideo, tmp_path: Path, settings: dict[str, Any]
) -> None:
    encoding = EncodeSettings(**settings)
    path = make_pyramid(tmp_path / "v.mp4", encoding, n_frames=75, height=48, width=64)
    read_from_every_start(path, 75)


def test_any_frames_of_a_pyramid(make_pyramid: MakeVideo, tmp_path: Path) -> None:
    """Sparse, dense, unsorted, repeated; from one reader, so that none disturbs the next."""
    path = make_pyramid(tmp_path / "v.mp4", n_frames=203, height=32, width=32)
    whole = decode_all(path)
    rng = random.Random(0)
    with VideoReader(path) as reader:
        for _ in range(150):
            step = rng.choice([1, 2, 4])
            frames = rng.choices(range(0, 203, step), k=rng.choice([1, 2, 5, 16]))
            np.testing.assert_array_equal(reader.read(frames), whole[frames], err_msg=str(frames))


class Watched(VideoReader):
    """Keeps the numbers of the packets sent to the decoder and of the frames it gave."""

    def __init__(self, path: Path) -> None:
        self.sent: list[int] = []
        self.decoded: list[int] = []
        super().__init__(path)

    def _group_packets(self, *arguments: Any) -> Iterator[Any]:
        for packet in super()._group_packets(*arguments):
            self.sent.append(self._number_of(packet))
            yield packet

    def _pyramid_frames(self, wanted: set[int]) -> Iterator[Any]:
        for number, frame in super()._pyramid_frames(wanted):
            self.decoded.append(number)
            yield number, frame


@pytest.mark.parametrize("layer", [4, 2, 1])
@pytest.mark.parametrize("start", [0, 8, 28, 40, 64])
def test_a_layer_decodes_its_own_frames_only(
    make_pyramid: MakeVideo, tmp_path: Path, layer: int, start: int
) -> None:
    path = make_pyramid(tmp_path / "v.mp4", n_frames=203, height=32, width=32)
    clip = list(range(start, start + 16 * layer, layer))
    with Watched(path) as reader:
        reader.read(clip)
    group = start // 32 * 32
    # From the key frame on; the irregular tails 29, 30, 31 that end groups come along at 2 and 1.
    expected = [n for n in range(group, clip[-1] + 1) if n % layer == 0]
    tails = {n for n in range(group, clip[-1] + 1) if n % 32 in (29, 31)} if layer == 2 else set()
    assert set(expected) <= set(reader.decoded) <= set(expected) | tails
    assert sorted(reader.decoded) == reader.decoded
    if layer == 4:  # of B in the middle the headers are looked at; nothing of the others
        assert {n % 32 for n in reader.sent} <= set(range(0, 32, 2)) - {30}
    # Nothing is sent after the last frame wanted but what it refers to.
    assert max(reader.sent) <= clip[-1] + (0 if layer == 4 else 3)


def test_groups_without_a_wanted_frame_are_not_decoded(
    make_pyramid: MakeVideo, tmp_path: Path
) -> None:
    path = make_pyramid(tmp_path / "v.mp4", n_frames=203, height=32, width=32)
    with Watched(path) as reader:
        reader.read([4, 100, 196])
    assert {number // 32 for number in reader.sent} == {0, 3, 6}


def test_of_a_group_nothing_is_decoded_after_the_last_frame_wanted(
    make_pyramid: MakeVideo, tmp_path: Path
) -> None:
    path = make_pyramid(tmp_path / "v.mp4", n_frames=80, height=32, width=32)
    with Watched(path) as reader:
        reader.read([4, 40])
    assert reader.sent == [0, 4, 32, 36, 34, 40]


# --- boxes ----------------------------------------------------------------------------------------


def random_boxes(height: int, width: int) -> list[Box]:
    rng = random.Random(0)
    boxes = [
        Box(0, 0, height, width),
        Box(0, 0, 1, 1),
        Box(height - 1, width - 1, 1, 1),
        Box(1, 1, height - 1, width - 1),
        Box(0, 1, height, 1),
        Box(height - 3, width - 3, 3, 3),
    ]
    for _ in range(60):
        high, wide = rng.randint(1, height), rng.randint(1, width)
        boxes.append(Box(rng.randint(0, height - high), rng.randint(0, width - wide), high, wide))
    return boxes


@pytest.mark.parametrize(
    ("height", "width", "pix_fmt", "codec"),
    [
        (46, 70, "yuv420p", "libx264"),
        (64, 34, "yuv420p", "libx264"),
        (45, 71, "yuv444p", "libx264"),
        (46, 70, "yuvj420p", "libx264"),
        (45, 70, "yuv420p", "mpeg4"),
        (46, 71, "yuv420p", "mpeg4"),
    ],
)
def test_a_box_equals_a_cut_of_the_whole(
    encode: Callable[..., bytes],
    tmp_path: Path,
    height: int,
    width: int,
    pix_fmt: str,
    codec: str,
) -> None:
    path = tmp_path / "v.mp4"
    encode(path, n_frames=3, size=(width, height), pix_fmt=pix_fmt, codec=codec)
    with VideoReader(path) as reader:
        whole = decode_all(path)[[2, 0]]
        for box in random_boxes(height, width):
            top, left, high, wide = box
            expected = whole[:, top : top + high, left : left + wide]
            np.testing.assert_array_equal(reader.read([2, 0], box), expected, err_msg=str(box))


@pytest.mark.parametrize("colors", ["", ":colormatrix=bt709", ":fullrange=on"])
def test_a_box_of_any_colours(make_video: MakeVideo, tmp_path: Path, colors: str) -> None:
    options = {"x264-params": f"keyint=4{colors}"}
    path = make_video(tmp_path / "v.mp4", n_frames=2, height=80, width=60, options=options)
    whole = decode_all(path)
    with VideoReader(path) as reader:
        np.testing.assert_array_equal(
            reader.read([0, 1], Box(11, 7, 33, 40)), whole[:, 11:44, 7:47]
        )


def test_a_box_of_a_pyramid(make_pyramid: MakeVideo, tmp_path: Path) -> None:
    path = make_pyramid(tmp_path / "v.mp4", n_frames=40, height=62, width=50)
    whole = decode_all(path)
    with VideoReader(path) as reader:
        for i, (top, left, high, wide) in enumerate(random_boxes(62, 50)):
            clip = list(range(i % 5 * 4, i % 5 * 4 + 8, 4))
            expected = whole[clip, top : top + high, left : left + wide]
            np.testing.assert_array_equal(reader.read(clip, Box(top, left, high, wide)), expected)


# --- what only says that it is a pyramid ----------------------------------------------------------

PRETENDERS = {
    "x264's own choice": {},
    "no B": {"x264-params": "bframes=0:keyint=32:min-keyint=32"},
    "two B": {"x264-params": "bframes=2:b-adapt=0:keyint=32:min-keyint=32:scenecut=0"},
    "adaptive B": {"x264-params": "bframes=3:b-adapt=2:b-pyramid=strict:keyint=32"},
    "B flat": {"x264-params": "bframes=3:b-adapt=0:b-pyramid=none:keyint=32:scenecut=0"},
    "other key frames": {"x264-params": PYRAMID.replace("32", "24")},
    "no key frames": {"x264-params": PYRAMID.replace("32", "250")},
    "open groups": {"x264-params": PYRAMID + ":open-gop=1"},
    "a pyramid": {"x264-params": PYRAMID},
}


@pytest.mark.parametrize("name", PRETENDERS)
def test_a_false_mark_never_gives_wrong_frames(
    make_video: MakeVideo, tmp_path: Path, name: str
) -> None:
    """Tools that re-encode copy the comment; only P that refer to B, unseen here, would pass."""
    make_video(tmp_path / "x.mp4", n_frames=75, options=PRETENDERS[name])
    path = marked_copy(tmp_path / "x.mp4", tmp_path / "v.mp4")
    whole = decode_all(path)
    refused = 0
    for stride in (4, 2, 1):
        for start in range(0, 75, stride):
            clip = list(range(start, 75, stride))[:CLIP]
            try:
                with VideoReader(path) as reader:
                    assert reader.is_pyramid
                    frames = reader.read(clip)
            except DecodeError:
                refused += 1
            else:
                np.testing.assert_array_equal(frames, whole[clip], err_msg=f"{stride} {start}")
    assert (refused == 0) == (name == "a pyramid")


def marked_copy(source: Path, target: Path, stop: int | None = None, start: int = 0) -> Path:
    """The same packets with a pyramid's comment, or some of them."""
    with av.open(str(source)) as given, av.open(str(target), "w") as container:
        container.metadata["comment"] = pyramid.mark(32)
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in list(given.demux(given.streams.video[0]))[start:stop]:
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return target


def test_what_is_no_pyramid_says_so(make_video: MakeVideo, tmp_path: Path) -> None:
    make_video(tmp_path / "x.mp4", n_frames=75)
    path = marked_copy(tmp_path / "x.mp4", tmp_path / "v.mp4")
    with (
        VideoReader(path) as reader,
        pytest.raises(DecodeError, match="is not the temporal pyramid that it says it is"),
    ):
        reader.read(range(0, 64, 4))


@pytest.mark.parametrize("stop", [32, 40, 41, 45, 60])
def test_a_pyramid_cut_short_without_encoding(
    make_pyramid: MakeVideo, tmp_path: Path, stop: int
) -> None:
    """The comment stays, and the last group may be irregular: refused or exact."""
    make_pyramid(tmp_path / "x.mp4", n_frames=75)
    path = marked_copy(tmp_path / "x.mp4", tmp_path / "v.mp4", stop)
    whole = decode_all(path)
    for start in range(len(whole)):
        with contextlib.suppress(DecodeError), VideoReader(path) as reader:
            np.testing.assert_array_equal(reader.read([start]), whole[[start]])
    with VideoReader(path) as reader:
        clip = list(range(0, 32, 4))
        np.testing.assert_array_equal(reader.read(clip), whole[clip])


def test_a_pyramid_whose_front_is_cut_off_reads_as_an_original(
    make_pyramid: MakeVideo, tmp_path: Path
) -> None:
    """Its frames' times no longer are their numbers."""
    make_pyramid(tmp_path / "x.mp4", n_frames=75)
    path = marked_copy(tmp_path / "x.mp4", tmp_path / "v.mp4", start=32)
    with av.open(str(path)) as container:
        assert container.streams.video[0].start_time > 0
    whole = decode_all(path)
    with VideoReader(path) as reader:
        assert not reader.is_pyramid and len(reader) == len(whole) == 43
        for clip in (range(0, 43, 4), [42], [1, 33]):
            np.testing.assert_array_equal(reader.read(clip), whole[list(clip)])


@pytest.mark.parametrize("comment", ["holiday", pyramid.mark(6), pyramid.mark(32) + "!"])
def test_other_comments_mean_nothing(
    make_pyramid: MakeVideo, tmp_path: Path, comment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pyramid(tmp_path / "x.mp4", n_frames=40)
    monkeypatch.setattr(pyramid, "mark", lambda interval: comment)
    path = marked_copy(tmp_path / "x.mp4", tmp_path / "v.mp4")
    with VideoReader(path) as reader:
        assert not reader.is_pyramid
        np.testing.assert_array_equal(reader.read([1, 39]), decode_all(path)[[1, 39]])


@pytest.mark.parametrize("share", [0.5, 0.8, 0.99])
def test_truncated_pyramid(make_pyramid: MakeVideo, tmp_path: Path, share: float) -> None:
    """Its header comes first and promises all frames: those that are there read exactly."""
    path = make_pyramid(tmp_path / "v.mp4", n_frames=97)
    whole = decode_all(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DecodeError), VideoReader(path) as reader:
        reader.read([96])
    with pytest.raises(DecodeError), VideoReader(path) as reader:
        reader.read(range(0, 97, 4))
    with VideoReader(path) as reader:
        np.testing.assert_array_equal(reader.read([0, 4, 8]), whole[[0, 4, 8]])


def test_damaged_pyramid(make_pyramid: MakeVideo, tmp_path: Path) -> None:
    """Verified files break on bad disks only; there FFmpeg would fill the holes with grey."""
    path = make_pyramid(tmp_path / "v.mp4", n_frames=64)
    sound = path.read_bytes()
    start = sound.index(b"mdat") + 4
    refused_by_default = 0
    refused = Counter[int]()
    for seed in range(12):
        rng, damaged = random.Random(seed), bytearray(sound)
        for _ in range(5):
            damaged[rng.randrange(start, len(sound))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            decode_all(path)
        except av.error.FFmpegError:
            refused_by_default += 1
        for stride in (4, 2, 1):
            try:
                with VideoReader(path) as reader:
                    reader.read(range(0, 64, stride))
            except DecodeError:
                refused[stride] += 1
    assert min(refused[stride] for stride in (4, 2, 1)) >= refused_by_default + 3


# --- what cannot be read --------------------------------------------------------------------------


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r"absent\.mp4.*No such file"):
        VideoReader(tmp_path / "absent.mp4")


@pytest.mark.parametrize(
    "content", [b"", b"not a video\n" * 100, b"\0" * 5000, bytes(range(256)) * 20]
)
def test_not_a_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.mp4"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"notes\.mp4"):
        VideoReader(path)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(DecodeError):
        VideoReader(tmp_path)


def test_sound_without_pictures(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DecodeError, match="no video stream"):
        VideoReader(path)


def test_truncated_file(make_video: MakeVideo, tmp_path: Path) -> None:
    """The index at its end is cut off."""
    path = make_video(tmp_path / "v.mp4")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DecodeError, match=r"v\.mp4"):
        VideoReader(path)


def test_missing_pictures(make_video: MakeVideo, tmp_path: Path) -> None:
    """The index promises frames whose bytes are gone; those before the hole still read."""
    path = make_video(
        tmp_path / "v.mp4",
        options={"x264-params": "keyint=8:bframes=0"},
        container_options={"movflags": "faststart"},
    )
    whole = decode_all(path)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    with pytest.raises(DecodeError, match=r"v\.mp4"), VideoReader(path) as reader:
        reader.read([0, 47])
    with VideoReader(path) as reader:
        if len(reader) == 48:
            np.testing.assert_array_equal(reader.read([0, 1]), whole[:2])


def test_frames_that_change_their_size(growing: Path) -> None:
    with VideoReader(growing) as reader:
        assert reader.read([3, 9]).shape == (2, 48, 64, 3)
        with pytest.raises(DecodeError, match=r"growing\.webm' changes its frame size"):
            reader.read([9, 10])
        with pytest.raises(DecodeError, match=r"growing\.webm' changes its frame size"):
            reader.read([12])


def test_unknown_coding(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", n_frames=5)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(DecodeError, match=r"v\.mp4"):
        VideoReader(path)


def test_random_damage_is_a_decode_error_or_nothing(make_video: MakeVideo, tmp_path: Path) -> None:
    """No other exception, whichever bytes are hit; a loader's worker survives."""
    path = make_video(tmp_path / "v.mp4", n_frames=20)
    sound = path.read_bytes()
    errors = 0
    for seed in range(150):
        rng = random.Random(seed)
        damaged = bytearray(sound)
        for _ in range(rng.choice([1, 5, 40])):
            # Half of the hits go to the headers at the end.
            least = rng.choice([0, len(damaged) - 1200])
            damaged[rng.randrange(least, len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            with VideoReader(path) as reader:
                reader.read([0, len(reader) // 2, len(reader) - 1])
        except DecodeError:
            errors += 1
    assert errors > 10


def test_index_beyond_the_end(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", n_frames=20)
    with VideoReader(path) as reader, pytest.raises(DecodeError, match=r"lacks frames \[20\]"):
        reader.read([0, 20])


def test_closing_gives_the_file_back(make_video: MakeVideo, tmp_path: Path) -> None:
    """A worker reads hundreds of thousands of files; each must be closed, the damaged ones too."""
    path = make_video(tmp_path / "v.mp4", n_frames=5)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(path.read_bytes()[:-200])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with VideoReader(path) as reader:
            reader.read([0])
        with pytest.raises(DecodeError):
            VideoReader(damaged)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_reader_from_before_a_fork_can_be_freed_in_the_child(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    """Colour conversion with threads hung here: the child joined threads that it did not have."""
    path = make_video(tmp_path / "a.mp4", n_frames=8, height=64, width=64)
    reader = VideoReader(path)
    reader.read([0, 3])
    child = os.fork()
    if child == 0:
        del reader
        gc.collect()
        os._exit(0)
    deadline = time.monotonic() + 10
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended[0] == child, "the child hangs"
