"""What preprocessing remembers between runs, in the hidden folder Kinetics-400/.preprocess/.

archives.json      the archives that were read to their end, and what else was in them
*_list_videos.txt  the lists as they came (the visible ones hold usable videos only)
lists.json         digests that tell our own visible list from one the user has put there
journal.jsonl      one line per video that was stored or refused: a rerun continues from it
manifest_*.npz     one row per usable video (data/library.py)
quarantine.jsonl   one line per video that is not used, with the reason
quarantine/        damaged files out of archives
incoming/          videos being worked on; emptied at every start
done.json          the marker: written last
lock               held by whoever works here: by one run, or by any number of shards
shards/<i>-of-<n>/ the same files of a shard at work; data/merge.py takes them over

Originals that lay in the library itself move to Kinetics-400/originals/, for the user to delete; an
older one of the same name gets a ~ after it.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kinetics400.data.library import (
    HIDDEN as FOLDER,
)
from kinetics400.data.library import (
    list_name,
    quarantine_path,
    split_root,
    videos_name,
)
from kinetics400.data.pyramid import is_marked
from kinetics400.data.shards import Shard
from kinetics400.data.sources import Original
from kinetics400.data.storage import (
    append_json_lines,
    disk_errors,
    read_json_lines,
    write_atomic,
    write_if_changed,
)
from kinetics400.errors import InputError


class Housekeeping:
    """The hidden folder of one library.

    Args:
        library: the folder that gets lists and videos.
        shard: the share of the videos that this process works on; its memory is its own.
    """

    def __init__(self, library: Path, shard: Shard | None = None) -> None:
        self.library = library
        self.shard = shard
        self.home = library / FOLDER
        self.shards_folder = self.home / "shards"
        self.folder = self.home
        if shard is not None:
            self.folder = self.shards_folder / f"{shard.index}-of-{shard.count}"
        self.journal = self.folder / "journal.jsonl"
        self.incoming = self.folder / "incoming"
        self.originals = library / "originals"
        self.quarantine_file = quarantine_path(library)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the library for one run or for any number of shards, and a shard for one process.

        On leaving, folders that a run has made here and that are still empty go.

        Raises:
            InputError: another process holds it, or it holds shards of another number.
        """
        needed = (self.library.parent, self.library, self.home)
        made = [folder for folder in needed if not folder.is_dir()]
        with disk_errors(f"creating {self.home}"):
            self.home.mkdir(parents=True, exist_ok=True)
        lock = self.home / "lock"
        with ExitStack() as locks:
            locks.enter_context(_locked(lock, f"{self.library}", shared=self.shard is not None))
            if self.shard is not None:
                self._check_count(self.shard)
                with disk_errors(f"creating {self.folder}"):
                    self.folder.mkdir(parents=True, exist_ok=True)
                what = f"shard {self.shard} of {self.library}"
                locks.enter_context(_locked(self.folder / "lock", what))
            try:
                yield
            finally:
                if self.shard is None and made and list(self.home.iterdir()) == [lock]:
                    lock.unlink()
                    for folder in reversed(made):
                        if not any(folder.iterdir()):
                            folder.rmdir()

    def shards(self) -> list[Shard]:
        """The shards that have worked here since the last run without shards."""
        names = os.listdir(self.shards_folder) if self.shards_folder.is_dir() else []
        found = [re.fullmatch(r"(\d+)-of-(\d+)", name) for name in names]
        numbers = sorted((int(match[2]), int(match[1])) for match in found if match)
        return [Shard(index, count) for count, index in numbers]

    def _check_count(self, shard: Shard) -> None:
        counts = {other.count for other in self.shards()} - {shard.count}
        if counts:
            raise InputError(
                f"--shard {shard}: {self.library} holds shards of {max(counts)}. Go on with "
                f"--shard i/{max(counts)}, or finish with the same command without --shard, which "
                "takes in what they have stored."
            )

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of this folder, or else of the library's; {} if it is absent."""
        for path in (self.folder / name, self.home / name):
            if path.is_file():
                return json.loads(path.read_bytes())
        return {}

    def write(self, name: str, content: dict[str, Any]) -> None:
        write_atomic(self.folder / name, json.dumps(content, indent=1) + "\n")

    def store_archive_lists(self, lists: dict[str, bytes]) -> None:
        """Keep the lists of an archive; from now on they outrank the visible ones."""
        known = self.read("lists.json")
        for split, data in lists.items():
            write_atomic(self.folder / list_name(split), data)
            visible = self.library / list_name(split)
            known[split] = [digest(data)]
            if visible.is_file():
                known[split].append(digest(visible.read_bytes()))
        self.write("lists.json", known)

    def original_list(self, split: str) -> bytes | None:
        """The list as it came: a visible one that we did not write outranks the one kept here."""
        visible = self.library / list_name(split)
        content = visible.read_bytes() if visible.is_file() else None
        known = self.read("lists.json").get(split, [])
        for stored in (self.folder / list_name(split), self.home / list_name(split)):
            if stored.is_file() and (content is None or digest(content) in known):
                return stored.read_bytes()
        return content

    def store_originals(self, originals: dict[str, bytes], finals: dict[str, bytes]) -> None:
        """Keep the originals before the visible lists are replaced by `finals`."""
        for split, data in originals.items():
            write_if_changed(self.folder / list_name(split), data)
        digests = {s: [digest(originals[s]), digest(finals[s])] for s in originals}
        if digests != self.read("lists.json"):
            self.write("lists.json", digests)

    def publish_lists(self, finals: dict[str, bytes]) -> None:
        """Write the visible lists."""
        for split, data in finals.items():
            write_if_changed(self.library / list_name(split), data)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Have the folder for videos being worked on; what a killed run left in it goes."""
        with disk_errors(f"emptying {self.incoming}"):
            shutil.rmtree(self.incoming, ignore_errors=True)
            self.incoming.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(self.incoming, ignore_errors=True)

    def journal_rows(self, *, own: bool = False) -> dict[tuple[str, str], dict[str, Any]]:
        """(split, source name) → the last row of each video; a shard knows the library's too."""
        rows = read_json_lines(self.journal)
        if self.shard is not None and not own:
            rows = read_json_lines(self.home / self.journal.name) + rows
        for row in rows:
            for name in ("split", "settings", "archive", "kind"):  # the same few in every row
                if isinstance(row.get(name), str):
                    row[name] = sys.intern(row[name])
        return {(row["split"], row["source"]): row for row in rows if "settings" in row}

    def add_rows(self, rows: list[dict[str, Any]]) -> None:
        """Append to the journal."""
        if rows:
            append_json_lines(self.journal, rows)

    def journal_bytes(self) -> int:
        return self.journal.stat().st_size if self.journal.exists() else 0

    def cut_journal(self, n_bytes: int) -> None:
        """Forget the rows that were added since the journal had `n_bytes`."""
        if n_bytes:
            os.truncate(self.journal, n_bytes)
        else:
            self.journal.unlink(missing_ok=True)

    def stored_path(self, row: dict[str, Any]) -> Path:
        """Where a journal row's video lies."""
        return split_root(self.library, row["split"]) / row["path"]

    def aside_path(self, split: str, name: str) -> Path:
        """Where an original that lay in the library moves when its pyramid takes its place."""
        return self.originals / videos_name(split) / name.lstrip("/")

    def moved_aside(self, original: Original) -> Original:
        """Move an original out of its pyramid's way; the rename is repeated after a kill."""
        aside = self.aside_path(original.split, original.name)
        if Path(original.path) == aside or not self._holds(Path(original.path)):
            return original
        if is_marked(original.path):
            return dataclasses.replace(original, is_stored=True)
        with disk_errors(f"moving {original.path} to {aside}"):
            aside.parent.mkdir(parents=True, exist_ok=True)
            older = aside
            while os.path.lexists(older):
                older = older.with_name(f"{older.name}~")
            if older != aside:
                os.rename(aside, older)
            os.rename(original.path, aside)
        return dataclasses.replace(original, path=str(aside))

    def _holds(self, path: Path) -> bool:
        """Whether a file lies in the library, however its path is written, and not yet aside."""
        folder = path.parent.resolve()
        return folder.is_relative_to(self.library.resolve()) and not folder.is_relative_to(
            self.originals.resolve()
        )

    def quarantine_parts(self, split: str, name: str) -> tuple[str, ...]:
        """Where a damaged video out of an archive is kept, below the library."""
        folder = self.folder.relative_to(self.library).parts
        return (*folder, "quarantine", videos_name(split), *name.split("/"))


@contextmanager
def _locked(path: Path, what: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock file: NFS locks files for all its clients, and folders for none."""
    descriptor = _open_locked(path, what, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def _open_locked(path: Path, what: str, operation: int) -> int:
    """Open and lock; raises `InputError` if another process holds it, or locks are missing."""
    while True:
        with disk_errors(f"creating {path}"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise InputError(f"another process is preprocessing {what}.") from error
        except OSError as error:
            os.close(descriptor)
            raise InputError(
                f"{path} cannot be locked ({error.strerror}). The file system must offer flock: "
                "NFS with its lock service, Lustre mounted with -o flock."
            ) from error
        os.close(descriptor)  # its holder has removed it since we opened it


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
