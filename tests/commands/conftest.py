"""Originals as they are published, what `preprocess` must make of them, and ways to kill it.

Fixtures only: nothing is imported from here.
"""

import io
import json
import os
import signal
import sys
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kinetics400.data import intake
from kinetics400.data.isolation import Result
from kinetics400.data.transcode import Encoder, EncodeSettings, transcode_video

LISTS = ("kinetics400_train_list_videos.txt", "kinetics400_val_list_videos.txt")


@dataclass(frozen=True)
class Corpus:
    """12 listed videos, of which one is damaged and one is absent."""

    members: dict[str, bytes]
    """Path below Kinetics-400/ → bytes, as in the archive."""
    stored: dict[str, bytes]
    """The same of what a user must see afterwards."""
    kept: dict[str, bytes]
    """The same with `--store original`."""
    refused: bytes
    """The damaged video."""


@pytest.fixture(scope="session")
def corpus(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    labels = {
        **{f"videos_train/t {i}.mp4": i for i in range(5)},
        "videos_train/class b/odd.avi": 5,
        "videos_val/-v0.mp4": 0,
        **{f"videos_val/v{i}.mp4": i for i in range(1, 4)},
    }
    videos = {
        name: make_video(
            folder / f"{number}{Path(name).suffix}",
            n_frames=8 + number,
            seed=number,
            codec="mpeg4" if name.endswith(".avi") else "libx264",
        ).read_bytes()
        for number, name in enumerate(labels)
    }
    refused = videos["videos_train/t 0.mp4"][:-300]  # cut in the index
    stored: dict[str, bytes] = {}
    lists: dict[str, str] = defaultdict(str)
    kept_lists: dict[str, str] = defaultdict(str)
    for number, (name, label) in enumerate(labels.items()):
        target = folder / f"{number}_stored.mp4"
        source = folder / f"{number}{Path(name).suffix}"
        transcode_video(str(source), str(target), EncodeSettings())
        stored_name = name if name.endswith(".mp4") else f"{name}.mp4"
        stored[stored_name] = target.read_bytes()
        split = LISTS["val" in name.split("/")[0]]
        lists[split] += f"{stored_name.split('/', 1)[1]} {label}\n"
        kept_lists[split] += f"{name.split('/', 1)[1]} {label}\n"
    members = {
        **{name: data for name, data in videos.items() if "train" in name},
        "videos_train/bad.mp4": refused,
        LISTS[0]: f"{kept_lists[LISTS[0]]}gone.mp4 7\nbad.mp4 6\n".encode(),
        "README.md": b"read me",
        **{name: data for name, data in videos.items() if "val" in name},
        LISTS[1]: kept_lists[LISTS[1]].encode(),
    }
    return Corpus(
        members=members,
        stored={**stored, **{name: text.encode() for name, text in lists.items()}},
        kept={**videos, **{name: text.encode() for name, text in kept_lists.items()}},
        refused=refused,
    )


# --- disks ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def write_archive() -> Callable[..., Path]:
    """`write_archive(path, members, links={}, top="Kinetics-400/")`: a .tar.gz in their order."""

    def write(
        path: Path,
        members: dict[str, bytes],
        links: dict[str, str] | None = None,
        top: str = "Kinetics-400/",
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(top + name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            for name, target in (links or {}).items():
                info = tarfile.TarInfo(top + name)
                info.type, info.linkname = tarfile.SYMTYPE, target
                tar.addfile(info)
        return path

    return write


@pytest.fixture(scope="session")
def write_files() -> Callable[[Path, dict[str, bytes]], None]:
    """`write_files(folder, {path: bytes})`."""

    def write(folder: Path, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)

    return write


@pytest.fixture(scope="session")
def visible() -> Callable[[Path], dict[str, bytes]]:
    """`visible(library)`: what a user sees there, path → bytes."""

    def read(library: Path) -> dict[str, bytes]:
        return {
            str(file.relative_to(library)): file.read_bytes()
            for file in sorted(library.rglob("*"))
            if file.is_file() and not any(part.startswith(".") for part in file.parts[1:])
        }

    return read


@pytest.fixture(scope="session")
def published(visible: Callable[[Path], dict[str, bytes]]) -> Callable[[Path], dict[str, bytes]]:
    """`published(library)`: the same, with manifests, quarantine and the lists as they came."""

    def read(library: Path) -> dict[str, bytes]:
        hidden = library / ".preprocess"
        files = [*hidden.glob("manifest_*"), *hidden.glob("*.txt"), hidden / "quarantine.jsonl"]
        return {**visible(library), **{f"hidden/{file.name}": file.read_bytes() for file in files}}

    return read


# --- the encoder ----------------------------------------------------------------------------------


class Inline:
    """Does the children's work in this process: starting them takes longer than tiny videos."""

    def __init__(self) -> None:
        self.sources: list[str] = []

    def __call__(self, function, jobs: Iterable, *, n_worker: int, limits) -> Iterator[Result]:
        for job in jobs:
            self.sources.append(job[0])
            yield Result(job, json.loads(json.dumps(function(job))))


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> Inline:
    """Encode in this process; `inline.sources` are the files that were encoded."""
    runner = Inline()
    monkeypatch.setattr(intake, "run_isolated", runner)
    return runner


# --- kills ----------------------------------------------------------------------------------------

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def _count_down(steps: int, counted: list[int]) -> None:
    """From here on, die before the given change to the disk (in a child: there is no way back)."""

    def step() -> None:
        counted[0] += 1
        if counted[0] == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple) -> None:
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in CHANGES or writes:
            step()

    fsync, finish = os.fsync, Encoder.finish

    def counted_fsync(descriptor: int) -> None:
        step()
        fsync(descriptor)

    def counted_finish(encoder: Encoder) -> None:
        step()  # some frames are in the file, others are not, the index is not
        finish(encoder)

    os.fsync = counted_fsync
    Encoder.finish = counted_finish  # type: ignore[method-assign]
    sys.addaudithook(hook)


@pytest.fixture(scope="session")
def killed_at() -> Callable[[int, Callable[[], object]], int]:
    """`killed_at(n, function)`: run it in a child that is killed before its n-th change to the
    disk. Returns 0 if it was, else how many changes it made in all."""

    def run(steps: int, function: Callable[[], object]) -> int:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                counted = [0]
                _count_down(steps, counted)
                function()
                os.write(write_end, str(counted[0]).encode())
            finally:
                os._exit(0)
        os.close(write_end)
        with open(read_end) as pipe:
            answer = pipe.read()
        status = os.waitpid(pid, 0)[1]
        assert answer or os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        return int(answer or 0)

    return run
