"""The children are played here: what they answer is the test's to choose."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from kinetics400.data import intake as module
from kinetics400.data.housekeeping import Housekeeping
from kinetics400.data.intake import Intake, describe, stored_name
from kinetics400.data.isolation import Result
from kinetics400.data.pyramid import mark
from kinetics400.data.shelf import Shelf
from kinetics400.data.sources import Original
from kinetics400.data.transcode import EncodeSettings
from kinetics400.errors import DataError, StorageError

SETTINGS = EncodeSettings()
GOOD = {"n_frames": 9, "fps": 30.0, "width": 64, "height": 48, "kind": "pyramid"}


class Children:
    """Answers for each job, by the source's content; what is not said is stored."""

    def __init__(self) -> None:
        self.answers: dict[bytes, list[object]] = {}
        self.rounds: list[tuple[int, list[bytes]]] = []
        self.limits: list[object] = []

    def __call__(self, function, jobs, *, n_worker: int, limits) -> Iterator[Result]:
        taken: list[bytes] = []
        self.rounds.append((n_worker, taken))
        self.limits.append(limits)
        for job in jobs:
            source, target, settings = job
            data = Path(source).read_bytes()
            taken.append(data)
            queue = self.answers.get(data, [])
            answer = queue.pop(0) if queue else None
            if isinstance(answer, str):  # a failure of the process itself
                Path(target).write_bytes(b"half of " + data)
                yield Result(job, None, answer, "why")
                continue
            if answer is None and settings is not None:
                Path(target).write_bytes(b"pyramid of " + data)
            kind = "original" if settings is None else "pyramid"
            n_bytes = os.path.getsize(source if settings is None else target) if not answer else 0
            yield Result(job, answer or {**GOOD, "kind": kind, "n_bytes": n_bytes})


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    children = Children()
    monkeypatch.setattr(module, "run_isolated", children)
    return children


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Housekeeping]:
    keeper = Housekeeping(tmp_path / "library")
    with keeper.held(), keeper.working():
        yield keeper


@pytest.fixture
def shelf(keeper: Housekeeping) -> Iterator[Shelf]:
    shelf = Shelf(keeper.library, keeper.incoming)
    yield shelf
    shelf.close()


def new_intake(keeper: Housekeeping, settings: EncodeSettings | None = SETTINGS) -> Intake:
    return Intake(keeper, settings, n_worker=3, timeout=7.5)


Spool = Callable[..., Original]


@pytest.fixture
def spool(keeper: Housekeeping) -> Spool:
    """`spool(name, data)`: an original out of an archive."""

    def make(name: str, data: bytes | None = None, split: str = "train") -> Original:
        data = name.encode() if data is None else data
        path = keeper.incoming / f"{len(list(keeper.incoming.iterdir()))}_{hash(name)}.mp4"
        path.write_bytes(data)
        return Original(
            split, name, str(path), hashlib.sha256(data).hexdigest(), len(data), archive="a.tgz"
        )

    return make


def journal(keeper: Housekeeping) -> list[dict]:
    if not keeper.journal.exists():
        return []
    return [json.loads(line) for line in keeper.journal.read_text().splitlines()]


def tree(keeper: Housekeeping) -> dict[str, bytes]:
    return {
        path.relative_to(keeper.library).as_posix(): path.read_bytes()
        for path in sorted(keeper.library.rglob("*"))
        if path.is_file() and path not in (keeper.journal, keeper.home / "lock")
    }


# --- one video ------------------------------------------------------------------------------------


def test_stored_video_is_placed_and_journalled(
    keeper: Housekeeping, shelf: Shelf, children: Children, spool: Spool
) -> None:
    intake = new_intake(keeper)
    done: list[int] = []
    intake.take([spool("c/a b.mp4"), spool("v.AVI", split="val")], shelf, done.append)
    stored = {
        "videos_train/c/a b.mp4": b"pyramid of c/a b.mp4",
        "videos_val/v.AVI.mp4": b"pyramid of v.AVI",
    }
    assert tree(keeper) == stored  # and nothing is left in incoming/
    first, second = journal(keeper)
    assert first == {
        "split": "train",
        "source": "c/a b.mp4",
        "source_bytes": 9,
        "source_sha256": hashlib.sha256(b"c/a b.mp4").hexdigest(),
        "source_mtime_ns": 0,
        "archive": "a.tgz",
        "settings": describe(SETTINGS),
        "path": "c/a b.mp4",
        **GOOD,
        "n_bytes": 20,
        "sha256": hashlib.sha256(b"pyramid of c/a b.mp4").hexdigest(),
    }
    assert (second["source"], second["path"], done) == ("v.AVI", "v.AVI.mp4", [1, 2])
    assert new_intake(keeper).rows == intake.rows  # read back
    assert intake.names_by_archive() == {"a.tgz": {("train", "c/a b.mp4"), ("val", "v.AVI")}}
    limits = children.limits[0]
    assert (limits.seconds, limits.cpu_seconds) == (7.5, 9)  # type: ignore[attr-defined]


