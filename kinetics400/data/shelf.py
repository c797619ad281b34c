"""Put finished files below a folder: complete or absent, never through a link, and revocable."""

import os
from pathlib import Path

from kinetics400.data.storage import disk_errors


class Shelf:
    """Places staged files in the library and can take all of them back.

    Args:
        library: folder that gets the files; it may itself be a link, which is the user's choice.
        staging: folder of the files to be placed, on the same file system.
    """

    def __init__(self, library: Path, staging: Path) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY
        self._root = os.open(library, flags)
        self._staging = os.open(staging, flags)
        # What was done, in order: a new file, or a file moved from one place to another.
        self._done: list[tuple[tuple[str, ...], tuple[str, ...] | None]] = []
        self._folders: list[tuple[str, ...]] = []
        self._touched: set[tuple[str, ...]] = {()}

    def close(self) -> None:
        os.close(self._root)
        os.close(self._staging)

    def place(
        self, staged: str, parts: tuple[str, ...], aside: tuple[str, ...] | None = None
    ) -> int:
        """Move a staged file to its place; returns its bytes.

        The file's content is durable before its name appears; the name is so after `sync`.

        Args:
            staged: its name in the staging folder.
            parts: its place below the library.
            aside: place for what is there already, which is replaced otherwise.
        """
        with disk_errors(f"storing {'/'.join(parts)}"):
            descriptor = os.open(staged, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._staging)
            try:
                os.fsync(descriptor)
                n_bytes = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
            if aside is not None:
                self._move(parts, aside)
            folder = self._open_folder(parts[:-1])
            try:
                new = not _exists(parts[-1], folder)
                os.rename(staged, parts[-1], src_dir_fd=self._staging, dst_dir_fd=folder)
            finally:
                os.close(folder)
        if new:
            self._done.append((parts, None))
        self._touched.add(parts[:-1])
        return n_bytes

    def _move(self, parts: tuple[str, ...], to: tuple[str, ...]) -> None:
        folders = [self._open_folder(parts[:-1])]
        try:
            if not _exists(parts[-1], folders[0]):
                return
            folders.append(self._open_folder(to[:-1]))
            while _exists(to[-1], folders[1]):
                to = (*to[:-1], f"{to[-1]}~")
            os.rename(parts[-1], to[-1], src_dir_fd=folders[0], dst_dir_fd=folders[1])
        finally:
            for folder in folders:
                os.close(folder)
        self._done.append((parts, to))
        self._touched |= {parts[:-1], to[:-1]}

    def sync(self) -> None:
        """Make all names durable."""
        with disk_errors("storing videos"):
            while self._touched:
                folder = self._open_folder(self._touched.pop())
                os.fsync(folder)
                os.close(folder)

    def roll_back(self) -> None:
        """Remove every file and folder that was not there before; undo every move."""
        done, self._done = self._done, []
        for parts, moved_to in reversed(done):
            if moved_to is not None:
                self._move(moved_to, parts)
                continue
            folder = self._open_folder(parts[:-1])
            os.unlink(parts[-1], dir_fd=folder)
            os.close(folder)
        for parts in reversed(self._folders):
            folder = self._open_folder(parts[:-1])
            os.rmdir(parts[-1], dir_fd=folder)
            os.close(folder)

    def _open_folder(self, parts: tuple[str, ...]) -> int:
        """Open a folder below the library, creating it; the caller closes it."""
        folder = os.dup(self._root)
        try:
            for depth, part in enumerate(parts, 1):
                try:
                    os.mkdir(part, 0o755, dir_fd=folder)
                    self._folders.append(parts[:depth])
                    self._touched.add(parts[: depth - 1])
                except FileExistsError:
                    pass
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                inner = os.open(part, flags, dir_fd=folder)
                os.close(folder)
                folder = inner
        except BaseException:
            os.close(folder)
            raise
        return folder


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
