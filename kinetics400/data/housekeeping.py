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

Originals that lay in the library itself move to Kinetics-400/originals/, for the user to delete; an
older one of the same name gets a ~ after it.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    """The hidden folder of one library."""

    def __init__(self, library: Path) -> None:
        self.library = library
        self.folder = library / FOLDER
        self.journal = self.folder / "journal.jsonl"
        self.incoming = self.folder / "incoming"
        self.originals = library / "originals"
        self.quarantine_file = quarantine_path(library)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for one process; on leaving, folders made here and still empty go.

        Raises:
            InputError: another process holds it.
        """
        needed = (self.library.parent, self.library, self.folder)
        made = [folder for folder in needed if not folder.is_dir()]
        with disk_errors(f"creating {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"another process is preprocessing {self.library}.") from error
            yield
        finally:
            for folder in reversed(made):
                if not any(folder.iterdir()):
                    folder.rmdir()
            os.close(descriptor)

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of this folder; {} if it is absent."""
        path = self.folder / name
        return json.loads(path.read_bytes()) if path.is_file() else {}

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
        visible, stored = self.library / list_name(split), self.folder / list_name(split)
        content = visible.read_bytes() if visible.is_file() else None
        known = self.read("lists.json").get(split, [])
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

    def journal_rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(split, source name) → the last row of each video."""
        rows = read_json_lines(self.journal)
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
        return (FOLDER, "quarantine", videos_name(split), *name.split("/"))


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
