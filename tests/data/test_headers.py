"""Reading headers: what FFmpeg refuses is refused, what is fine is not, and nothing hangs."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from kinetics400.data.containers import SUFFIX_DEMUXER
from kinetics400.data.headers import UNKNOWN, Header, probe, read_header

# Only pictures show these.
NEEDS_DECODING = {
    *("unknown_codec", "wrong_checksum", "hole", "no_end", "no_first_key_frame", "moved_index"),
    *("growing_to_huge", "20_flipped_bits", "200_flipped_bits", "2000_flipped_bits"),
    *("200_flipped_bits_hevc", "4_flipped_bits_mpeg4", "200_flipped_bits_mpeg4"),
}


def whole_verdict(path: Path) -> Header:
    """The parser's answer, or FFmpeg's where it passes the question on."""
    header = read_header(str(path))
    return Header(header.n_bytes, 0, **probe(str(path))) if header.open_question else header


def test_damaged_files_are_refused_with_their_reason(bad) -> None:
    header = whole_verdict(bad.path)
    seen = {""} if bad.kind in NEEDS_DECODING else bad.reasons
    assert header.reason in seen, header


def test_oddities_are_not_refused(oddity) -> None:
    assert whole_verdict(oddity.path).reason == ""


def test_frame_counts_are_those_of_ffmpeg(oddity) -> None:
    header = read_header(str(oddity.path))
    if header.n_frames != UNKNOWN:
        with av.open(str(oddity.path)) as container:
            assert header.n_frames == container.streams.video[0].frames


def test_an_mp4_with_an_index_is_never_passed_on(make_video: Callable, tmp_path: Path) -> None:
    header = read_header(str(make_video(tmp_path / "a.mp4", n_frames=40)))
    assert (header.open_question, header.n_frames, header.reason) == (False, 40, "")


def box(kind: bytes, content: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack(">I", 8 + len(content) if size is None else size) + kind + content


def index(*tables: bytes) -> bytes:
    """A moov box with one video track of these tables."""
    handler = box(b"hdlr", bytes(8) + b"vide" + bytes(12))
    return box(
        b"moov", box(b"trak", box(b"mdia", handler + box(b"minf", box(b"stbl", b"".join(tables)))))
    )


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = box(b"trak", content)
    return box(b"moov", content)


START = box(b"ftyp", b"isom" + bytes(4))
GOOD_TABLE = box(b"stsz", struct.pack(">III", 0, 1000, 64))
HOSTILE = {
    "giant_count": (index(box(b"stsz", struct.pack(">III", 0, 0, 0xFFFFFFFF))), "damaged"),
    "giant_chunks": (index(GOOD_TABLE, box(b"stco", struct.pack(">II", 0, 1 << 31))), "damaged"),
    "chunk_beyond": (
        index(GOOD_TABLE, box(b"stco", struct.pack(">III", 0, 1, 1 << 30))),
        "truncated",
    ),
    "64_bits": (box(b"mdat", struct.pack(">Q", 1 << 62), size=1), "truncated"),
    "64_bits_all": (box(b"mdat", b"\xff" * 8, size=1), "truncated"),
    "64_bits_too_small": (box(b"mdat", struct.pack(">Q", 3), size=1), "truncated"),
    "size_of_3": (box(b"mdat", size=3), "truncated"),
    "open_end": (box(b"mdat", bytes(100), size=0), "truncated"),
    "no_track": (box(b"moov"), "no video stream"),
    "no_table": (index(), "damaged"),
    "one_frame": (index(box(b"stsz", struct.pack(">III", 0, 1000, 1))), "too short"),
    "torn_table": (index(box(b"stsz", b"\0\0")), "damaged"),
    "inner_size": (box(b"moov", box(b"trak", bytes(8), size=1 << 20)), "no video stream"),
    "huge_picture": (
        index(
            box(b"stsd", bytes(8) + box(b"avc1", bytes(24) + struct.pack(">HH", 60000, 60000))),
            GOOD_TABLE,
        ),
        "too large",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_are_refused(kind: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[kind]
    path = tmp_path / "a.mp4"
    path.write_bytes(START + content)
    assert read_header(str(path)).reason == reason


@pytest.mark.parametrize(
    "content",
    [nested(5000), box(b"moov", box(b"free") * 100_000), box(b"free") * 100_000],
    ids=["nested", "many_boxes", "many_top_boxes"],
)
def test_endless_headers_are_passed_on(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(START + content)
    assert read_header(str(path)).open_question


def test_a_giant_index_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    with open(path, "wb") as file:  # sparse
        file.write(START + box(b"moov", size=3 << 30))
        file.truncate(len(START) + (3 << 30))
    asked = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda d, n, at: asked.append(n) or pread(d, n, at))
    assert read_header(str(path)).open_question
    assert sum(asked) < 1 << 20


def test_an_index_at_the_end_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(START + box(b"mdat", bytes(300_000)) + index(GOOD_TABLE))
    assert read_header(str(path)).n_frames == 64


def test_an_index_may_reach_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(START + bytes(4) + index(GOOD_TABLE)[4:])
    assert read_header(str(path)).n_frames == 64


def test_a_size_of_64_bits_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    large = box(b"mdat", struct.pack(">Q", 16 + 50) + bytes(50), size=1)
    path.write_bytes(START + large + index(GOOD_TABLE))
    assert read_header(str(path)).n_frames == 64


def test_bytes_behind_the_index_do_no_harm(make_video: Callable, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes() + b"\xff\xff\xff\xffjunk behind the end")
    assert read_header(str(path)).reason == ""


def test_a_web_page_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\n <!DOCTYPE html><title>403</title>")
    assert "web page" in read_header(str(tmp_path / "a.mp4")).detail


def test_a_dangling_link_is_absent_and_said_so(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to(tmp_path / "gone.mp4")
    header = read_header(str(tmp_path / "a.mp4"))
    assert header.reason == "absent" and "link" in header.detail


@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "libx264"), (".avi", "mpeg4")])
def test_cut_matroska_and_avi_are_seen_without_ffmpeg(
    suffix: str, codec: str, make_video: Callable, tmp_path: Path
) -> None:
    path = make_video(tmp_path / f"a{suffix}", codec=codec)
    assert read_header(str(path)).reason == ""
    path.write_bytes(path.read_bytes()[:-100])
    assert read_header(str(path)).reason == "truncated"
    assert suffix in SUFFIX_DEMUXER
