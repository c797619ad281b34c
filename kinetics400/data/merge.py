"""Make one library's memory out of what its shards remember. Each step may be repeated."""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from kinetics400.data.housekeeping import Housekeeping
from kinetics400.data.intake import file_sha256
from kinetics400.data.library import SPLITS, list_name
from kinetics400.data.shards import Shard
from kinetics400.data.sources import CVDF_PART, CVDF_REPLACEMENT
from kinetics400.data.storage import disk_errors, fsync_folder, write_if_changed

Row = dict[str, Any]
Rows = dict[tuple[str, str], Row]
OTHER = 1 << 30  # the place of an archive that is none of CVDF's


def merge_shards(keeper: Housekeeping, description: str) -> list[str]:
    """Take over rows, damaged videos, lists and read archives; returns the unfinished shards.

    Args:
        keeper: the library's, held and working; no shard is at work then.
        description: the way of storing (`intake.describe`).
    """
    shards = [Housekeeping(keeper.library, shard) for shard in keeper.shards()]
    if not shards:
        return []
    rows = _merge_rows(keeper, shards)
    _merge_quarantine(keeper, shards, rows)
    _merge_lists(keeper, shards)
    _merge_archives(keeper, shards, description)
    unfinished = _unfinished(shards, description)
    # In one step, and what is being worked on is emptied at every start.
    with disk_errors(f"removing {keeper.shards_folder}"):
        os.rename(keeper.shards_folder, keeper.incoming / "shards")
    return unfinished


def _merge_rows(keeper: Housekeeping, shards: list[Housekeeping]) -> Rows:
    """The last row of each video, in the journal from now on.

    Where two archives hold a video of one name, the first of them counts, as when one process
    reads them in order; what was stored of the other one goes.
    """
    known = keeper.journal_rows()
    rows = dict(known)
    for shard in shards:
        for key, row in shard.journal_rows(own=True).items():
            other = rows.get(key)
            if other is None or not _are_rivals(other, row):
                rows[key] = row
                continue
            first, second = (other, row) if _place(other) < _place(row) else (row, other)
            rows[key] = first
            if "path" in second and first.get("sha256") != second["sha256"]:
                _remove(keeper.stored_path(second), second["sha256"])
    keeper.add_rows([row for key, row in rows.items() if known.get(key) != row])
    return rows


def _are_rivals(row: Row, other: Row) -> bool:
    """Whether two of CVDF's archives have given a video each; else the later row is the news."""
    places = {_place(row), _place(other)}
    return row["settings"] == other["settings"] and len(places) == 2 and OTHER not in places


def _place(row: Row) -> int:
    """The place of a video's archive among CVDF's of its split (`Cvdf.units`)."""
    if row["archive"] == CVDF_REPLACEMENT:
        return -1
    part = CVDF_PART.fullmatch(os.path.basename(row["archive"]))
    return int(part[1]) if part else OTHER


def _remove(path: Path, sha256: str) -> None:
    """Remove a stored video, unless another has taken its place."""
    if path.is_file() and file_sha256(path) == sha256:
        with disk_errors(f"removing {path}"):
            path.unlink()


def _merge_quarantine(keeper: Housekeeping, shards: list[Housekeeping], rows: Rows) -> None:
    for shard in shards:
        for (split, name), row in shard.journal_rows(own=True).items():
            if "reason" not in row or rows[split, name] != row:
                continue
            path = keeper.library.joinpath(*shard.quarantine_parts(split, name))
            target = keeper.library.joinpath(*keeper.quarantine_parts(split, name))
            if path.is_file():
                with disk_errors(f"moving {path}"):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, target)
                    fsync_folder(target.parent)


def _merge_lists(keeper: Housekeeping, shards: list[Housekeeping]) -> None:
    known = keeper.read("lists.json")
    for split in SPLITS:
        for shard in shards:
            path = shard.folder / list_name(split)
            if path.is_file():
                write_if_changed(keeper.folder / list_name(split), path.read_bytes())
                known[split] = shard.read("lists.json")[split]
                break
    if known != keeper.read("lists.json"):
        keeper.write("lists.json", known)


def _merge_archives(keeper: Housekeeping, shards: list[Housekeeping], description: str) -> None:
    """An archive is read when the shard that it belongs to has read it, or all that share it."""
    known = keeper.read("archives.json")
    done = known["done"] if known.get("settings") == description else []
    readers: dict[tuple[str, int], set[int]] = defaultdict(set)
    for keeper_of_shard in shards:
        shard, theirs = keeper_of_shard.shard, keeper_of_shard.read("archives.json")
        if shard is None or theirs.get("settings") != description:
            continue
        for archive in theirs["done"]:
            entry = {name: archive[name] for name in ("parts", "ignored")}
            parts = json.dumps(entry["parts"]), shard.count
            readers[parts].add(shard.index)
            whole = not archive.get("shared") or len(readers[parts]) == shard.count
            if whole and entry["parts"] not in [other["parts"] for other in done]:
                done.append(entry)
    if done:
        keeper.write("archives.json", {"settings": description, "done": done})


def _unfinished(shards: list[Housekeeping], description: str) -> list[str]:
    """The shards that are missing, were killed, or stored in another way."""
    finished = {
        keeper.shard
        for keeper in shards
        if (keeper.folder / "done.json").is_file()
        and keeper.read("done.json")["settings"] == description
    }
    counts = {keeper.shard.count for keeper in shards if keeper.shard}
    every = [Shard(i, count) for count in sorted(counts) for i in range(1, count + 1)]
    return [str(shard) for shard in every if shard not in finished]
