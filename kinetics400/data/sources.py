"""Where original videos come from: an archive, CVDF's many archives, or a folder of files.

Originals are handed out one after the other. Those of an archive are spooled to a file of their
own, which lives until its video is stored: at no time do more lie on disk than are being worked on.
"""

import hashlib
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kinetics400.data.archive import Content, Contents, read_archive
from kinetics400.data.library import SPLITS, video_files, videos_name
from kinetics400.data.listing import ANNOTATION_FOLDERS
from kinetics400.data.member_names import Classify, classify_kinetics, is_video
from kinetics400.data.storage import disk_errors
from kinetics400.data.stream import find_archive
from kinetics400.errors import InputError

CVDF_PART = re.compile(r"part_(\d+)\.tar\.gz")
CVDF_REPLACEMENT = "replacement_for_corrupted_k400.tgz"


@dataclass(frozen=True)
class Original:
    """One source video, ready to be read."""

    split: str
    name: str
    """Below the split's folder of the source, or absolute."""
    path: str
    sha256: str | None
    """Of a spooled file, which is removed when its video is stored; None for a file in place."""
    n_bytes: int
    mtime_ns: int = 0
    place: str = ""
    """Where it is stored below its split's folder; empty for its name."""
    archive: str = ""
    """Name of the archive that it came in."""
    is_stored: bool = False
    """It lies in the library and says that it is a pyramid: it is verified and kept. (From
    elsewhere even such a file is stored anew: its bytes are not ours.)"""


@dataclass(frozen=True)
class ArchiveUnit:
    """One gzip stream of videos; read as a whole or again."""

    parts: tuple[Path, ...]
    classify: Classify = classify_kinetics
    has_lists: bool = False
    folder: str = ""
    """Of CVDF's archives, two of which may have one file name."""

    @property
    def name(self) -> str:
        return os.path.join(self.folder, self.parts[0].name)

    def identity(self) -> list[list[object]]:
        """Name, size and modification time of each part: the same list means the same archive."""
        status = [(os.path.join(self.folder, path.name), path.stat()) for path in self.parts]
        return [[name, s.st_size, s.st_mtime_ns] for name, s in status]

    @property
    def n_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.parts)


@dataclass(frozen=True)
class Folder:
    """Videos that lie in a folder."""

    root: Path

    def split_root(self, split: str) -> Path:
        """Folder that a split's relative names start from: videos_<split>, <split>, or the root."""
        for name in (videos_name(split), split):
            if (self.root / name).is_dir():
                return self.root / name
        return self.root

    def has_splits(self) -> bool:
        return any(self.split_root(split) != self.root for split in SPLITS)


@dataclass(frozen=True)
class Cvdf:
    """CVDF's archives, still packed: <split>/part_<n>.tar.gz, and one with replacements."""

    root: Path
    parts: dict[str, tuple[Path, ...]]
    replacement: Path | None

    def split_root(self, split: str) -> Path:
        """Folder of a split's archives."""
        return self.root / split

    def units(self, listed: Mapping[str, Container[str]]) -> list[ArchiveUnit]:
        """The archives in the order in which they count: the first video of a name is the one.

        Args:
            listed: names per split; they tell which split a replacement belongs to.
        """
        units = []
        if self.replacement is not None:
            units.append(ArchiveUnit((self.replacement,), _by_list(listed)))
        for split, parts in self.parts.items():
            units += [ArchiveUnit((part,), _into(split), folder=split) for part in parts]
        return units


def find_source(path: Path) -> ArchiveUnit | Cvdf | Folder | None:
    """What kind of source `path` is: an archive file, or a folder with one, or with videos.

    Raises:
        InputError: parts of an archive are missing.
    """
    if path.is_file():
        return ArchiveUnit((path,), has_lists=True)
    if archive := find_archive(path):
        return ArchiveUnit(tuple(archive), has_lists=True)
    if cvdf := _find_cvdf(path):
        return cvdf
    folder = Folder(path)
    if folder.has_splits() or next(video_files(path), None) is not None:
        return folder
    return None


def _find_cvdf(root: Path) -> Cvdf | None:
    found: dict[str, tuple[Path, ...]] = {}
    for split in SPLITS:
        numbered = {
            int(match[1]): path
            for path in (root / split).glob("part_*.tar.gz")
            if (match := CVDF_PART.fullmatch(path.name))
        }
        if numbered:
            missing = [n for n in range(max(numbered)) if n not in numbered]
            if missing:
                names = ", ".join(f"part_{n}.tar.gz" for n in missing[:10])
                raise InputError(f"{len(missing)} archive(s) missing in {root / split}: {names}.")
            found[split] = tuple(numbered[n] for n in sorted(numbered))
    if not found:
        return None
    places = [root, *(root / name for name in ("replacement", *ANNOTATION_FOLDERS))]
    replacement = [place / CVDF_REPLACEMENT for place in places]
    return Cvdf(root, found, next((path for path in replacement if path.is_file()), None))


def _into(split: str) -> Classify:
    def classify(parts: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        if parts and is_video(parts[-1]):
            return "video", (videos_name(split), parts[-1])
        return "other", ()

    return classify


def _by_list(listed: Mapping[str, Container[str]]) -> Classify:
    def classify(parts: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        for split, names in listed.items():
            if parts and parts[-1] in names:
                return "video", (videos_name(split), parts[-1])
        return "other", ()

    return classify


def spooled(
    unit: ArchiveUnit,
    contents: Contents,
    folder: Path,
    *,
    skip: Container[tuple[str, str]],
    on_list: Callable[[str, bytes], None],
    required_lists: list[str],
    progress: Callable[[int], None],
) -> Iterator[Original]:
    """Yield an archive's videos, each in a file of its own in `folder`.

    Args:
        unit: the archive.
        contents: see `read_archive`, as for the arguments below.
        folder: gets the files; whoever takes an original removes its file.
        skip: (split, name) of videos that another archive has already given.
        on_list: called with split and bytes of a list file.
        required_lists: splits whose list files must be there.
        progress: called with the compressed bytes read so far.

    Raises:
        InputError, DataError, StorageError: see `read_archive`.
    """
    split_of = {videos_name(split): split for split in SPLITS}
    members = read_archive(
        list(unit.parts),
        contents,
        classify=unit.classify,
        on_list=on_list,
        required_lists=required_lists,
        progress=progress,
    )
    for number, (parts, content) in enumerate(members):
        split, name = split_of[parts[0]], "/".join(parts[1:])
        if (split, name) in skip:
            continue
        # Our own name: an archive's could be anything.
        path = folder / f"{number}{os.path.splitext(name)[1].lower()}"
        sha256, n_bytes = _spool(content, path)
        yield Original(split, name, str(path), sha256, n_bytes, archive=unit.name)


def _spool(content: Content, path: Path) -> tuple[str, int]:
    digest, n_bytes = hashlib.sha256(), 0
    try:
        with disk_errors(f"spooling to {path}"), open(path, "xb") as file:
            for data in content.chunks():
                file.write(data)
                digest.update(data)
                n_bytes += len(data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return digest.hexdigest(), n_bytes
