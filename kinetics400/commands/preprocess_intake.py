"""From a source's videos to the library's: what `preprocess` does between lists and report."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from kinetics400.commands.preprocess_lists import Lists
from kinetics400.commands.progress import ProgressMeter
from kinetics400.data.annotations import VideoTable
from kinetics400.data.archive import Contents
from kinetics400.data.intake import Intake
from kinetics400.data.library import SPLITS, video_files, videos_name
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
    known = keeper.read("archives.json")
    if known.get("settings") != intake.description:
        known = {"settings": intake.description, "done": [], "ignored": {}}
    if isinstance(source, Cvdf):
        lists.look_beside(source)
        units = source.units(lists.listed())
    else:
        units = [source]
    todo = [unit for unit in units if unit.identity() not in known["done"]]
    stored = sum(
        (folder / name).stat().st_size
        for folder in (keeper.library / videos_name(split) for split in SPLITS)
        for name in video_files(folder)
    )
    _check_disk(keeper.library, sum(unit.n_bytes for unit in todo), intake.kind, stored)
    taken: set[tuple[str, str]] = set()
    for number, unit in enumerate(todo, 1):
        contents = Contents(ignored=Counter(known["ignored"]))
        what = "storing" if len(todo) == 1 else f"storing {number} of {len(todo)}"
        with ProgressMeter(what, unit.n_bytes, "bytes") as meter:
            taken |= _take_unit(unit, contents, taken, lists, intake, meter.update)
        keeper.store_archive_lists(contents.lists)
        known["done"].append(unit.identity())
        known["ignored"] = dict(contents.ignored)
        keeper.write("archives.json", known)
    lists.look_in_library()


def _take_unit(
    unit: ArchiveUnit,
    contents: Contents,
    taken: set[tuple[str, str]],
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
            skip=taken,
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
        _check_disk(keeper.library, sum(original.n_bytes for original in todo), intake.kind)
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
    keeper = intake.keeper
    for split, table in tables.items():
        root = source.split_root(split)
        places = _relative([name for name, _ in table.rows() if os.path.isabs(name)])
        for i in range(len(table)):
            name = table.name(i)
            aside = keeper.aside_path(split, name)
            if in_place and aside.exists():
                path = aside
            elif in_place and intake.is_done_without_source(split, name):
                continue
            else:
                path = root / name
            try:
                status = path.stat()
            except OSError:
                continue  # no row in the journal: absent
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


def _relative(names: list[str]) -> dict[str, str]:
    """Absolute paths → the same below the folder that they share."""
    if not names:
        return {}
    shared = os.path.commonpath([os.path.dirname(name) for name in names])
    return {name: os.path.relpath(name, shared) for name in names}


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
