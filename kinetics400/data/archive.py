"""Read Kinetics-400.tar.gz, whole or in parts, as one stream that nobody has to trust.

Python's `extractall`, even with `filter="data"`, follows links that the archive itself plants (seen
on 3.11.7; CVE-2025-4330, CVE-2026-11940), so members are read by our own loop: regular files
only, under names we choose.
"""

import os
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from kinetics400.data.library import list_name
from kinetics400.data.member_names import (
    LIST_SPLIT,
    Classify,
    Names,
    classify_kinetics,
    safe_parts,
)
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
class Contents:
    """What an archive holds besides videos; filled while it is read."""

    lists: dict[str, bytes] = field(default_factory=dict)
    """Split → bytes of its list file, names in Unicode NFC like the files."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Kinds of files that are neither video nor list → how many."""


def read_archive(
    parts: list[Path],
    contents: Contents,
    *,
    classify: Classify = classify_kinetics,
    on_list: Callable[[str, bytes], None] = lambda split, data: None,
    required_lists: Collection[str] = (),
    progress: Callable[[int], None] = lambda _: None,
    limits: Limits | None = None,
) -> Generator[tuple[tuple[str, ...], "Content"], None, None]:
    """Yield each video's place below the library and its bytes, in the archive's order.

    The bytes must be taken before the next video is asked for.

    Args:
        parts: what `find_archive` returned.
        contents: gets the lists and the counts of what else there is.
        classify: what a member is and where it goes.
        on_list: called with split and bytes as soon as a list file is seen; may raise `InputError`.
        required_lists: splits whose list files the archive must hold.
        progress: called with the compressed bytes read so far.
        limits: what an honest archive stays below.

    Raises:
        InputError: hostile or unsuitable archive: nothing of it should be kept.
        DataError: truncated or damaged archive. What came before the damage is good.
        StorageError: the archive cannot be read.
    """
    limits = limits or Limits()
    compressed = sum(part.stat().st_size for part in parts)
    stream = GzipStream(parts, int(compressed * limits.growth) + limits.slack_bytes, progress)
    with closing(stream):
        yield from _videos(stream, contents, classify, on_list, limits)
        missing = sorted(set(required_lists) - contents.lists.keys())
        if missing:
            names = " and ".join(list_name(split) for split in missing)
            raise InputError(f"{stream.name} does not contain {names}; nothing was kept.")


def _videos(
    stream: GzipStream,
    contents: Contents,
    classify: Classify,
    on_list: Callable[[str, bytes], None],
    limits: Limits,
) -> Iterator[tuple[tuple[str, ...], "Content"]]:
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
            content = Content(tar, member, stream)
            if kind == "list":
                split = LIST_SPLIT[target[0]]
                contents.lists[split] = unicodedata.normalize(
                    "NFC", content.read_all().decode("utf-8", "surrogateescape")
                ).encode("utf-8", "surrogateescape")
                on_list(split, contents.lists[split])
            elif kind == "video":
                yield target, content
            else:
                contents.ignored[os.path.splitext(parts[-1])[1].lower() or "no extension"] += 1
            content.skip()
        tar.members.clear()  # type: ignore[attr-defined]  # 300,000 of them are 300 MB
        member = _next_member(tar, stream)
    _check_end(tar, stream)


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


class Content:
    """A member's bytes, exactly as many as its header says."""

    def __init__(self, tar: tarfile.TarFile, member: tarfile.TarInfo, stream: GzipStream) -> None:
        self._left = member.size
        self._name = member.name
        self._file = tar.extractfile(member)
        self._stream = stream

    def chunks(self) -> Iterator[bytes]:
        """What has not been read yet.

        Raises:
            DataError: the archive ends or is damaged in the middle of it.
        """
        while self._left:
            try:
                data = self._file.read(min(self._left, CHUNK)) if self._file else b""
            except tarfile.TarError:
                data = b""
            if not data:
                raise self._stream.damaged(f"it is truncated: {self._name!r} is incomplete")
            self._left -= len(data)
            yield data

    def read_all(self) -> bytes:
        return b"".join(self.chunks())

    def skip(self) -> None:
        for _ in self.chunks():
            pass
