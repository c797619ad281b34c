"""From a source's videos to the library's: what `preprocess` does between lists and report."""

import os
import shutil
from collections.abc import Callable, Container, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from kinetics400.commands.preprocess_lists import Lists
from kinetics400.commands.progress import ProgressMeter
from kinetics400.data.annotations import VideoTable
from kinetics400.data.archive import Contents
from kinetics400.data.intake import Intake, stored_name
from kinetics400.data.library import SPLITS, video_files, videos_name
from kinetics400.data.pyramid import is_marked
from kinetics400.data.shards import NotOurs
from kinetics400.data.shelf import Shelf
from kinetics400.data.sources import ArchiveUnit, Cvdf, Folder, Original, spooled
from kinetics400.errors import InputError, StorageError

# What videos need on disk, as a share of the originals' bytes. Videos do not compress and file
# systems round up; a pyramid at crf 22 takes about four fifths (docs/data.md).
DISK_SHARE = {"original": 1.05, "pyramid": 0.9}
DISK_MARGIN = 64 << 20


def take_archives(source: ArchiveUnit | Cvdf, lists: Lists, intake: Intake) -> None:
    """Store the videos of all archives that no earlier run has read to their end."""
    keeper = intake.keeper
    if isinstance(source, Cvdf):
        lists.look_beside(source)
        lists.look_in_library()
        lists.check_complete()  # no archive here brings a list
        units = source.units(lists.listed())
        if keeper.shard is not None:  # whole archives: none is read twice
            units = units[keeper.shard.index - 1 :: keeper.shard.count]
    else:
        units = [source]
    done = _archives_done(units, intake)
    todo = [unit for unit in units if unit.identity() not in [known["parts"] for known in done]]
    if todo:
        n_bytes = sum(unit.n_bytes for unit in units)
        if keeper.shard is not None and isinstance(source, ArchiveUnit):
            n_bytes //= keeper.shard.count
        _check_disk(keeper.library, n_bytes, intake.kind, intake.stored_bytes())
    taken: set[tuple[str, str]] = set()
    given = intake.names_by_archive() if todo else {}
    for unit in units:
        if unit not in todo:
            taken |= given.get(unit.name, set())
            continue
        contents = Contents()
        what = "storing"
        if len(todo) > 1:
            what += f" {todo.index(unit) + 1} of {len(todo)}"
        with ProgressMeter(what, unit.n_bytes, "bytes") as meter:
            skip: Container[tuple[str, str]] = taken
            shared = keeper.shard is not None and isinstance(source, ArchiveUnit)
            if keeper.shard is not None and shared:
                skip = NotOurs(taken, keeper.shard)
            taken |= _take_unit(unit, contents, skip, lists, intake, meter.update)
        keeper.store_archive_lists(contents.lists)
        archive = {"parts": unit.identity(), "ignored": dict(contents.ignored)}
        done.append(archive | ({"shared": True} if shared else {}))
        keeper.write("archives.json", {"settings": intake.description, "done": done})
    lists.look_in_library()


def _archives_done(units: list[ArchiveUnit], intake: Intake) -> list[dict[str, Any]]:
    """What is known of those archives that need not be read again."""
    known = intake.keeper.read("archives.json")
    if not known:
        return []
    done, missing = known["done"], intake.archives_with_missing()
    if known["settings"] != intake.description:
        done = []
    done = [archive for archive in done if archive["parts"][0][0] not in missing]
    if len(done) < len(known["done"]):
        # At once: if this run is killed, a run with the old settings has work to do as well.
        intake.keeper.write("archives.json", {"settings": intake.description, "done": done})
    identities = [unit.identity() for unit in units]
    return [archive for archive in done if archive["parts"] in identities]


def _take_unit(
    unit: ArchiveUnit,
    contents: Contents,
    skip: Container[tuple[str, str]],
    lists: Lists,
    intake: Intake,
    progress: Callable[[int], None],
) -> set[tuple[str, str]]:
    """Store one archive's videos; of a hostile or unsuitable archive nothing is kept."""
    keeper, names = intake.keeper, set()

    def originals() -> Iterator[Original]:
        for original in spooled(
            unit,
            contents,
            keeper.incoming,
            skip=skip,
            on_list=lists.add,
            required_lists=lists.open_splits() if unit.has_lists else [],
            progress=progress,
        ):
            names.add((original.split, original.name))
            yield original

    journal_bytes = keeper.journal_bytes()
    with closing(Shelf(keeper.library, keeper.incoming)) as shelf:
        try:
            intake.take(originals(), shelf)
        except InputError:
            shelf.roll_back()
            keeper.cut_journal(journal_bytes)
            raise
    return names


