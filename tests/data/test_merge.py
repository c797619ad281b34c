"""What shards remember, written here by hand, and what one library remembers then."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kinetics400.data.housekeeping import Housekeeping
from kinetics400.data.merge import merge_shards
from kinetics400.data.shards import Shard

SHA = {  # of the bytes b"a" and b"b"
    "a": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
    "b": "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d",
}


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Housekeeping]:
    keeper = Housekeeping(tmp_path / "library")
    (tmp_path / "library/videos_train").mkdir(parents=True)
    with keeper.held(), keeper.working():
        yield keeper


def row(name: str, archive: str, content: str = "", **more: object) -> dict[str, Any]:
    facts = {"split": "train", "source": name, "archive": archive, "settings": "s"}
    stored = {"path": name, "sha256": SHA[content], "n_bytes": 1} if content else {"reason": "cut"}
    return {**facts, **stored, **more}


def leave(
    keeper: Housekeeping, shard: Shard, *rows: dict[str, Any], done: list | None = None
) -> Housekeeping:
    """What a shard leaves behind; its archives shared with others if they say so."""
    left = Housekeeping(keeper.library, shard)
    left.folder.mkdir(parents=True)
    left.add_rows(list(rows))
    if done is not None:
        left.write("archives.json", {"settings": "s", "done": done})
    left.write("done.json", {"settings": "s"})
    return left


def journal(keeper: Housekeeping) -> list[tuple[str, str]]:
    lines = keeper.journal.read_text().splitlines() if keeper.journal.exists() else []
    return [(row["source"], row["archive"]) for row in map(json.loads, lines)]


PARTS = ("train/part_2.tar.gz", "train/part_10.tar.gz")
REPLACEMENT = "replacement_for_corrupted_k400.tgz"


@pytest.mark.parametrize("winner_comes", ["first", "second"])
@pytest.mark.parametrize(
    ("winner", "loser"), [PARTS, (REPLACEMENT, PARTS[0]), (REPLACEMENT, "train/part_0.tar.gz")]
)
def test_first_archive_of_a_name_counts_and_what_the_other_stored_goes(
    keeper: Housekeeping, winner: str, loser: str, winner_comes: str
) -> None:
    shards = [Shard(1, 2), Shard(2, 2)]
    if winner_comes == "second":
        shards.reverse()
    leave(keeper, shards[0], row("v.mp4", winner, "a"))
    leave(keeper, shards[1], row("v.mp4", loser, "b"))
    video = keeper.library / "videos_train/v.mp4"
    video.write_bytes(b"b")  # the loser was the last to store it
    assert merge_shards(keeper, "s") == []
    assert journal(keeper) == [("v.mp4", winner)]
    assert not video.exists()


@pytest.mark.parametrize("content", [b"a", b"mine"])
def test_what_the_loser_has_not_stored_stays(keeper: Housekeeping, content: bytes) -> None:
    leave(keeper, Shard(1, 2), row("v.mp4", PARTS[0], "a"))
    leave(keeper, Shard(2, 2), row("v.mp4", PARTS[1], "b"))
    video = keeper.library / "videos_train/v.mp4"
    video.write_bytes(content)
    merge_shards(keeper, "s")
    assert video.read_bytes() == content


def test_equal_videos_of_two_archives_are_kept(keeper: Housekeeping) -> None:
    leave(keeper, Shard(1, 2), row("v.mp4", PARTS[0], "a"))
    leave(keeper, Shard(2, 2), row("v.mp4", PARTS[1], "a"))
    (keeper.library / "videos_train/v.mp4").write_bytes(b"a")
    merge_shards(keeper, "s")
    assert (keeper.library / "videos_train/v.mp4").exists()


@pytest.mark.parametrize(
    ("archive", "settings", "news"),
    [
        ("", "s", PARTS[1]),
        (PARTS[0], "others", PARTS[1]),
        (PARTS[1], "s", "Kinetics-400.tar.gz"),
    ],
)
def test_otherwise_the_shard_knows_better_than_the_library(
    keeper: Housekeeping, archive: str, settings: str, news: str
) -> None:
    keeper.add_rows([row("v.mp4", archive, "b", settings=settings)])
    leave(keeper, Shard(1, 1), row("v.mp4", news, "a"))
    merge_shards(keeper, "s")
    assert journal(keeper) == [("v.mp4", archive), ("v.mp4", news)]


def test_damaged_videos_of_losers_are_not_kept(keeper: Housekeeping) -> None:
    for shard, part in ((Shard(1, 2), PARTS[0]), (Shard(2, 2), PARTS[1])):
        left = leave(keeper, shard, row("v.mp4", part))
        damaged = keeper.library.joinpath(*left.quarantine_parts("train", "v.mp4"))
        damaged.parent.mkdir(parents=True)
        damaged.write_text(part)
    merge_shards(keeper, "s")
    kept = keeper.library.joinpath(*keeper.quarantine_parts("train", "v.mp4"))
    assert kept.read_text() == PARTS[0]
    assert not keeper.shards_folder.exists()


def archive(name: str, *, shared: bool = False) -> dict[str, Any]:
    return {"parts": [[name, 1, 2]], "ignored": {}, **({"shared": True} if shared else {})}


def test_archive_is_read_when_all_that_share_it_have_read_it(keeper: Housekeeping) -> None:
    keeper.write("archives.json", {"settings": "s", "done": [archive("before")]})
    both = archive("both", shared=True)
    leave(keeper, Shard(1, 2), done=[both, archive("one", shared=True), archive("own")])
    leave(keeper, Shard(2, 2), done=[both])
    merge_shards(keeper, "s")
    done = keeper.read("archives.json")["done"]
    assert done == [archive("before"), archive("own"), archive("both")]


def test_archives_read_for_another_way_of_storing_are_read_again(keeper: Housekeeping) -> None:
    leave(keeper, Shard(1, 1), done=[archive("own")])
    assert merge_shards(keeper, "other") == ["1/1"]
    assert keeper.read("archives.json") == {}


def test_unfinished_shards_are_named(keeper: Housekeeping) -> None:
    killed = leave(keeper, Shard(3, 4))
    (killed.folder / "done.json").unlink()
    leave(keeper, Shard(2, 4))
    assert merge_shards(keeper, "s") == ["1/4", "3/4", "4/4"]
    assert merge_shards(keeper, "s") == []  # they have been taken in


def test_list_of_a_shard_replaces_the_library_s_and_a_newer_visible_one_replaces_both(
    keeper: Housekeeping,
) -> None:
    left = leave(keeper, Shard(1, 1))
    left.store_archive_lists({"train": b"new.mp4 0\n"})
    keeper.store_archive_lists({"train": b"old.mp4 0\n", "val": b"v.mp4 0\n"})
    merge_shards(keeper, "s")
    assert keeper.original_list("train") == b"new.mp4 0\n"
    assert keeper.original_list("val") == b"v.mp4 0\n"
    (keeper.library / "kinetics400_train_list_videos.txt").write_bytes(b"mine.mp4 0\n")
    assert keeper.original_list("train") == b"mine.mp4 0\n"
