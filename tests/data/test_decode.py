"""Reading by index equals decoding everything, whatever the encoder did."""

import gc
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from kinetics400.data.decode import DecodeError, VideoReader

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
        ("v.h264", "libx264"),  # no times at all, and cannot be rewound
    ],
)
def test_other_containers(make_video: MakeVideo, tmp_path: Path, name: str, codec: str) -> None:
    options = {"g": "12"} if codec == "libx264" else {}
    check_every_index(make_video(tmp_path / name, n_frames=26, codec=codec, options=options))


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
