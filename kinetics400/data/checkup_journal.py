"""What earlier check-ups found out about files that have not changed since. No torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinetics400.data.library import HIDDEN
from kinetics400.data.storage import append_json_lines, disk_errors, read_json_lines


class CheckupJournal:
    """One row per file, keyed by its path, size and modification time; the last row counts.

    Written in batches, so that a killed run continues. In a folder that cannot be written nothing
    is remembered, and `is_kept` says so.
    """

    def __init__(self, library: Path, name: str, *, flush_every: int = 5000) -> None:
        self.flush_every = flush_every
        self.path = library / HIDDEN / name
        folder = self.path.parent
        self.is_kept = os.access(folder if folder.is_dir() else library, os.W_OK)
        self._rows = {
            (row["path"], row["n_bytes"], row["mtime_ns"]): row
            for row in read_json_lines(self.path)
            if isinstance(row.get("path"), str)
            and all(isinstance(row.get(name), int) for name in ("n_bytes", "mtime_ns"))
        }
        self._new: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, path: str, n_bytes: int, mtime_ns: int) -> Mapping[str, Any] | None:
        """The row of a file; None if it is unknown or has changed."""
        return self._rows.get((path, n_bytes, mtime_ns))

    def add(self, path: str, n_bytes: int, mtime_ns: int, **values: Any) -> None:
        """Remember a file."""
        row = {"path": path, "n_bytes": n_bytes, "mtime_ns": mtime_ns, **values}
        self._rows[path, n_bytes, mtime_ns] = row
        self._new.append(row)
        if len(self._new) >= self.flush_every:
            self.flush()

    def flush(self) -> None:
        """Write what is new."""
        if self._new and self.is_kept:
            with disk_errors(f"creating {self.path.parent}"):
                self.path.parent.mkdir(exist_ok=True)
            append_json_lines(self.path, self._new)
        self._new = []
