"""Archives are crafted here, member by member; most are a few hundred bytes."""

import contextlib
import gzip
import io
import os
import random
import tarfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from kinetics400.data.archive import Contents, Limits, read_archive
from kinetics400.data.shelf import Shelf
from kinetics400.data.stream import find_archive
from kinetics400.errors import DataError, InputError, StorageError

NAME = "Kinetics-400.tar.gz"
TOP = "Kinetics-400/"
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def make_tar(members: list[Member], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if data else None)
    return buffer.getvalue()


def video(name: str, n_bytes: int = 3000) -> Member:
    return member(f"{TOP}{name}", random.Random(name).randbytes(n_bytes))


HONEST = [
    member("Kinetics-400", type=tarfile.DIRTYPE),
    video("videos_train/a.mp4"),
    video("videos_train/class b/ü.mkv"),
    member(f"{TOP}kinetics400_train_list_videos.txt", b"a.mp4 0\n"),
    video("videos_val/-c.webm"),
    member(f"{TOP}README.md", b"text"),
    member(f"{TOP}videos_train/._a.mp4", b"macOS"),
    video("videos_val/d.avi", 200_000),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "out" / ".staging").mkdir(parents=True)
    return tmp_path


def do_unpack(place: Path, compressed: bytes | list[bytes], **options: object) -> Contents:
    """Spool every video and put it on the shelf, as `preprocess` does, but for the encoding."""
    for old in place.glob(NAME + "*"):
        old.unlink()
    if isinstance(compressed, bytes):
        (place / NAME).write_bytes(compressed)
    else:
        for number, part in enumerate(compressed):
            (place / f"{NAME}.{number:04d}").write_bytes(part)
    contents = Contents()
    spool = place / "out/.staging/spool"
    with closing(Shelf(place / "out", spool.parent)) as shelf:
        try:
            for parts, content in read_archive(find_archive(place), contents, **options):  # type: ignore[arg-type]
                with open(spool, "wb") as file:
                    file.writelines(content.chunks())
                shelf.place(spool.name, parts)
        except InputError:
            shelf.roll_back()
            raise
        finally:
            spool.unlink(missing_ok=True)
        shelf.sync()
    return contents


def tree(place: Path) -> dict[str, bytes]:
    """Every file below `place` but the archive; nothing may appear outside of out/."""
    return {
        str(file.relative_to(place)): file.read_bytes() if file.is_file() else b"special"
        for file in sorted(place.rglob("*"))
        if not file.name.startswith(NAME) and not (file.is_dir() and not file.is_symlink())
    }


EXPECTED = {
    "out/videos_train/a.mp4": HONEST[1][1],
    "out/videos_train/class b/ü.mkv": HONEST[2][1],
    "out/videos_val/-c.webm": HONEST[4][1],
    "out/videos_val/d.avi": HONEST[7][1],
}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("n_parts", [1, 2, 7])
def test_whole_and_split_archives_unpack_alike(place: Path, format: int, n_parts: int) -> None:
    data = gzip.compress(make_tar(HONEST, format))
    step = len(data) // n_parts + 1
    seen = []
    result = do_unpack(
        place,
        data if n_parts == 1 else [data[i : i + step] for i in range(0, len(data), step)],
        on_list=lambda split, content: seen.append((split, content)),
    )
    assert tree(place) == EXPECTED
    assert result.ignored == {".md": 1, ".mp4": 1}
    assert seen == [("train", b"a.mp4 0\n")] and result.lists == {"train": b"a.mp4 0\n"}
    mode = (place / "out/videos_val/d.avi").stat().st_mode
    assert mode & 0o7111 == 0  # neither executable nor setuid


def test_missing_part_is_named_before_anything_is_written(place: Path) -> None:
    for number in (0, 1, 3):
        (place / f"{NAME}.{number:04d}").write_bytes(b"x")
    with pytest.raises(InputError, match=r"Kinetics-400\.tar\.gz\.0002"):
        find_archive(place)