def take_folder(source: Folder, lists: Lists, intake: Intake) -> dict[str, VideoTable]:
    """Store the listed videos of a folder; returns the lists.

    Where the folder is the library itself, pyramids take the originals' places, and these move
    aside, into originals/: nothing is deleted.
    """
    keeper = intake.keeper
    in_place = source.root.resolve() == keeper.library.resolve()
    if in_place:
        source = Folder(keeper.library)  # however it was spelled
        lists.look_in_library()
        files = {split: intake.known_names(split) for split in SPLITS}
    else:
        files = {split: list(video_files(source.split_root(split))) for split in SPLITS}
    lists.look_beside(source, files)
    tables = lists.settle(files)
    move_aside = in_place and intake.settings is not None
    if move_aside:
        _refuse_links(source)
    todo = list(_unfinished(source, tables, intake, in_place=in_place))
    if intake.settings is not None:
        _refuse_collisions(tables)
        there = intake.stored_bytes((original.split, original.name) for original in todo)
        _check_disk(keeper.library, sum(original.n_bytes for original in todo), intake.kind, there)
    if todo:
        what = "verifying" if intake.settings is None else "storing"
        with (
            ProgressMeter(what, len(todo), "videos") as meter,
            closing(Shelf(keeper.library, keeper.incoming)) as shelf,
        ):
            intake.take(
                (keeper.moved_aside(original) if move_aside else original for original in todo),
                shelf,
                meter.update,
            )
    return tables


def _unfinished(
    source: Folder, tables: dict[str, VideoTable], intake: Intake, *, in_place: bool
) -> Iterator[Original]:
    """The listed videos that are there and that no earlier run has dealt with."""
    shard = intake.keeper.shard
    for split, table in tables.items():
        places = _relative(table)
        for i in range(len(table)):
            name = table.name(i)
            if shard is not None and not shard.holds(split, name):
                continue
            path: Path | None = source.split_root(split) / name
            if in_place:
                path = _original_in_library(source, split, name, intake)
            try:
                status = path.stat() if path else None
            except OSError:
                status = None
            if status is None:
                continue  # without a row in the journal it is absent
            original = Original(
                split,
                name,
                str(path),
                sha256=None,
                n_bytes=status.st_size,
                mtime_ns=status.st_mtime_ns,
                place=places.get(name, ""),
            )
            if not intake.is_finished(original):
                yield original


def _original_in_library(source: Folder, split: str, name: str, intake: Intake) -> Path | None:
    """Where a listed original is: in its place, or aside if its pyramid has taken that.

    None if there is none, or a pyramid that is as it should be.
    """
    # The first pyramid makes videos_<split>; originals that lay beside the lists are there still.
    places = [source.root / folder / name for folder in (videos_name(split), split, "")]
    visible = next((path for path in places if path.is_file()), None)
    if intake.settings is None:
        return visible
    aside = intake.keeper.aside_path(split, name)
    original = aside if aside.exists() else None
    if visible is None:
        return original
    if intake.is_our_pyramid(split, name, visible):
        return original or (None if intake.is_done_without_source(split, name) else visible)
    # Both: a kill came before the journal, or the user has put a better original there.
    return original if original and is_marked(str(visible)) else visible


def _relative(table: VideoTable) -> dict[str, str]:
    """A list's absolute paths → the same below the folder that they share."""
    names = [name for name, _ in table.rows() if os.path.isabs(name)]
    if not names:
        return {}
    shared = os.path.commonpath([os.path.dirname(name) for name in names])
    return {name: os.path.relpath(name, shared) for name in names}


def _refuse_collisions(tables: dict[str, VideoTable]) -> None:
    """No two videos of a list may be stored under one name."""
    for split, table in tables.items():
        places = _relative(table)
        taken: dict[str, str] = {}
        for name, _ in table.rows():
            other = taken.setdefault(stored_name(places.get(name, name)), name)
            if other != name:
                raise InputError(
                    f"{other!r} and {name!r} of the {split} list would be stored under one name, "
                    f"{stored_name(places.get(name, name))!r}."
                )


def _refuse_links(source: Folder) -> None:
    """Originals move aside by renaming, which a kill cannot tear; that needs one file system."""
    for split in SPLITS:
        root = source.split_root(split)
        if root.is_symlink():
            raise InputError(
                f"{root} is a link. Name the folder it leads to with --source, and another "
                "--data_dir: the originals then stay where they are."
            )


def _check_disk(library: Path, source_bytes: int, kind: str, there: int = 0) -> None:
    """Refuse to begin what the disk cannot hold."""
    need = int(source_bytes * DISK_SHARE[kind]) + DISK_MARGIN - there
    free = shutil.disk_usage(library).free
    if source_bytes and free < need:
        raise StorageError(
            f"storing the videos needs about {need / 1e9:,.1f} GB in {library}, and "
            f"{free / 1e9:,.1f} GB are free. Nothing was written; free space, make the folder a "
            "link to a larger disk, or store them smaller (--crf 24)."
        )
