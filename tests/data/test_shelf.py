import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kinetics400.data.shelf import Shelf
from kinetics400.errors import StorageError


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "library/.incoming").mkdir(parents=True)
    return tmp_path / "library"


@pytest.fixture
def shelf(library: Path) -> Iterator[Shelf]:
    shelf = Shelf(library, library / ".incoming")
    yield shelf
    shelf.close()


@pytest.fixture
def stage(library: Path) -> Callable[[bytes], str]:
    """Stage a file; return its name."""

    def make(data: bytes, name: str = "1.mp4") -> str:
        (library / ".incoming" / name).write_bytes(data)
        return name

    return make


def tree(library: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(library)): path.read_bytes()
        for path in sorted(library.rglob("*"))
        if path.is_file()
    }


def test_staged_file_moves_to_its_place(library: Path, shelf: Shelf, stage) -> None:
    assert shelf.place(stage(b"abc"), ("videos_train", "a b", "v.mp4")) == 3
    assert tree(library) == {"videos_train/a b/v.mp4": b"abc"}
    assert (library / "videos_train/a b").stat().st_mode & 0o7777 == 0o755 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_content_is_durable_before_the_name_and_names_after_sync(
    library: Path, shelf: Shelf, stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def logged_fsync(descriptor: int) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        steps.append(f"fsync {os.path.relpath(target, library)}")
        fsync(descriptor)

    def logged_rename(source: str, target: str, **where: int) -> None:
        steps.append(f"rename {source} {target}")
        rename(source, target, **where)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "rename", logged_rename)
    shelf.place(stage(b"x"), ("videos_val", "c", "v.mp4"))
    assert steps == ["fsync .incoming/1.mp4", "rename 1.mp4 v.mp4"]
    steps.clear()
    shelf.sync()
    # Every folder that got a name: the new ones are names in their parents.
    assert sorted(steps) == ["fsync .", "fsync videos_val", "fsync videos_val/c"]
    steps.clear()
    shelf.sync()
    assert steps == []


def test_file_is_replaced_in_one_step(library: Path, shelf: Shelf, stage) -> None:
    shelf.place(stage(b"old"), ("v.mp4",))
    with open(library / "v.mp4", "rb") as reader:
        shelf.place(stage(b"new"), ("v.mp4",))
        assert reader.read() == b"old"  # who reads it keeps what it had
    assert tree(library) == {"v.mp4": b"new"}


def test_library_may_be_a_link_but_nothing_in_it(tmp_path: Path, library: Path, stage) -> None:
    (tmp_path / "link").symlink_to(library)
    (tmp_path / "outside").mkdir()
    (library / "videos_val").symlink_to(tmp_path / "outside")
    shelf = Shelf(tmp_path / "link", library / ".incoming")
    shelf.place(stage(b"x"), ("videos_train", "v.mp4"))
    for parts in (("videos_val", "v.mp4"), ("videos_val", "deep", "v.mp4")):
        with pytest.raises(StorageError, match="storing videos_val/"):
            shelf.place(stage(b"x"), parts)
    shelf.close()
    assert os.listdir(tmp_path / "outside") == []
    assert (library / "videos_train/v.mp4").is_file()


def test_link_at_a_files_name_is_replaced_not_followed(
    tmp_path: Path, library: Path, shelf: Shelf, stage
) -> None:
    (tmp_path / "victim").write_bytes(b"untouched")
    (library / "v.mp4").symlink_to(tmp_path / "victim")
    shelf.place(stage(b"x"), ("v.mp4",))
    assert (tmp_path / "victim").read_bytes() == b"untouched"
    assert not (library / "v.mp4").is_symlink()


def test_staged_link_is_refused(tmp_path: Path, library: Path, shelf: Shelf) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (library / ".incoming/1.mp4").symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError):
        shelf.place("1.mp4", ("v.mp4",))
    assert not (library / "v.mp4").exists()


def test_roll_back_takes_back_all_that_was_placed_and_only_that(
    library: Path, shelf: Shelf, stage
) -> None:
    (library / "videos_train").mkdir()
    for name in ("mine.mp4", "both.mp4"):
        (library / "videos_train" / name).write_bytes(b"before")
    shelf.place(stage(b"new"), ("videos_train", "both.mp4"))
    shelf.place(stage(b"new"), ("videos_train", "c", "a.mp4"))
    shelf.place(stage(b"new"), ("videos_train", "c", "b.mp4"))
    shelf.place(stage(b"new"), ("videos_val", "d", "a.mp4"))
    shelf.roll_back()
    assert tree(library) == {"videos_train/both.mp4": b"new", "videos_train/mine.mp4": b"before"}
    assert sorted(os.listdir(library)) == [".incoming", "videos_train"]
    assert sorted(os.listdir(library / "videos_train")) == ["both.mp4", "mine.mp4"]


def test_what_is_in_the_way_can_move_aside_and_comes_back(
    library: Path, shelf: Shelf, stage
) -> None:
    (library / "videos_train").mkdir()
    before = {"videos_train/v.mp4": b"original"}
    (library / "videos_train/v.mp4").write_bytes(b"original")
    place, aside = ("videos_train", "v.mp4"), ("originals", "videos_train", "v.mp4")
    shelf.place(stage(b"1"), place, aside)
    assert tree(library) == {"/".join(aside): b"original", "/".join(place): b"1"}
    # What lies aside already is no reason to lose anything either.
    shelf.place(stage(b"2"), place, aside)
    assert tree(library)["originals/videos_train/v.mp4~"] == b"1"
    shelf.place(stage(b"3"), ("videos_val", "w.mp4"), ("originals", "videos_val", "w.mp4"))
    shelf.sync()
    shelf.roll_back()
    assert tree(library) == before
    assert sorted(os.listdir(library)) == [".incoming", "videos_train"]


def test_failing_disk_is_named_and_places_nothing(
    library: Path, shelf: Shelf, stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"videos_train/v\.mp4.*No space left.*repeat"):
        shelf.place(stage(b"x"), ("videos_train", "v.mp4"))
    assert tree(library) == {".incoming/1.mp4": b"x"}


def test_no_descriptor_is_left_open(library: Path, stage) -> None:
    before = len(os.listdir("/proc/self/fd"))
    shelf = Shelf(library, library / ".incoming")
    (library / "file").write_bytes(b"")
    for i in range(20):
        shelf.place(stage(b"x"), ("videos_train", f"c{i % 3}", f"{i}.mp4"), ("o", f"{i}.mp4"))
        with pytest.raises(StorageError):
            shelf.place(stage(b"x"), ("file", "v.mp4"))
    shelf.sync()
    shelf.close()
    assert len(os.listdir("/proc/self/fd")) == before
