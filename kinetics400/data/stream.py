"""The archive as one stream: its parts joined, decompressed, and checked to the last byte."""

import io
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from kinetics400.data.library import ARCHIVE_NAME
from kinetics400.data.storage import disk_errors
from kinetics400.errors import DataError, InputError

CHUNK = 1 << 20
READ_BYTES = 1 << 18
TAR_END = bytes(1024)  # two zero blocks end a tar


def find_archive(data_dir: Path | str) -> list[Path]:
    """The archive in `data_dir`: one file, its parts in order, or nothing.

    Raises:
        InputError: a part is missing in the sequence .0000, .0001 …
    """
    whole = Path(data_dir) / ARCHIVE_NAME
    if whole.is_file():
        return [whole]
    if not whole.parent.is_dir():
        return []
    pattern = re.compile(re.escape(ARCHIVE_NAME) + r"\.(\d+)")
    numbered: dict[int, Path] = {}
    for path in sorted(whole.parent.iterdir()):
        if match := pattern.fullmatch(path.name):
            if int(match[1]) in numbered:
                raise InputError(f"{path} and {numbered[int(match[1])]} are both part {match[1]}.")
            numbered[int(match[1])] = path
    missing = [n for n in range(max(numbered, default=-1) + 1) if n not in numbered]
    if missing:
        names = ", ".join(f"{ARCHIVE_NAME}.{n:04d}" for n in missing[:10])
        raise InputError(f"{len(missing)} part(s) of the archive missing in {data_dir}: {names}.")
    return [numbered[n] for n in sorted(numbered)]


def identity(parts: list[Path]) -> list[list[object]]:
    """Name, size and modification time of each part: the same list means the same archive."""
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in parts]


class GzipStream(io.RawIOBase):
    """Bytes of a gzip stream that lies in several files, with CRC, end and size checked.

    Raises (from `read`):
        InputError: it is no gzip, or it inflates to more than `max_bytes`.
        DataError: it is truncated, damaged, or followed by something else.
        StorageError: a part cannot be read.
    """

    def __init__(self, parts: list[Path], max_bytes: int, progress: Callable[[int], None]) -> None:
        self.parts = list(parts)
        self.name = parts[0].name
        self.max_bytes = max_bytes
        self.progress = progress
        self.compressed = 0  # bytes read from the parts
        self.inflated = 0
        self.header_budget: int | None = None
        self.tail = b""  # the last bytes handed out: a complete tar ends in zeros
        self._file: IO[bytes] | None = None
        self._pending = b""  # read, not yet given to the decompressor
        self._step = READ_BYTES  # how much of it is given at once
        self._inflate = zlib.decompressobj(wbits=31)  # 31: gzip with its CRC and length

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; empty at the verified end of the stream."""
        while True:
            if self._inflate.eof and not self._next_member():
                return b""
            if not self._pending:
                self._pending = self._read_raw()
                if not self._pending:
                    raise self.damaged("it is truncated: the compressed stream has no end")
            data = self._decompress(size if size > 0 else CHUNK)
            if data:
                return self._account(data)

    def damaged(self, what: str) -> DataError:
        """The error for a damaged archive, with the place."""
        return DataError(
            f"{self.name}: {what}, near byte {self.compressed - len(self._pending):,} of the "
            f"archive (byte {self.inflated:,} unpacked). The files before it are kept; replace "
            "the archive and repeat the command: it continues."
        )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def _decompress(self, size: int) -> bytes:
        """Take one step through what is pending; every byte before a damage comes out."""
        at_start = self.compressed == len(self._pending)
        if at_start and not b"\x1f\x8b".startswith(self._pending[:2]):
            raise InputError(
                f"{self.name} is not a gzip archive. Download it again; data/README.md says where "
                "it comes from."
            )
        while True:
            piece, rest = self._pending[: self._step], self._pending[self._step :]
            # zlib drops the good output that precedes an error in the same call, so an error
            # takes us back, to shorter and shorter pieces.
            before = self._inflate.copy()
            try:
                data = self._inflate.decompress(piece, size)
            except zlib.error as error:
                if len(piece) == 1:
                    raise self.damaged(f"the compressed stream is damaged ({error})") from error
                self._inflate, self._step = before, len(piece) // 2
                continue
            self._pending = (self._inflate.unconsumed_tail or self._inflate.unused_data) + rest
            return data

    def _account(self, data: bytes) -> bytes:
        self.inflated += len(data)
        if self.inflated > self.max_bytes:
            raise InputError(
                f"{self.name} inflates to more than {self.max_bytes:,} bytes, far beyond its own "
                "size: videos do not compress like that. Refused."
            )
        if self.header_budget is not None:
            self.header_budget -= len(data)
            if self.header_budget < 0:
                raise InputError(f"refused: {self.name} has a member with an endless header.")
        self.tail = (self.tail + data)[-len(TAR_END) :] if len(data) < 1024 else data[-1024:]
        return data

    def _read_raw(self) -> bytes:
        while True:
            with disk_errors(f"reading {self.name}"):
                if self._file is None:
                    if not self.parts:
                        return b""
                    self.name = self.parts[0].name
                    self._file = open(self.parts.pop(0), "rb")  # noqa: SIM115
                data = self._file.read(READ_BYTES)
                if not data:
                    self._file.close()
                    self._file = None
            if data:
                self.compressed += len(data)
                self.progress(self.compressed)
                return data

    def _next_member(self) -> bool:
        """After a gzip member's end: whether another one follows (gzip files may be joined)."""
        while True:
            self._pending = self._pending.lstrip(b"\0")  # padding of tapes and block devices
            if self._pending:
                break
            self._pending = self._read_raw()
            if not self._pending:
                return False
        if not (self._pending.startswith(b"\x1f\x8b") or self._pending == b"\x1f"):
            raise self.damaged("something that is not gzip follows the end of the stream")
        self._inflate = zlib.decompressobj(wbits=31)
        return True