def test_without_settings_the_original_itself_is_placed(
    keeper: Housekeeping, shelf: Shelf, children: Children, spool: Spool
) -> None:
    new_intake(keeper, None).take([spool("v.avi", b"bytes")], shelf)
    assert tree(keeper) == {"videos_train/v.avi": b"bytes"}
    (row,) = journal(keeper)
    assert (row["path"], row["kind"], row["settings"]) == ("v.avi", "original", "original")
    assert row["sha256"] == row["source_sha256"] == hashlib.sha256(b"bytes").hexdigest()


def test_refused_video_is_kept_aside_with_its_reason(
    keeper: Housekeeping, shelf: Shelf, children: Children, spool: Spool
) -> None:
    children.answers[b"bad"] = [{"reason": "damaged", "detail": "frame 3"}]
    new_intake(keeper).take([spool("c/bad.mp4", b"bad")], shelf)
    assert tree(keeper) == {".preprocess/quarantine/videos_train/c/bad.mp4": b"bad"}
    (row,) = journal(keeper)
    assert (row["reason"], row["detail"]) == ("damaged", "frame 3")
    assert "path" not in row and "sha256" not in row


def test_file_in_place_is_never_removed(
    tmp_path: Path, keeper: Housekeeping, shelf: Shelf, children: Children
) -> None:
    children.answers[b"bad"] = [{"reason": "damaged", "detail": ""}]
    originals = []
    for name in ("good", "bad"):
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(name.encode())
        originals.append(Original("val", f"{name}.mp4", str(path), None, 4, 1))
    new_intake(keeper).take(originals, shelf)
    new_intake(keeper).take(originals, shelf)
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == ["bad.mp4", "good.mp4"]
    assert tree(keeper) == {"videos_val/good.mp4": b"pyramid of good"}


def test_child_cannot_choose_names(
    tmp_path: Path, keeper: Housekeeping, shelf: Shelf, children: Children, spool: Spool
) -> None:
    """A hostile video may have taken its child over."""
    children.answers[b"x"] = [
        {**GOOD, "n_bytes": 1, "path": "../../evil.mp4", "sha256": "0", "settings": "?", "z": 1}
    ]
    children.answers[b"y"] = [{"reason": "damaged", "detail": "", "path": "../evil", "split": "?"}]
    (keeper.incoming / "stored-1.mp4").write_bytes(b"written")
    new_intake(keeper).take([spool("x.mp4", b"x"), spool("y.mp4", b"y")], shelf)
    assert tree(keeper) == {
        "videos_train/x.mp4": b"written",
        ".preprocess/quarantine/videos_train/y.mp4": b"y",
    }
    good, bad = journal(keeper)
    assert (good["path"], good["settings"]) == ("x.mp4", describe(SETTINGS))
    assert good["sha256"] == hashlib.sha256(b"written").hexdigest() and "z" not in good
    assert "path" not in bad and bad["split"] == "train"


def test_stored_pyramid_is_kept_and_what_only_says_so_is_refused_and_stays(
    keeper: Housekeeping, shelf: Shelf, children: Children
) -> None:
    folder = keeper.library / "videos_val"
    folder.mkdir()
    originals = []
    for name in ("real", "fake"):
        (folder / f"{name}.mp4").write_bytes(name.encode())
        path = str(folder / f"{name}.mp4")
        originals.append(Original("val", f"{name}.mp4", path, None, 4, 1, is_stored=True))
    children.answers[b"real"] = [{**GOOD, "n_bytes": 4}]
    children.answers[b"fake"] = [{**GOOD, "n_bytes": 4, "kind": "original"}]
    new_intake(keeper).take(originals, shelf)
    assert tree(keeper) == {"videos_val/real.mp4": b"real", "videos_val/fake.mp4": b"fake"}
    real, fake = journal(keeper)
    assert (real["kind"], real["path"]) == ("pyramid", "real.mp4")
    assert real["sha256"] == hashlib.sha256(b"real").hexdigest()
    assert fake["reason"] == "damaged" and "is none" in fake["detail"]