def test_owner_mode_and_time_of_members_are_ignored(place: Path) -> None:
    odd = member(f"{TOP}videos_val/a.mp4", b"v", mode=0o6777, uid=0, gid=0, mtime=0)
    do_unpack(place, gzip.compress(make_tar([odd])))
    status = (place / "out/videos_val/a.mp4").stat()
    assert status.st_mode & 0o7022 == 0 and status.st_mtime > 1e9


def pax(name: str, **headers: str) -> Member:
    return member(name, b"data", pax_headers=headers)


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc"}
HOSTILE: dict[str, list[Member]] = {
    "dotdot": [member(f"{TOP}../../evil.mp4", b"x")],
    "dotdot_inside": [member(f"{TOP}videos_train/../videos_val/x.mp4", b"x")],
    "dotdot_folder": [member("..", type=tarfile.DIRTYPE)],
    "absolute": [member("/tmp/evil.mp4", b"x")],
    "absolute_pax": [pax("a.mp4", path="/tmp/evil.mp4")],
    "symlink": [member(f"{TOP}videos_train/l.mp4", **LINK)],
    "symlink_folder": [member(f"{TOP}videos_val", **LINK), video("videos_val/x.mp4")],
    "symlink_unlisted_kind": [member(f"{TOP}notes.txt", **LINK)],
    "hardlink": [member(f"{TOP}x.mp4", type=tarfile.LNKTYPE, linkname="../../secret")],
    "fifo": [member(f"{TOP}videos_train/f.mp4", type=tarfile.FIFOTYPE)],
    "char_device": [member("d.mp4", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "block_device": [member("d.mp4", type=tarfile.BLKTYPE)],
    "sparse": [member(f"{TOP}videos_val/s.mp4", type=tarfile.CONTTYPE)],
    "unknown_type": [member(f"{TOP}videos_val/s.mp4", type=b"Q")],
    "pax_sparse": [
        member(
            f"{TOP}videos_val/s.mp4",
            b"x" * 10,
            pax_headers={
                "GNU.sparse.size": "1000000000",
                "GNU.sparse.map": "0,10",
                "GNU.sparse.major": "0",
                "GNU.sparse.minor": "1",
            },
        )
    ],
    "nul_name": [pax("a.mp4", path=f"{TOP}videos_val/a\0b.mp4")],
    "newline_name": [member(f"{TOP}videos_val/a\nb.mp4", b"x")],
    "escape_name": [member(f"{TOP}videos_val/a\x1b[2Jb.mp4", b"x")],
    "backslash_name": [member(f"{TOP}videos_val\\..\\b.mp4", b"x")],
    "latin1_name": [member(f"{TOP}videos_val/\udcff.mp4", b"x")],
    "long_name": [member(f"{TOP}videos_val/{'a' * 252}.mp4", b"x")],
    "deep": [member(f"{TOP}videos_val/a/b/c.mp4", b"x")],
    "duplicate": [video("videos_val/x.mp4"), video("videos_val/x.mp4")],
    "duplicate_by_dot": [video("videos_val/x.mp4"), member("./videos_val/x.mp4", b"y")],
    "duplicate_by_unicode": [video("videos_val/\u00e9.mp4"), video("videos_val/e\u0301.mp4")],
    "case_clash": [video("videos_val/x.mp4"), video("videos_val/X.mp4")],
    "case_clash_folder": [video("videos_val/b/x.mp4"), video("videos_val/B/y.mp4")],
    "file_and_folder": [video("videos_val/x.mp4"), video("videos_val/x.mp4/y.mp4")],
    "folder_and_file": [video("videos_val/x.mp4/y.mp4"), video("videos_val/x.mp4")],
    "endless_pax": [member("a.mp4", b"x", pax_headers={"comment": "x" * (20 << 20)})],
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("position", [0, len(HONEST)])
def test_hostile_member_is_refused_and_nothing_stays(place: Path, kind: str, position: int) -> None:
    # setuid, link targets and the like are for real: what counts is that nothing appears.
    (place / "secret").write_text("secret")
    before = tree(place)
    members = [*HONEST[:position], *HOSTILE[kind], *HONEST[position:]]
    data = gzip.compress(make_tar(members, tarfile.PAX_FORMAT), compresslevel=1)
    start = time.monotonic()
    with pytest.raises(InputError):
        do_unpack(place, data, limits=Limits(growth=1e9))
    assert time.monotonic() - start < 5
    assert tree(place) == before
    assert sorted(os.listdir(place / "out")) == [".staging"]
    assert not Path("/tmp/evil.mp4").exists()


def test_link_planted_on_disk_is_not_followed(place: Path) -> None:
    (place / "outside").mkdir()
    (place / "out/videos_train").symlink_to(place / "outside")
    with pytest.raises(StorageError, match="videos_train"):
        do_unpack(place, gzip.compress(make_tar(HONEST)))
    assert os.listdir(place / "outside") == []


def test_link_at_a_files_name_is_replaced_not_followed(place: Path) -> None:
    (place / "victim").write_text("untouched")
    (place / "out/videos_train").mkdir()
    (place / "out/videos_train/a.mp4").symlink_to(place / "victim")
    do_unpack(place, gzip.compress(make_tar(HONEST)))
    assert (place / "victim").read_text() == "untouched"
    assert tree(place)["out/videos_train/a.mp4"] == HONEST[1][1]


def raw_header(**fields: bytes) -> bytes:
    """A ustar header with fields replaced byte by byte and the checksum made right."""
    header = bytearray(tarfile.TarInfo(f"{TOP}videos_val/n.mp4").tobuf(tarfile.USTAR_FORMAT))
    offsets = {"size": 124, "typeflag": 156}
    for field, value in fields.items():
        header[offsets[field] : offsets[field] + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


@pytest.mark.parametrize("typeflag", [b"0", b"x", b"L", b"5", b"K", b"g"])
def test_negative_size_is_refused_at_once(place: Path, typeflag: bytes) -> None:
    """The endless loop of CVE-2025-8194."""
    negative = raw_header(size=b"\xff" * 11 + b"\x00", typeflag=typeflag)
    data = gzip.compress(make_tar(HONEST)[:-1024].rstrip(b"\0") + bytes(512) * 3 + negative * 3)
    start = time.monotonic()
    with pytest.raises((InputError, DataError)):
        do_unpack(place, gzip.compress(negative * 3 + bytes(1024)))
    with pytest.raises((InputError, DataError)):
        do_unpack(place, data)
    assert time.monotonic() - start < 5


def test_limits_hold(place: Path) -> None:
    bomb = gzip.compress(make_tar([member(f"{TOP}videos_val/b.mp4", bytes(80 << 20))]), 1)
    assert len(bomb) < 1 << 20
    many = gzip.compress(make_tar([member(f"m{i}", b"") for i in range(400)]))
    for data, limits in (
        (bomb, Limits()),  # inflates far beyond its size
        (bomb, Limits(growth=1e9, file_bytes=1 << 20)),
        (many, Limits(members=300)),
    ):
        with pytest.raises(InputError):
            do_unpack(place, data, limits=limits)
        assert tree(place) == {}


def test_bad_list_stops_early_and_is_rolled_back(place: Path) -> None:
    def refuse(split: str, data: bytes) -> None:
        raise InputError("bad list")

    with pytest.raises(InputError, match="bad list"):
        do_unpack(place, gzip.compress(make_tar(HONEST)), on_list=refuse)
    assert tree(place) == {}


def test_required_list_that_is_absent_is_named(place: Path) -> None:
    with pytest.raises(InputError, match="kinetics400_val_list_videos"):
        do_unpack(place, gzip.compress(make_tar(HONEST)), required_lists=["train", "val"])
    assert tree(place) == {}


def test_roll_back_spares_what_was_there_before(place: Path) -> None:
    (place / "out/videos_train").mkdir()
    (place / "out/videos_train/a.mp4").write_bytes(HONEST[1][1])
    (place / "out/videos_train/mine.mp4").write_bytes(b"mine")
    before = tree(place)
    with pytest.raises(InputError):
        do_unpack(place, gzip.compress(make_tar([*HONEST, member("/x", b"")])))
    assert tree(place) == before


WITHOUT_END = make_tar(HONEST)
WITHOUT_END = WITHOUT_END[: -(-len(WITHOUT_END.rstrip(b"\0")) // 512) * 512]
GOOD = gzip.compress(make_tar(HONEST))


def flipped(data: bytes, position: int) -> bytes:
    damaged = bytearray(data)
    damaged[position] ^= 0x10
    return bytes(damaged)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD[:-4], "truncated"),
        (GOOD[: len(GOOD) // 2], "truncated"),
        (GOOD[:20], "truncated"),
        (b"", "truncated"),
        (flipped(GOOD, len(GOOD) - 6), "damaged"),  # the CRC itself
        (flipped(GOOD, len(GOOD) // 2), "damaged"),
        (GOOD + b"junk", "not gzip follows"),
        (gzip.compress(make_tar(HONEST) + b"more"), "follows the end of the tar"),
        (gzip.compress(make_tar(HONEST) + make_tar(HONEST)), "follows the end of the tar"),
        (gzip.compress(make_tar(HONEST)[:150_000]), "incomplete"),
        (gzip.compress(make_tar(HONEST).rstrip(b"\0")), "incomplete|no end|unexpected end"),
        (gzip.compress(WITHOUT_END), "no end"),
        (gzip.compress(flipped(make_tar(HONEST), 4097)), "header is|follows"),
    ],
    ids=range(13),  # the bytes hold the time of day, and make no names
)
def test_damage_is_reported_with_its_place_and_finished_files_stay(
    place: Path, data: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        do_unpack(place, data)
    assert "near byte" in str(error.value)
    files = tree(place)
    # A flipped bit in data that gzip stores as it is shows only at the CRC, when it is on disk.
    assert {f: len(data) for f, data in files.items()}.items() <= {
        f: len(data) for f, data in EXPECTED.items()
    }.items()
    if len(data) > len(GOOD) // 2 and "header" not in message:
        assert "out/videos_train/a.mp4" in files
    do_unpack(place, GOOD)
    assert tree(place) == EXPECTED


@pytest.mark.parametrize("data", [b"<html>not found</html>", make_tar(HONEST)])
def test_what_is_no_gzip_is_wrong_input(place: Path, data: bytes) -> None:
    with pytest.raises(InputError, match="not a gzip"):
        do_unpack(place, data)


def test_gzip_of_something_else_is_wrong_input(place: Path) -> None:
    with pytest.raises(InputError, match="not a tar"):
        do_unpack(place, gzip.compress(b"just text " * 100))


def test_joined_gzip_members_and_zero_padding_are_fine(place: Path) -> None:
    data = make_tar(HONEST)
    do_unpack(place, gzip.compress(data[:7000]) + gzip.compress(data[7000:]) + bytes(2000))
    assert tree(place) == EXPECTED


def test_full_disk_leaves_no_partial_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        do_unpack(place, GOOD)
    monkeypatch.undo()
    files = tree(place)
    assert files.items() <= EXPECTED.items() and len(files) == 2
    do_unpack(place, GOOD)
    assert tree(place) == EXPECTED


def test_random_damage_never_escapes_as_another_error(place: Path) -> None:
    tar = bytearray(make_tar(HONEST))
    rng = random.Random(0)
    headers = [i for i in range(0, len(tar), 512) if tar[i + 257 : i + 262] == b"ustar"]
    for _ in range(150):
        damaged = bytearray(tar)
        start = rng.choice(headers)
        for _ in range(rng.randint(1, 6)):
            damaged[start + rng.randrange(512)] = rng.randrange(256)
        damaged[start + 148 : start + 156] = b" " * 8
        damaged[start + 148 : start + 156] = b"%06o\0 " % sum(damaged[start : start + 512])
        with contextlib.suppress(InputError, DataError):
            do_unpack(place, gzip.compress(bytes(damaged), 1))
        outside = [name for name in tree(place) if not name.startswith("out/videos_")]
        assert outside == []
