"""Unpack Kinetics-400.tar.gz, whole or in parts, as one stream that nobody has to trust.

Python's `extractall`, even with `filter="data"`, follows links that the archive itself plants (seen
on 3.11.7; CVE-2025-4330, CVE-2026-11940), so members are written by our own loop: regular files
only, under names we choose, each complete or absent.
"""

import os
import re
import stat
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from kinetics400.data.library import SPLITS, VIDEO_SUFFIXES, list_name, videos_name
from kinetics400.data.storage import disk_errors
from kinetics400.data.stream import CHUNK, TAR_END, GzipStream
from kinetics400.errors import Failure, InputError

# Bytes tarfile may read for one header: pax headers may claim any length, and it reads them whole.
HEADER_BUDGET = 8 * CHUNK
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
LIST_SPLIT = {list_name(split): split for split in SPLITS}
# What tarfile raises on headers that make no sense.
MALFORMED = (tarfile.TarError, ValueError, IndexError, OverflowError)
MAX_DEPTH = 4  # Kinetics-400/videos_train/<class>/<file>


@dataclass(frozen=True)
class Limits:
    """What an honest archive stays below."""

    members: int = 300_000
    file_bytes: int = 2 << 30
    # Videos do not compress: an honest archive unpacks to about its own size.
    growth: float = 1.26
    slack_bytes: int = 64 << 20


@dataclass
class Unpacked:
    """What one pass over the archive did."""

    written: int = 0
    kept: int = 0
    """Files already there with the same bytes, from an earlier run."""
    n_bytes: int = 0
    lists: dict[str, bytes] = field(default_factory=dict)
    """Split → bytes of its list file, names in Unicode NFC like the files."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Kinds of files that were not written → how many."""


def unpack(
    parts: list[Path],
    library: Path,
    staging: Path,
    *,
    on_list: Callable[[str, bytes], None],
    required_lists: Collection[str] = (),
    progress: Callable[[int], None] = lambda _: None,
    limits: Limits | None = None,
) -> Unpacked:
    """Unpack videos into `library`; list files are handed over, everything else is counted.

    Each file is written to `staging` (same file system), fsynced and renamed. A video that is
    already there with the same bytes is kept. (The same size is not enough: an archive with a bad
    CRC leaves files of the right size behind, and only the next, good archive tells them apart.)

    Args:
        parts: what `find_archive` returned.
        library: folder that gets videos_train/ and videos_val/; it exists.
        staging: folder for the one temporary file; it exists.
        required_lists: splits whose list files the archive must hold.
        on_list: called with split and bytes as soon as a list file is seen; may raise `InputError`.
        progress: called with the compressed bytes read so far.
        limits: what an honest archive stays below.

    Raises:
        InputError: hostile or unsuitable archive. All that this call wrote is removed again.
        DataError: truncated or damaged archive. Files before the damage stay.
        StorageError: disk full or failing. Finished files stay.
    """
    limits = limits or Limits()
    compressed = sum(part.stat().st_size for part in parts)
    stream = GzipStream(parts, int(compressed * limits.growth) + limits.slack_bytes, progress)
    writer = _Writer(library, staging)
    try:
        result = _unpack_members(stream, writer, on_list, limits)
        missing = sorted(set(required_lists) - result.lists.keys())
        if missing:
            names = " and ".join(list_name(split) for split in missing)
            raise InputError(f"{stream.name} does not contain {names}; nothing was kept.")
        writer.sync()
    except InputError:
        writer.roll_back()
        raise
    finally:
        writer.close()
        stream.close()
    return result


def _unpack_members(
    stream: GzipStream,
    writer: "_Writer",
    on_list: Callable[[str, bytes], None],
    limits: Limits,
) -> Unpacked:
    result = Unpacked()
    names = _Names()
    tar, member = _open_tar(stream)
    n_members = 0
    while member is not None:
        n_members += 1
        if n_members > limits.members:
            raise InputError(f"{stream.name} has more than {limits.members:,} members.")
        parts = safe_parts(member)
        kind, target = classify(parts)
        if member.isdir():
            if target:
                names.add_folder(target)
        else:
            if member.size > limits.file_bytes:
                raise InputError(f"{member.name!r} is {member.size:,} bytes: too large for a clip.")
            names.add_file(parts if kind == "other" else target)
            content = _Content(tar, member, stream)
            if kind == "list":
                split = LIST_SPLIT[target[0]]
                result.lists[split] = unicodedata.normalize(
                    "NFC", content.read_all().decode("utf-8", "surrogateescape")
                ).encode("utf-8", "surrogateescape")
                on_list(split, result.lists[split])
            elif kind == "video":
                written = writer.write(target, content)
                result.written += written
                result.kept += not written
                result.n_bytes += member.size
            else:
                result.ignored[os.path.splitext(parts[-1])[1].lower() or "no extension"] += 1
                content.skip()
        tar.members.clear()  # type: ignore[attr-defined]  # 300,000 of them are 300 MB
        member = _next_member(tar, stream)
    _check_end(tar, stream)
    return result


def _open_tar(stream: GzipStream) -> tuple[tarfile.TarFile, tarfile.TarInfo | None]:
    stream.header_budget = HEADER_BUDGET
    try:
        # "r|": forward only. tarfile sees plain bytes and never decompresses itself.
        tar = tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK)  # noqa: SIM115
    except Failure:  # from the stream itself; InputError is also a ValueError
        raise
    except MALFORMED as error:
        raise InputError(f"{stream.name} is compressed, but not a tar archive: {error}.") from error
    return tar, _next_member(tar, stream)


