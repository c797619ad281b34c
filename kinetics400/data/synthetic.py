"""The embedded motion dataset (data/motion.py), written as an archive in Kinetics-400's layout."""

import gzip
import io
import multiprocessing
import string
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np

from kinetics400.data.library import LIBRARY_NAME, SPLITS, list_name, videos_name
from kinetics400.data.motion import MOTION_CLASSES, draw_scene, render_video
from kinetics400.data.storage import replaced_file
from kinetics400.errors import InputError

# One video in 16 is short, and one in 16 has a name that starts with "-": by position in the list
# rather than by chance, so that the smallest archive has both.
PERIOD, SHORT_POSITION, DASH_POSITION = 16, 7, 3


def encode_video(frames: np.ndarray, file: str | Path | BinaryIO, fps: Fraction) -> None:
    """Encode (T, H, W, 3) uint8 frames of even sides as an H.264 MP4, the same bytes every time."""
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise InputError(
            f"yuv420p needs even sides, not {width}x{height}: crop the odd row or column"
        )
    # The same bytes need one thread, a container without creation time or version, and x264 without
    # its CPU-specific macroblock-tree code: with AVX-512, where the sides are no multiples of 16,
    # that gave another file at almost every call (measured).
    with av.open(
        str(file) if isinstance(file, Path) else file,
        "w",
        format="mp4",
        container_options={"fflags": "+bitexact"},
    ) as container:
        stream = container.add_stream(
            "libx264",
            rate=fps,
            options={
                "preset": "veryfast",
                "crf": "20",
                "threads": "1",
                "g": "250",
                "x264-params": "cpu-independent=1",
            },
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@dataclass(frozen=True)
class Entry:
    """One line of a list file, and the key of the scene behind it."""

    name: str
    label: int
    key: tuple[int, ...]
    short: bool


def plan_split(split: str, n_per_class: int, seed: int) -> list[Entry]:
    """Return a split's videos in the order of its list: classes shuffled, names like YouTube's."""
    rng = np.random.default_rng((seed, SPLITS.index(split)))
    labels = rng.permutation(np.repeat(np.arange(len(MOTION_CLASSES)), n_per_class))
    alphabet = np.array(list(string.ascii_letters + string.digits + "-_"))
    entries: list[Entry] = []
    taken: set[str] = set()
    for position, label in enumerate(labels):
        name = "-" if position % PERIOD == DASH_POSITION else ""
        while len(name) < 11 or name.lower() in taken:  # lower: case-blind file systems exist
            name = name[: 10 if len(name) == 11 else None] + str(rng.choice(alphabet))
        taken.add(name.lower())
        key = (seed, SPLITS.index(split), position)
        short = position % PERIOD == SHORT_POSITION
        entries.append(Entry(f"{name}.mp4", int(label), key, short))
    return entries


def make_video(entry: Entry) -> bytes:
    """Draw and encode one video, in a worker process."""
    scene = draw_scene(entry.label, entry.key, short=entry.short)
    file = io.BytesIO()
    encode_video(render_video(scene), file, scene.fps)
    return file.getvalue()


def make_videos(entries: list[Entry], n_worker: int) -> Iterator[bytes]:
    """Yield the videos in order, drawn by n_worker spawned processes, or here when 0."""
    if n_worker == 0:
        yield from map(make_video, entries)
        return
    # Spawned, not forked: the caller may have threads, and torch in memory.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_worker, mp_context=context) as pool:
        yield from pool.map(make_video, entries, chunksize=8)


def add_member(archive: tarfile.TarFile, name: str, content: bytes | None) -> None:
    """Add a file, or a folder when content is None, with the same metadata at any time."""
    member = tarfile.TarInfo(f"{LIBRARY_NAME}/{name}".rstrip("/"))
    if content is None:
        member.type, member.mode = tarfile.DIRTYPE, 0o755
    else:
        member.size, member.mode = len(content), 0o644
    archive.addfile(member, None if content is None else io.BytesIO(content))


def write_archive(
    path: str | Path,
    *,
    n_train_per_class: int,
    n_val_per_class: int,
    seed: int = 0,
    n_worker: int = 0,
    on_video: Callable[[int, int], None] | None = None,
) -> None:
    """Write the dataset as one .tar.gz in Kinetics-400's layout, whole or not at all.

    The bytes depend on the counts and the seed only (and on the versions of numpy and x264), not
    on n_worker. Processes are spawned: call it from below `if __name__ == "__main__":`.

    Args:
        path: the archive, usually .../Kinetics-400.tar.gz; an existing file is replaced.
        n_train_per_class: training videos of each class.
        n_val_per_class: validation videos of each class.
        seed: not negative.
        n_worker: processes that draw and encode; 0 does it in this process.
        on_video: called with (videos written, videos in all) after each video.

    Raises:
        InputError: a count or the seed is out of range.
        StorageError: the archive cannot be written; nothing is left behind.
    """
    allowed = {"n_train_per_class": 1, "n_val_per_class": 1, "seed": 0, "n_worker": 0}
    given = (n_train_per_class, n_val_per_class, seed, n_worker)
    problems = [
        f"{name} must be at least {least}, not {value}"
        for (name, least), value in zip(allowed.items(), given, strict=True)
        if value < least
    ]
    if problems:
        raise InputError("; ".join(problems))
    counts = dict(zip(SPLITS, (n_train_per_class, n_val_per_class), strict=True))
    lists = {split: plan_split(split, n, seed) for split, n in counts.items()}
    names = [f"{videos_name(split)}/{entry.name}" for split in SPLITS for entry in lists[split]]
    videos = make_videos([entry for split in SPLITS for entry in lists[split]], n_worker)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with (
        replaced_file(path) as file,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for folder in ("", *map(videos_name, SPLITS)):
            add_member(archive, folder, None)
        for split, entries in lists.items():
            lines = "".join(f"{entry.name} {entry.label}\n" for entry in entries)
            add_member(archive, list_name(split), lines.encode())
        for done, (name, video) in enumerate(zip(names, videos, strict=True), start=1):
            add_member(archive, name, video)
            if on_video is not None:
                on_video(done, len(names))
