"""Damaged files are refused with their reason, unusual ones are not (the corpus: conftest.py)."""

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from kinetics400.data.containers import sniff
from kinetics400.data.decode import DecodeError, VideoReader
from kinetics400.data.headers import probe
from kinetics400.data.isolation import JobLimits, run_isolated
from kinetics400.data.transcode import store_as_json
from kinetics400.data.verify import Refused, VideoInfo, verify_video

Encode = Callable[..., bytes]

# Files of which a reader that goes on after an error, as FFmpeg's own tools do, shows something.
SHOWN_BY_TOLERANT_READERS = {
    *("20_flipped_bits", "200_flipped_bits", "200_flipped_bits_hevc", "200_flipped_bits_mpeg4"),
    *("hole", "no_end", "cut_out", "wrong_checksum", "one_frame"),
    *("faststart_cut_to_60", "faststart_cut_to_90", "faststart_cut_to_99"),
    *("4_flipped_bits_mpeg4", "no_first_key_frame", "other_document", "cut_late_start"),
    *("cut_without_tags", "growing_to_huge"),
    *("cut_mkv", "cut_avi", "cut_webm", "matroska_as_mp4", "mp4_as_mkv", "mp4_as_avi"),
    *("huge_frames", "raw_stream", "ffconcat"),
}


def frames_despite_errors(path: Path) -> int:
    n_frames = 0
    try:
        with av.open(str(path)) as container:
            for packet in container.demux(container.streams.video[0]):
                try:
                    n_frames += len(packet.decode())
                except av.error.InvalidDataError:
                    continue
    except (av.error.FFmpegError, IndexError, AttributeError):
        pass  # cannot be opened, or no further packets
    return n_frames


def test_bad_file_is_refused_with_its_reason(bad: Any) -> None:
    verdict = verify_video(str(bad.path))
    assert isinstance(verdict, Refused), verdict
    assert verdict.reason in bad.reasons


def test_tolerant_reader_shows_what_is_refused(bad: Any) -> None:
    """The control: without making errors fatal and counting, half of the corpus would pass."""
    if bad.path.is_file():
        assert (frames_despite_errors(bad.path) > 0) == (bad.kind in SHOWN_BY_TOLERANT_READERS)


def test_valid_oddity_passes(oddity: Any) -> None:
    verdict = verify_video(str(oddity.path))
    assert isinstance(verdict, VideoInfo), verdict
    assert (verdict.n_frames, verdict.width, verdict.height, verdict.n_bytes) == (
        oddity.n_frames,
        *oddity.size,
        oddity.path.stat().st_size,
    )
    if oddity.kind in ("plain", "matroska", "fragmented", "portrait", "avi"):
        assert verdict.fps == pytest.approx(30, rel=0.05)


def test_header_that_promises_a_longer_video_passes_when_all_frames_are_there(
    tmp_path: Path, encode: Encode
) -> None:
    data = bytearray(encode(tmp_path / "x.mp4"))
    for box, offset in ((b"mdhd", 20), (b"elst", 12), (b"mvhd", 20), (b"tkhd", 24)):
        at = data.index(box) + offset
        data[at : at + 4] = (2 * int.from_bytes(data[at : at + 4])).to_bytes(4)
    (tmp_path / "a.mp4").write_bytes(data)
    assert isinstance(verify_video(str(tmp_path / "a.mp4")), VideoInfo)


def test_relative_name_that_looks_like_a_protocol_is_a_name(
    tmp_path: Path, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "x.mp4", n_frames=3)
    (tmp_path / "x.mp4").rename(tmp_path / "concat:x.mp4")
    assert isinstance(verify_video("concat:x.mp4"), VideoInfo)


def test_rotation_in_the_header_passes(
    tmp_path: Path, encode: Encode, turned: Callable[..., bytes]
) -> None:
    (tmp_path / "a.mp4").write_bytes(turned(encode(tmp_path / "x.mp4"), 0, 1, -1, 0))
    assert isinstance(verify_video(str(tmp_path / "a.mp4")), VideoInfo)


def test_demuxer_comes_from_the_first_bytes(tmp_path: Path, encode: Encode) -> None:
    for suffix, codec, demuxer in (
        ("mp4", "libx264", "mov"),
        ("mkv", "libx264", "matroska"),
        ("webm", "libvpx", "matroska"),
        ("avi", "mpeg4", "avi"),
    ):
        encode(tmp_path / f"a.{suffix}", n_frames=2, codec=codec)
        assert sniff(str(tmp_path / f"a.{suffix}")) == demuxer


def test_verification_runs_in_a_small_process(tmp_path: Path, encode: Encode) -> None:
    encode(tmp_path / "a.mp4")
    encode(tmp_path / "b.mkv")
    (tmp_path / "b.mkv").rename(tmp_path / "b.mp4")
    jobs = [(str(tmp_path / name), "", None) for name in ("a.mp4", "b.mp4")]
    limits = JobLimits(address_space=1 << 30)
    results = {r.job: r for r in run_isolated(store_as_json, jobs, n_worker=1, limits=limits)}
    assert results[jobs[0]].value["n_frames"] == 60  # type: ignore[index]
    assert results[jobs[1]].value["reason"] == "wrong extension"  # type: ignore[index]


def test_module_needs_no_torch() -> None:
    code = "import sys, kinetics400.data.transcode as t; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


# --- playlists that point into the network --------------------------------------------------------

PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile {url}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
    "hls_key": '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n'
    "#EXTINF:1,\nfile:canary.ts\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
    "<BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{url}\n"
    "m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "asx": '<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
}


@pytest.fixture
def listener() -> Iterator[tuple[int, list[int]]]:
    """A port that somebody listens on, and the connections made to it so far."""
    connections: list[int] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):  # closed: the test is over
                while True:
                    client, (_, port) = server.accept()
                    connections.append(port)
                    client.close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], connections
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
def test_nothing_in_a_video_is_fetched(
    kind: str, suffix: str, listener: tuple[int, list[int]], tmp_path: Path
) -> None:
    """By none of the three that open what strangers made: preprocessing, doctor and loader."""
    port, connections = listener
    path = tmp_path / f"a{suffix}"
    path.write_text(PLAYLISTS[kind].format(url=f"http://127.0.0.1:{port}/x.mp4", port=port))
    verdict = verify_video(str(path))
    assert isinstance(verdict, Refused) and verdict.reason == "not a video"
    assert probe(str(path))["reason"] == "not a video"
    with pytest.raises(DecodeError):
        VideoReader(str(path)).read([0])
    assert connections == []


def test_the_listener_would_notice(listener: tuple[int, list[int]], tmp_path: Path) -> None:
    """The control: a reader that lets FFmpeg choose, and allows what it asks for."""
    port, connections = listener
    (tmp_path / "a.mp4").write_text(f"ffconcat version 1.0\nfile http://127.0.0.1:{port}/x.mp4\n")
    with contextlib.suppress(av.error.FFmpegError):
        allowed = {"protocol_whitelist": "file,http,tcp", "safe": "0"}
        av.open(str(tmp_path / "a.mp4"), options=allowed).close()
    assert len(connections) == 1