def _next_member(tar: tarfile.TarFile, stream: GzipStream) -> tarfile.TarInfo | None:
    stream.header_budget = HEADER_BUDGET
    try:
        return tar.next()
    except Failure:
        raise
    except MALFORMED as error:
        raise stream.damaged(f"a member's header is malformed ({error})") from error
    finally:
        stream.header_budget = None


def _check_end(tar: tarfile.TarFile, stream: GzipStream) -> None:
    """Read to the verified end of the gzip stream; a tar ends in zeros and in nothing else."""
    tail_is_zero = True
    while data := tar.fileobj.read(CHUNK):
        tail_is_zero = tail_is_zero and not data.strip(b"\0")
    if not tail_is_zero:
        raise stream.damaged("a header is damaged, or something follows the end of the tar")
    if stream.tail != TAR_END:
        raise stream.damaged("it is truncated: the tar has no end")


class _Content:
    """A member's bytes, exactly as many as its header says."""

    def __init__(self, tar: tarfile.TarFile, member: tarfile.TarInfo, stream: GzipStream) -> None:
        self.size = member.size
        self._name = member.name
        self._file = tar.extractfile(member)
        self._stream = stream

    def chunks(self) -> Iterator[bytes]:
        left = self.size
        while left:
            try:
                data = self._file.read(min(left, CHUNK)) if self._file else b""
            except tarfile.TarError:
                data = b""
            if not data:
                raise self._stream.damaged(f"it is truncated: {self._name!r} is incomplete")
            left -= len(data)
            yield data

    def read_all(self) -> bytes:
        return b"".join(self.chunks())

    def skip(self) -> None:
        for _ in self.chunks():
            pass


def safe_parts(member: tarfile.TarInfo) -> tuple[str, ...]:
    """A member's path, checked, as NFC parts.

    Raises:
        InputError: it is no regular file or folder, or its name could lead elsewhere.
    """
    name = member.name
    refuse = f"refused: the archive's member {name!r}"
    if member.sparse is not None or member.type not in (
        tarfile.REGTYPE,
        tarfile.AREGTYPE,
        tarfile.DIRTYPE,
    ):
        raise InputError(f"{refuse} is a link, device or other special file; nothing was kept.")
    if member.size < 0:
        raise InputError(f"{refuse} has a negative size; nothing was kept.")
    if CONTROL.search(name) or "\\" in name:
        raise InputError(f"{refuse} has a control character or backslash in its name.")
    if name.startswith("/"):
        raise InputError(f"{refuse} has an absolute path; nothing was kept.")
    parts = tuple(p for p in unicodedata.normalize("NFC", name).split("/") if p not in ("", "."))
    if ".." in parts:
        raise InputError(f"{refuse} has '..' in its path; nothing was kept.")
    if not parts and not member.isdir():
        raise InputError(f"{refuse} has no name.")
    if len(parts) > MAX_DEPTH:
        raise InputError(f"{refuse} lies more than {MAX_DEPTH} levels deep.")
    if any(len(part.encode()) > 255 for part in parts):
        raise InputError(f"{refuse} has a name of more than 255 bytes.")
    return parts


def classify(parts: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """What a path in the archive is, and where it goes.

    ("Kinetics-400", "videos_val", "a.mp4") → ("video", ("videos_val", "a.mp4"));
    a list file → ("list", (its name,)); a folder of videos → ("other", its path); anything else →
    ("other", ()).
    """
    folders = [videos_name(split) for split in SPLITS]
    inner = parts[1:] if len(parts) > 1 and parts[0] not in folders else parts
    if len(inner) == 1 and inner[0] in LIST_SPLIT:
        return "list", inner
    if inner and inner[0] in folders:
        hidden = inner[-1].startswith(".")  # "._a.mp4": macOS metadata, not a video
        if len(inner) > 1 and inner[-1].lower().endswith(VIDEO_SUFFIXES) and not hidden:
            return "video", inner
        return "other", inner
    return "other", ()


class _Names:
    """Refuses duplicates, names that differ only in case, and a file over a folder."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}

    def add_folder(self, parts: tuple[str, ...]) -> None:
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            if self._folders.setdefault(path.casefold(), path) != path:
                other = self._folders[path.casefold()]
                raise InputError(f"refused: folders {other!r} and {path!r} differ only in case.")
            if path.casefold() in self._files:
                raise InputError(f"refused: {path!r} is both a file and a folder in the archive.")

    def add_file(self, parts: tuple[str, ...]) -> None:
        self.add_folder(parts[:-1])
        path = "/".join(parts)
        folded = path.casefold()
        if folded in self._files or folded in self._folders:
            raise InputError(f"refused: {path!r} is in the archive twice, or differs only in case.")
        self._files.add(folded)


class _Writer:
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

    def write(self, parts: tuple[str, ...], content: _Content) -> bool:
        """Write one file unless it is there with the same bytes; returns whether it wrote."""
        with disk_errors(f"creating the folder {'/'.join(parts[:-1])}"):
            folder = self._open_folder(parts[:-1])
        try:
            chunks = content.chunks()
            with disk_errors(f"unpacking {'/'.join(parts)}"):
                if _regular_size(parts[-1], folder) == content.size:
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
