"""The end of `preprocess`: quarantine, manifests, lists, marker. Each step may be repeated."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from kinetics400.commands.preprocess_lists import Lists
from kinetics400.commands.preprocess_report import ShardSummary, SplitSummary, Summary
from kinetics400.data.annotations import VideoTable, format_list
from kinetics400.data.housekeeping import digest
from kinetics400.data.intake import Intake
from kinetics400.data.library import (
    SPLITS,
    Quarantined,
    format_reasons,
    split_root,
    video_files,
    videos_name,
    write_quarantine,
)
from kinetics400.data.manifest import Manifest, manifest_path
from kinetics400.data.shards import Shard
from kinetics400.data.storage import write_if_changed
from kinetics400.errors import DataError

Usable = list[tuple[dict[str, Any], int]]  # (journal row, label)


def finish(
    lists: Lists, tables: dict[str, VideoTable], intake: Intake, max_bad_share: float
) -> Summary:
    """Publish what can be used, and say what cannot.

    Raises:
        DataError: more unusable videos than `max_bad_share`; nothing is published.
        StorageError: the library cannot be written.
    """
    keeper, library = intake.keeper, intake.keeper.library
    usable: dict[str, Usable] = {split: [] for split in tables}
    bad: list[Quarantined] = []
    for split, table in tables.items():
        for name, label in table.rows():
            row = intake.rows.get((split, name))
            if row is not None and "reason" in row:
                bad.append(Quarantined(split, name, row["reason"], row["detail"]))
            elif row is not None and intake.is_stored(row):
                usable[split].append((row, label))
            else:
                bad.append(Quarantined(split, name, "absent"))
    bad.sort(key=lambda video: (SPLITS.index(video.split), video.path))
    _check_share(tables, usable, bad, max_bad_share)

    finals = {
        split: format_list((row["path"], label) for row, label in rows)
        for split, rows in usable.items()
    }
    keeper.store_originals(lists.originals, finals)
    write_quarantine(keeper.quarantine_file, bad)
    for split, rows in usable.items():
        manifest = Manifest.from_rows([row for row, _ in rows], [label for _, label in rows])
        write_if_changed(manifest_path(library, split), manifest.to_bytes())
    keeper.publish_lists(finals)

    splits = {split: _summary(rows, tables[split], lists, intake) for split, rows in usable.items()}
    archives = keeper.read("archives.json").get("done", [])
    done = {
        "archives": [archive["parts"] for archive in archives],
        "settings": intake.description,
        "lists": {split: digest(data) for split, data in finals.items()},
        "listed": {split: counts.listed for split, counts in splits.items()},
        "usable": {split: counts.usable for split, counts in splits.items()},
    }
    already_done = intake.n_new == 0 and keeper.read("done.json") == done
    if not already_done:
        keeper.write("done.json", done)
    return Summary(
        library=library,
        store=intake.kind,
        splits=splits,
        quarantined=bad,
        ignored=sum((Counter(archive["ignored"]) for archive in archives), Counter()),
        originals=keeper.originals if keeper.originals.is_dir() else None,
        already_done=already_done,
    )


def finish_shard(shard: Shard, lists: Lists, intake: Intake) -> ShardSummary:
    """Leave what the run without shards needs, even where it does not see the source."""
    keeper = intake.keeper
    keeper.store_archive_lists(lists.originals)
    rows = keeper.journal_rows(own=True).values()
    refused = [row for row in rows if "reason" in row]
    keeper.write("done.json", {"settings": intake.description})
    return ShardSummary(
        library=keeper.library,
        shard=shard,
        stored=len(rows) - len(refused),
        new=intake.n_new,
        refused=[Quarantined(r["split"], r["source"], r["reason"], r["detail"]) for r in refused],
    )


def _summary(rows: Usable, table: VideoTable, lists: Lists, intake: Intake) -> SplitSummary:
    split = rows[0][0]["split"]
    names = {row["path"] for row, _ in rows}
    root = split_root(intake.keeper.library, split)
    unlisted = 0
    if root.name == videos_name(split):
        unlisted = sum(name not in names for name in video_files(root))
    return SplitSummary(
        listed=len(table),
        usable=len(rows),
        unlisted=unlisted,
        missing=lists.n_missing.get(split, 0),
        pyramids=sum(row["kind"] == "pyramid" for row, _ in rows),
        n_bytes=sum(row["n_bytes"] for row, _ in rows),
        source_bytes=sum(row["source_bytes"] for row, _ in rows),
        seconds=sum(row["n_frames"] / row["fps"] for row, _ in rows if row["fps"]),
    )


def _check_share(
    tables: dict[str, VideoTable],
    usable: dict[str, Usable],
    bad: Sequence[Quarantined],
    max_bad_share: float,
) -> None:
    listed = sum(len(table) for table in tables.values())
    empty = [split for split, rows in usable.items() if not rows]
    share = len(bad) / listed
    if share <= max_bad_share and not empty:
        return
    limit = f"more than --max_bad_share {max_bad_share:.2%} allows"
    if empty:
        limit = f"and none is left for {' and '.join(empty)}"
    raise DataError(
        f"{len(bad):,} of {listed:,} listed videos ({share:.2%}) cannot be used, {limit}. The "
        "lists were not written; what was stored is remembered, so a repeated command is quick."
        f"\n{format_reasons(bad)}"
    )
