"""What preprocessing remembers between runs, in the hidden folder Kinetics-400/.preprocess/.

unpacked.json      the archive that was unpacked, and what was in it
*_list_videos.txt  the lists as they came (the visible ones hold usable videos only)
lists.json         digests that tell our own visible list from one the user has put there
verified.jsonl     one line per video that decodes: a rerun continues from it
quarantine.jsonl   one line per video that is not used, with the reason
quarantine/        the damaged files themselves
done.json          the marker: written last
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kinetics400.data.library import (
    Quarantined,
    list_name,
    read_quarantine,
    videos_name,
)
from kinetics400.data.storage import (
    append_json_lines,
    disk_errors,
    read_json_lines,
    write_atomic,
)
from kinetics400.errors import InputError

FOLDER = ".preprocess"


class Housekeeping:
    """The hidden folder of one library."""

    def __init__(self, library: Path) -> None:
        self.library = library
        self.folder = library / FOLDER
        self.journal = self.folder / "verified.jsonl"
        self.quarantine_file = self.folder / "quarantine.jsonl"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for one process; on leaving, folders made here and still empty go.

        Raises:
            InputError: another process holds it.
        """
        made = [f for f in (self.library, self.folder) if not f.is_dir()]
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
            if not _holds(self.folder / list_name(split), data):
                write_atomic(self.folder / list_name(split), data)
        digests = {s: [digest(originals[s]), digest(finals[s])] for s in originals}
        if digests != self.read("lists.json"):
            self.write("lists.json", digests)

    def publish_lists(self, finals: dict[str, bytes]) -> None:
        """Write the visible lists."""
        for split, data in finals.items():
            if not _holds(self.library / list_name(split), data):
                write_atomic(self.library / list_name(split), data)

    def verified(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(split, name) → (size, mtime in ns) of every video that was found usable."""
        fields = ("split", "path", "size", "mtime_ns")
        return {
            (row["split"], row["path"]): (row["size"], row["mtime_ns"])
            for row in read_json_lines(self.journal)
            if all(field in row for field in fields)
        }

    def add_verified(self, rows: list[dict[str, Any]]) -> None:
        """Append to the journal of usable videos."""
        append_json_lines(self.journal, rows)

    def quarantine_path(self, split: str, name: str) -> Path:
        """Where a damaged file is kept."""
        return self.folder / "quarantine" / videos_name(split) / name

    def quarantined(self) -> dict[tuple[str, str], Quarantined]:
        """Videos of earlier runs whose damaged file was moved away."""
        rows = read_quarantine(self.quarantine_file)
        return {
            (row.split, row.path): row
            for row in rows
            if not os.path.isabs(row.path) and self.quarantine_path(row.split, row.path).exists()
        }

    def move_to_quarantine(self, video: Quarantined, path: str) -> None:
        """Move a damaged file out of the visible tree; a file outside of it stays where it is."""
        if os.path.isabs(video.path) or not os.path.lexists(path):
            return
        target = self.quarantine_path(video.split, video.path)
        with disk_errors(f"moving {path} to {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)  # videos_<split> may be a link to another file system


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data