@pytest.mark.parametrize("there", [b"the user's", mark(32).encode()])
def test_what_is_in_a_pyramids_way_moves_aside_unless_it_is_one(
    keeper: Housekeeping, shelf: Shelf, children: Children, spool: Spool, there: bytes
) -> None:
    (keeper.library / "videos_train").mkdir()
    (keeper.library / "videos_train/v.mp4").write_bytes(there)
    intake = new_intake(keeper)
    intake.take([spool("v.mp4", b"1")], shelf)
    expected = {"videos_train/v.mp4": b"pyramid of 1"}
    if there.startswith(b"the"):
        expected["originals/videos_train/v.mp4"] = there
    assert tree(keeper) == expected
    intake.take([spool("v.mp4", b"2")], shelf)  # our own is replaced
    assert tree(keeper) == {**expected, "videos_train/v.mp4": b"pyramid of 2"}


# --- what is finished -----------------------------------------------------------------------------


def test_finished_video_is_not_looked_at_again(
    keeper: Housekeeping, shelf: Shelf, children: Children, spool: Spool
) -> None:
    children.answers[b"bad"] = [{"reason": "damaged", "detail": ""}]
    new_intake(keeper).take([spool("a.mp4"), spool("bad.mp4", b"bad")], shelf)
    before, rows = tree(keeper), journal(keeper)
    again = new_intake(keeper)
    again.take([spool("a.mp4"), spool("bad.mp4", b"bad")], shelf)
    assert (again.n_new, children.rounds[-1][1]) == (0, [])
    assert tree(keeper) == before and journal(keeper) == rows  # the spooled files are gone


@pytest.mark.parametrize(
    "change", ["content", "length", "settings", "gone", "torn", "split", "to original"]
)
def test_whatever_differs_is_done_again(
    keeper: Housekeeping, shelf: Shelf, children: Children, spool: Spool, change: str
) -> None:
    new_intake(keeper).take([spool("a.mp4", b"1")], shelf)
    stored = keeper.library / "videos_train/a.mp4"
    original, settings = spool("a.mp4", b"1"), SETTINGS
    if change in ("content", "length"):
        original = spool("a.mp4", b"2" if change == "content" else b"11")
    elif change == "settings":
        settings = EncodeSettings(crf=30)
    elif change == "gone":
        stored.unlink()
    elif change == "torn":
        stored.write_bytes(stored.read_bytes()[:-1])
    elif change == "split":
        original = spool("a.mp4", b"1", split="val")
    intake = new_intake(keeper, None if change == "to original" else settings)
    assert bool(intake.archives_with_missing()) == (change in ("gone", "torn"))
    assert not intake.is_finished(original)
    intake.take([original], shelf)
    assert intake.n_new == 1 and intake.is_finished(original)
    assert not intake.archives_with_missing()


def test_file_in_place_is_known_by_size_and_time(
    tmp_path: Path, keeper: Housekeeping, shelf: Shelf, children: Children
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"1")
    original = Original("train", "a.mp4", str(tmp_path / "a.mp4"), None, 1, 5)
    intake = new_intake(keeper)
    intake.take([original], shelf)
    assert intake.is_finished(original)
    assert not intake.is_finished(Original("train", "a.mp4", original.path, None, 1, 6))
    assert not intake.is_finished(Original("train", "a.mp4", original.path, None, 2, 5))


def test_room_that_stored_videos_take_is_known(
    tmp_path: Path, keeper: Housekeeping, shelf: Shelf, children: Children, spool: Spool
) -> None:
    children.answers[b"bad"] = [{"reason": "damaged", "detail": ""}]
    originals = [spool("a.mp4", b"12"), spool("b.mp4", b"123"), spool("bad.mp4", b"bad")]
    intake = new_intake(keeper)
    intake.take(originals, shelf)
    assert intake.stored_bytes() == len("pyramid of ") * 2 + 5
    assert intake.stored_bytes([("train", "a.mp4"), ("val", "a.mp4")]) == 13
    (keeper.library / "videos_train/a.mp4").unlink()
    assert intake.stored_bytes() == 14
    in_place = new_intake(keeper, None)
    (tmp_path / "mine.mp4").write_bytes(b"1")
    in_place.take([Original("val", "mine.mp4", str(tmp_path / "mine.mp4"), None, 1, 1)], shelf)
    assert in_place.stored_bytes() == 14  # the user's own is nothing that we could replace


# --- failures -------------------------------------------------------------------------------------


def test_crashed_and_hung_get_a_second_chance_alone(
    keeper: Housekeeping, shelf: Shelf, children: Children, spool: Spool
) -> None:
    children.answers = {
        b"once": ["crashed"],
        b"twice": ["hung", "crashed"],
        b"greedy": ["out of memory", "not asked for"],
    }
    originals = [spool(f"{name}.mp4", name.encode()) for name in ("once", "twice", "greedy", "ok")]
    done: list[int] = []
    new_intake(keeper).take(originals, shelf, done.append)
    assert children.rounds == [
        (3, [b"once", b"twice", b"greedy", b"ok"]),
        (1, [b"once", b"twice"]),
    ]
    rows = {row["source"]: row.get("reason") for row in journal(keeper)}
    assert rows == {
        "once.mp4": None,
        "twice.mp4": "crashed",
        "greedy.mp4": "out of memory",
        "ok.mp4": None,
    }
    assert done == [1, 2, 3, 4]
    assert os.listdir(keeper.incoming) == []


