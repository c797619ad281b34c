"""Which names of an archive are accepted, what they are, and where they go."""

import re
import tarfile
import unicodedata
from collections.abc import Callable

from kinetics400.data.annotations import VIDEO_SUFFIXES
from kinetics400.data.library import SPLITS, list_name, videos_name
from kinetics400.errors import InputError

# C0 and C1 controls, line separators, and what Python makes of names that are not UTF-8.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
LIST_SPLIT = {list_name(split): split for split in SPLITS}
# A path's parts → "video", "list" or "other", and the place below the library.
Classify = Callable[[tuple[str, ...]], tuple[str, tuple[str, ...]]]
MAX_DEPTH = 4  # Kinetics-400/videos_train/<class>/<file>


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


def classify_kinetics(parts: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """What a path in Kinetics-400.tar.gz is, and where it goes.

    ("Kinetics-400", "videos_val", "a.mp4") → ("video", ("videos_val", "a.mp4"));
    a list file → ("list", (its name,)); a folder of videos → ("other", its path); anything else →
    ("other", ()).
    """
    folders = [videos_name(split) for split in SPLITS]
    inner = parts[1:] if len(parts) > 1 and parts[0] not in folders else parts
    if len(inner) == 1 and inner[0] in LIST_SPLIT:
        return "list", inner
    if inner and inner[0] in folders:
        if len(inner) > 1 and is_video(inner[-1]):
            return "video", inner
        return "other", inner
    return "other", ()


def is_video(name: str) -> bool:
    """Whether a file's name is a video's; "._a.mp4" is macOS metadata."""
    return name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith(".")


class Names:
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
