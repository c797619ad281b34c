"""Unpack Kinetics-400.tar.gz, whole or in parts, as one stream that nobody has to trust.

Python's `extractall`, even with `filter="data"`, follows links that the archive itself plants (seen
on 3.11.7; CVE-2025-4330, CVE-2026-11940), so members are written by our own loop: regular files
only, under names we choose, each complete or absent.
"""

import os
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kinetics400.data.library import list_name
from kinetics400.data.member_names import LIST_SPLIT, Names, classify, safe_parts
from kinetics400.data.safe_writer import SafeWriter
from kinetics400.data.stream import CHUNK, TAR_END, GzipStream
from kinetics400.errors import Failure, InputError

# Bytes tarfile may read for one header: pax headers may claim any length, and it reads them whole.
HEADER_BUDGET = 8 * CHUNK
# What tarfile raises on headers that make no sense.
MALFORMED = (tarfile.TarError, ValueError, IndexError, OverflowError)


@dataclass(frozen=True)
class Limits:
    """What an honest archive stays below."""

    members: int = 300_000
    file_bytes: int = 2 << 30
    list_bytes: int = 64 << 20
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
    writer = SafeWriter(library, staging)
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
    writer: SafeWriter,
    on_list: Callable[[str, bytes], None],
    limits: Limits,
) -> Unpacked:
    result = Unpacked()
    names = Names()
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
            most = limits.list_bytes if kind == "list" else limits.file_bytes
            if member.size > most:
                raise InputError(f"{member.name!r} is {member.size:,} bytes; at most {most:,}.")
            names.add_file(parts if kind == "other" else target)
            content = _Content(tar, member, stream)
            if kind == "list":
                split = LIST_SPLIT[target[0]]
                result.lists[split] = unicodedata.normalize(
                    "NFC", content.read_all().decode("utf-8", "surrogateescape")
                ).encode("utf-8", "surrogateescape")
                on_list(split, result.lists[split])
            elif kind == "video":
                written = writer.write(target, member.size, content.chunks())
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