def test_few_originals_wait_for_their_second_chance(
    keeper: Housekeeping, shelf: Shelf, children: Children, spool: Spool
) -> None:
    """However many crash: they lie on disk meanwhile."""
    most = 0

    def originals() -> Iterator[Original]:
        nonlocal most
        for i in range(40):
            children.answers[b"%d" % i] = ["crashed"]
            yield spool(f"{i}.mp4", b"%d" % i)
            most = max(most, len(os.listdir(keeper.incoming)))

    new_intake(keeper).take(originals(), shelf)
    assert most <= 16 + 1
    assert len(journal(keeper)) == len(tree(keeper)) == 40
    assert [n_worker for n_worker, _ in children.rounds].count(1) == 3


def test_51_bad_videos_in_a_row_stop_the_run_and_one_good_one_starts_anew(
    keeper: Housekeeping, shelf: Shelf, children: Children, spool: Spool
) -> None:
    def bad(n: int, tag: str) -> Iterator[Original]:
        for i in range(n):
            data = f"{tag}{i}".encode()
            children.answers[data] = [{"reason": "damaged", "detail": ""}]
            yield spool(f"{tag}{i}.mp4", data)

    def mixed() -> Iterator[Original]:
        yield from bad(50, "a")
        yield spool("good.mp4")
        yield from bad(50, "b")

    intake = new_intake(keeper)
    intake.take(mixed(), shelf)
    assert intake.n_new == 101
    with pytest.raises(DataError, match="51 videos in a row"):
        intake.take(bad(60, "c"), shelf)
    assert len(journal(keeper)) == 101
    assert sum(f"c{i}".encode() in children.answers for i in range(60)) == 1


def test_storage_error_of_a_child_stops_the_run_and_blames_no_video(
    keeper: Housekeeping, shelf: Shelf, children: Children, spool: Spool
) -> None:
    children.answers[b"2"] = [{"storage_error": "x: No space left on device"}]
    with pytest.raises(StorageError, match=r"No space left.*repeat the command"):
        new_intake(keeper).take([spool(f"{i}.mp4", b"%d" % i) for i in range(4)], shelf)
    assert [row["source"] for row in journal(keeper)] == ["0.mp4", "1.mp4"]
    assert all("reason" not in row for row in journal(keeper))


# --- the journal ----------------------------------------------------------------------------------


def test_journal_is_written_now_and_then_and_whatever_happens(
    keeper: Housekeeping,
    shelf: Shelf,
    children: Children,
    spool: Spool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(module, "JOURNAL_EVERY", 4)
    seen = []

    def originals() -> Iterator[Original]:
        nonlocal now
        for i in range(9):
            now += 6.0 if i >= 5 else 0.0
            yield spool(f"{i}.mp4")
            seen.append(len(journal(keeper)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        new_intake(keeper).take(originals(), shelf)
    # By number after the fourth, by time (10 s) after the seventh and the ninth.
    assert seen == [0, 0, 0, 4, 4, 4, 7, 7, 9]
    assert len(journal(keeper)) == 9


def test_rows_are_durable_only_after_the_videos(
    keeper: Housekeeping,
    shelf: Shelf,
    children: Children,
    spool: Spool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = []
    sync, add_rows = Shelf.sync, Housekeeping.add_rows
    monkeypatch.setattr(Shelf, "sync", lambda shelf: (steps.append("sync"), sync(shelf)))
    monkeypatch.setattr(
        Housekeeping,
        "add_rows",
        lambda keeper, rows: (steps.append("rows"), add_rows(keeper, rows)),
    )
    new_intake(keeper).take([spool("a.mp4")], shelf)
    assert steps == ["sync", "rows"]


def test_settings_and_names_as_the_journal_holds_them() -> None:
    assert describe(None) == "original"
    assert describe(EncodeSettings(crf=30)) != describe(EncodeSettings())
    texts = {
        describe(EncodeSettings(**{k: v}))
        for k, v in {
            "short_side": 32,
            "preset": "slow",
            "keyframe_interval": 16,
            "enlarge": True,
        }.items()
    }
    assert len(texts | {describe(EncodeSettings())}) == 5
    assert stored_name("a.mp4") == "a.mp4"
    for name in ("a.MP4", "a.avi", "a.webm", "a.mkv"):
        assert stored_name(name) == f"{name}.mp4"
