"""Archives of a few bytes: what a source is, what comes out of it, and what stays on disk."""

import errno
import gzip
import hashlib
import io
import os
import random
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinetics400.data.archive import Contents
from kinetics400.data.sources import ArchiveUnit, Cvdf, Folder, Original, find_source, spooled
from kinetics400.errors import DataError, InputError, StorageError

NAME = "Kinetics-400.tar.gz"
LISTS = ("kinetics400_train_list_videos.txt", "kinetics400_val_list_videos.txt")


def write_archive(path: Path, members: dict[str, bytes], level: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=level) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    (tmp_path / "incoming").mkdir()
    return tmp_path / "incoming"


def take(unit: ArchiveUnit, incoming: Path, skip=(), **options) -> Iterator[Original]:
    defaults = {
        "contents": Contents(),
        "on_list": lambda split, data: None,
        "required_lists": [],
        "progress": lambda n_bytes: None,
    }
    return spooled(unit, folder=incoming, skip=set(skip), **{**defaults, **options})


# --- what a folder or a file is -------------------------------------------------------------------


def test_archive_is_a_file_or_a_folder_with_one_or_with_its_parts(tmp_path: Path) -> None:
    touch(tmp_path / "any.tgz", tmp_path / "whole" / NAME, tmp_path / "whole/videos_train/a.mp4")
    parts = [tmp_path / "split" / f"{NAME}.{n:04d}" for n in range(3)]
    touch(*reversed(parts))
    for path, expected in (
        (tmp_path / "any.tgz", (tmp_path / "any.tgz",)),
        (tmp_path / "whole", (tmp_path / "whole" / NAME,)),  # it outranks what is unpacked
        (tmp_path / "split", tuple(parts)),
    ):
        unit = find_source(path)
        assert isinstance(unit, ArchiveUnit) and unit.has_lists
        assert unit.parts == expected


