"""Write files below a folder: complete or absent, never through a link, and revocable."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from kinetics400.data.storage import disk_errors


class SafeWriter:
    """Writes files below the library, never through a link, and can take all of them back."""

    def __init__(self, library: Path, staging: Path) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY
        self._root = os.open(library, flags)  # the folder itself may be a link: the user's choice
        self._staging = os.open(staging, flags)
        self._files: list[tuple[str, ...]] = []
        self._folders: list[tuple[str, ...]] = []
        self._touched: set[tuple[str, ...]] = {()}

    def close(self) -> None:
        os.close(self._root)
        os.close(self._staging)

    def write(self, parts: tuple[str, ...], size: int, chunks: Iterator[bytes]) -> bool:
        """Write one file unless it is there with the same bytes; returns whether it wrote."""
        with disk_errors(f"creating the folder {'/'.join(parts[:-1])}"):
            folder = self._open_folder(parts[:-1])
        try:
            with disk_errors(f"unpacking {'/'.join(parts)}"):
                if _regular_size(parts[-1], folder) == size:
                    different = _unless_equal(parts[-1], folder, chunks)
                    if different is None:
                        return False
                    chunks = different
                self._write_temporary(chunks)
                os.rename("unpack.tmp", parts[-1], src_dir_fd=self._staging, dst_dir_fd=folder)
            self._files.append(parts)
            self._touched.add(parts[:-1])
            return True
        finally:
            os.close(folder)

    def sync(self) -> None:
        """Make all names durable."""
        with disk_errors("unpacking"):
            for parts in self._touched:
                folder = self._open_folder(parts)
                os.fsync(folder)
                os.close(folder)

    def roll_back(self) -> None:
        """Remove every file and folder that was written."""
        for parts in self._files:
            folder = self._open_folder(parts[:-1])
            os.unlink(parts[-1], dir_fd=folder)
            os.close(folder)
        for parts in reversed(self._folders):
            folder = self._open_folder(parts[:-1])
            os.rmdir(parts[-1], dir_fd=folder)
            os.close(folder)

    def _write_temporary(self, chunks: Iterator[bytes]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with suppress(FileNotFoundError):
            os.unlink("unpack.tmp", dir_fd=self._staging)  # a killed run's
        descriptor = os.open("unpack.tmp", flags, 0o644, dir_fd=self._staging)
        try:
            with open(descriptor, "wb") as file:
                for data in chunks:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            os.unlink("unpack.tmp", dir_fd=self._staging)
            raise

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


def _regular_size(name: str, folder: int) -> int | None:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _unless_equal(name: str, folder: int, chunks: Iterator[bytes]) -> Iterator[bytes] | None:
    """None when the file holds exactly `chunks`; else all of them again, its equal start too."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    with open(descriptor, "rb") as file:
        for data in chunks:
            equal = file.tell()
            if file.read(len(data)) != data:
                break
        else:
            return None
        file.seek(0)
        start = file.read(equal)  # below Limits.file_bytes, and rare
    return chain([start, data], chunks)