def test_missing_parts_are_named(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{NAME}.{n:04d}" for n in (0, 3)))
    with pytest.raises(InputError, match=r"2 part\(s\).*\.0001.*\.0002"):
        find_source(tmp_path)


@pytest.mark.parametrize("place", ["", "replacement/", "annotations/"])
def test_cvdf_folder_is_recognised_and_read_in_the_order_of_its_parts(
    tmp_path: Path, place: str
) -> None:
    order = [f"train/part_{n}.tar.gz" for n in range(12)] + ["val/part_0.tar.gz"]
    replacement = f"{place}replacement_for_corrupted_k400.tgz"
    touch(*(tmp_path / name for name in (*reversed(order), replacement)))
    touch(tmp_path / "train/part_x.tar.gz", tmp_path / "train/k400_train_path.txt")
    cvdf = find_source(tmp_path)
    assert isinstance(cvdf, Cvdf)
    units = cvdf.units({})
    assert [str(u.parts[0].relative_to(tmp_path)) for u in units] == [replacement, *order]
    assert len({unit.name for unit in units}) == len(units)  # two are called part_0.tar.gz
    assert all(not unit.has_lists for unit in units)


def test_identity_tells_archives_apart_and_notices_a_new_one(tmp_path: Path) -> None:
    files = [tmp_path / "train/part_0.tar.gz", tmp_path / "val/part_0.tar.gz"]
    touch(*files)
    for file in files:
        os.utime(file, ns=(10**18, 10**18))
    cvdf = find_source(tmp_path)
    assert isinstance(cvdf, Cvdf)
    train, val = cvdf.units({})
    before = train.identity()
    assert before != val.identity()  # same name, size and time
    assert before == train.identity()
    os.utime(files[0], ns=(10**18, 10**18 + 1))
    assert before != train.identity()


def test_missing_cvdf_part_is_named(tmp_path: Path) -> None:
    touch(*(tmp_path / f"train/part_{n}.tar.gz" for n in (0, 1, 4)))
    with pytest.raises(InputError, match=r"2 archive\(s\) missing.*part_2\.tar\.gz.*part_3"):
        find_source(tmp_path)


def test_folder_of_videos_and_nothing_at_all(tmp_path: Path) -> None:
    touch(tmp_path / "flat/deep/a.avi", tmp_path / "empty/notes.txt")
    touch(tmp_path / "ours/videos_train/a.mp4", tmp_path / "ours/train/a.mp4")
    touch(tmp_path / "theirs/train/a.mp4", tmp_path / "theirs/val/a.mp4")
    flat, ours, theirs = (Folder(tmp_path / name) for name in ("flat", "ours", "theirs"))
    for folder in (flat, ours, theirs):
        assert find_source(folder.root) == folder
    assert find_source(tmp_path / "empty") is None
    assert find_source(tmp_path / "absent") is None
    assert flat.split_root("train") == flat.root and not flat.has_splits()
    assert ours.split_root("train") == ours.root / "videos_train"
    assert ours.split_root("val") == ours.root
    assert theirs.split_root("val") == theirs.root / "val" and theirs.has_splits()


# --- taking videos out ----------------------------------------------------------------------------


def test_each_video_comes_in_a_file_of_its_own_under_a_name_of_ours(
    tmp_path: Path, incoming: Path
) -> None:
    members = {
        "Kinetics-400/videos_train/a b.mp4": b"one",
        f"Kinetics-400/{LISTS[0]}": b"a b.mp4 0\n",
        "Kinetics-400/README.md": b"text",
        "Kinetics-400/videos_val/-i.MKV": b"two",
        "Kinetics-400/videos_val/zumba/ü.webm": b"three",
    }
    unit = ArchiveUnit((write_archive(tmp_path / NAME, members),), has_lists=True)
    contents, seen, read = Contents(), [], []
    found = []
    for original in take(
        unit,
        incoming,
        contents=contents,
        on_list=lambda split, data: seen.append((split, data)),
        required_lists=["train"],
        progress=read.append,
    ):
        path = Path(original.path)
        data = path.read_bytes()
        found.append((original.split, original.name, data))
        assert [p.name for p in incoming.iterdir()] == [path.name]  # nothing is read ahead
        assert path.parent == incoming and path.stem.isdecimal()
        assert path.suffix == Path(original.name).suffix.lower()
        assert (original.sha256, original.n_bytes) == (
            hashlib.sha256(data).hexdigest(),
            len(data),
        )
        assert original.archive == unit.name == NAME
        path.unlink()  # as whoever takes it does
    assert found == [
        ("train", "a b.mp4", b"one"),
        ("val", "-i.MKV", b"two"),
        ("val", "zumba/ü.webm", b"three"),
    ]
    assert seen == [("train", b"a b.mp4 0\n")] and contents.ignored == {".md": 1}
    assert read[-1] == unit.n_bytes == (tmp_path / NAME).stat().st_size


def test_required_list_that_is_absent_is_an_error_at_the_end(
    tmp_path: Path, incoming: Path
) -> None:
    path = write_archive(tmp_path / NAME, {"videos_train/a.mp4": b"x"})
    with pytest.raises(InputError, match=LISTS[1]):
        list(take(ArchiveUnit((path,)), incoming, required_lists=["val"]))


def test_memory_stays_bounded_however_large_the_videos_are(tmp_path: Path, incoming: Path) -> None:
    data = random.Random(0).randbytes(1 << 20) * 24
    path = write_archive(tmp_path / NAME, {f"videos_val/{i}.mp4": data for i in range(2)}, level=0)
    del data
    tracemalloc.start()
    try:
        for original in take(ArchiveUnit((path,)), incoming):
            assert original.n_bytes == 24 << 20
            os.unlink(original.path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_video_cut_off_by_the_archives_end_leaves_no_file(tmp_path: Path, incoming: Path) -> None:
    data = random.Random(0).randbytes(200_000)
    path = write_archive(tmp_path / NAME, {"videos_val/a.mp4": data[:9], "videos_val/b.mp4": data})
    path.write_bytes(path.read_bytes()[:-50_000])
    videos = take(ArchiveUnit((path,)), incoming)
    os.unlink(next(videos).path)
    with pytest.raises(DataError, match="truncated"):
        next(videos)
    assert os.listdir(incoming) == []


class SmallDisk(io.FileIO):
    def write(self, data) -> int:
        if self.tell() + len(data) > 2 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_full_disk_while_spooling_leaves_no_file(
    tmp_path: Path, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / NAME, {"videos_val/a.mp4": bytes(3 << 20)})
    monkeypatch.setattr("kinetics400.data.sources.open", SmallDisk, raising=False)
    with pytest.raises(StorageError, match=r"spooling to .*No space left"):
        list(take(ArchiveUnit((path,)), incoming))
    assert os.listdir(incoming) == []


def cvdf_units(root: Path, listed: dict[str, set[str]]) -> list[ArchiveUnit]:
    write_archive(root / "train/part_0.tar.gz", {"./a.mp4": b"bad", "b.mp4": b"b"})
    write_archive(root / "val/part_0.tar.gz", {"k/c.mp4": b"bad", "d.mp4": b"d", "n.txt": b"n"})
    write_archive(
        root / "replacement_for_corrupted_k400.tgz",
        {"r/a.mp4": b"A", "r/c.mp4": b"C", "r/stranger.mp4": b"?"},
    )
    cvdf = find_source(root)
    assert isinstance(cvdf, Cvdf)
    return cvdf.units(listed)


def test_replacements_go_to_the_split_that_lists_them_and_outrank_the_parts(
    tmp_path: Path, incoming: Path
) -> None:
    listed = {"train": {"a.mp4", "b.mp4"}, "val": {"c.mp4", "d.mp4"}}
    found: dict[tuple[str, str], bytes] = {}
    ignored = []
    for unit in cvdf_units(tmp_path / "cvdf", listed):
        contents = Contents()
        for original in take(unit, incoming, skip=found.keys(), contents=contents):
            found[original.split, original.name] = Path(original.path).read_bytes()
            os.unlink(original.path)
        ignored.append(contents.ignored)
    assert found == {
        ("train", "a.mp4"): b"A",
        ("train", "b.mp4"): b"b",
        ("val", "c.mp4"): b"C",
        ("val", "d.mp4"): b"d",
    }
    assert ignored == [{".mp4": 1}, {}, {".txt": 1}]
    assert os.listdir(incoming) == []


@pytest.mark.parametrize(
    "members",
    [{"a/x.mp4": b"1", "b/x.mp4": b"2"}, {"x.mp4": b"1", "X.mp4": b"2"}, {"../x.mp4": b"1"}],
)
def test_cvdf_part_is_trusted_no_more_than_any_archive(
    tmp_path: Path, incoming: Path, members: dict[str, bytes]
) -> None:
    """Folders are dropped, so two videos could fall on one name."""
    path = write_archive(tmp_path / "train/part_0.tar.gz", members)
    cvdf = find_source(tmp_path)
    assert isinstance(cvdf, Cvdf)
    assert path.is_file()
    with pytest.raises(InputError, match="refused"):
        list(take(cvdf.units({})[0], incoming))


def test_source_that_is_no_archive_is_said_so(tmp_path: Path, incoming: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not gzip")
    with pytest.raises(InputError, match="not a gzip"):
        list(take(ArchiveUnit((tmp_path / "a.mp4",)), incoming))
    (tmp_path / "b").write_bytes(gzip.compress(b"text"))
    with pytest.raises(InputError, match="not a tar"):
        list(take(ArchiveUnit((tmp_path / "b",)), incoming))
