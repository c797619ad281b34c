import io
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kinetics400.data.annotations import PackedText, VideoTable
from kinetics400.data.library import open_split
from kinetics400.data.manifest import Manifest, count_originals, manifest_path, read_manifest
from kinetics400.errors import InputError

N_KINETICS = 246_535  # rows of the largest copy
MIB = 1 << 20


def row(i: int, **changes: object) -> dict[str, object]:
    return {
        "path": f"é {i:011}.mp4",
        "source": f"é {i:011}.avi",
        "n_frames": 100 + i % 250,
        "fps": 29.97 if i % 2 else 25.0,
        "width": 340,
        "height": 256,
        "n_bytes": 5 * 10**9 + i,  # beyond 32 bits
        "sha256": f"{i:064x}",
        "kind": "original" if i % 10 == 9 else "pyramid",
        **changes,
    }


def write(library: Path, manifest: Manifest, split: str = "train") -> Path:
    path = manifest_path(library, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(manifest.to_bytes())
    return path


def test_every_field_survives_the_file(tmp_path: Path) -> None:
    rows = [row(i) for i in range(20)]
    write(tmp_path, Manifest.from_rows(rows, [i % 7 for i in range(20)]))
    manifest = read_manifest(tmp_path, "train")
    assert manifest is not None and len(manifest) == 20
    for i in range(20):
        assert (manifest.names[i], manifest.sources[i]) == (rows[i]["path"], rows[i]["source"])
        assert manifest.labels[i] == i % 7
        assert manifest.sha256[i].tobytes().hex() == rows[i]["sha256"]
        assert bool(manifest.is_pyramid[i]) == (i != 9 and i != 19)
        for field, key in (("n_frames",) * 2, ("fps",) * 2, ("n_bytes",) * 2):
            assert getattr(manifest, field)[i] == rows[i][key]
        assert (manifest.widths[i], manifest.heights[i]) == (340, 256)


def test_file_is_a_plain_npz_and_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.from_rows([row(i) for i in range(5)], range(5))
    path = write(tmp_path, manifest)
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["n_frames"].tolist() == [100, 101, 102, 103, 104]
        assert arrays["sha256"].shape == (5, 32)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(now + 1e6))
    assert manifest.to_bytes() == path.read_bytes()


def test_empty_manifest_and_absent_one(tmp_path: Path) -> None:
    assert read_manifest(tmp_path, "val") is None
    write(tmp_path, Manifest.from_rows([], []), "val")
    manifest = read_manifest(tmp_path, "val")
    assert manifest is not None and len(manifest) == 0 and len(manifest.names) == 0


# --- memory ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """As many rows as Kinetics-400 has, read from its file."""
    folder = tmp_path_factory.mktemp("large")
    rows = (row(i) for i in range(N_KINETICS))
    path = write(folder, Manifest.from_rows(list(rows), np.arange(N_KINETICS) % 400))
    assert path.stat().st_size < 40 * MIB
    manifest = read_manifest(folder, "train")
    assert manifest is not None
    return manifest


def private_growth(touch: Callable[[], object]) -> int:
    """Bytes of its own that a forked worker has more after `touch`."""

    def private() -> int:
        text = Path("/proc/self/smaps_rollup").read_text()
        lines = [line for line in text.splitlines() if line.startswith("Private_")]
        return sum(int(line.split()[1]) << 10 for line in lines)

    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            touch_once = touch  # bound before the first measurement
            before = private()
            touch_once()
            os.write(write_end, str(private() - before).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    with open(read_end) as pipe:
        answer = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return int(answer)


def test_246535_rows_cost_a_worker_at_most_1_mib_of_its_own(large: Manifest) -> None:
    assert len(large) == N_KINETICS
    assert (large.names[N_KINETICS - 1], large.labels[400]) == (f"é {N_KINETICS - 1:011}.mp4", 0)
    assert large.sha256[77].tobytes().hex() == f"{77:064x}"

    def touch() -> None:
        for i in range(N_KINETICS):
            assert large.names[i] and large.n_frames[i] and large.labels[i] < 400
        assert large.n_bytes.sum() and large.sha256.any() and large.is_pyramid.any()

    assert private_growth(touch) <= MIB


def test_a_list_of_rows_would_cost_every_worker_far_more(large: Manifest) -> None:
    """The measurement sees what it is there to see."""
    rows = [(large.names[i], i % 400) for i in range(N_KINETICS)]
    assert private_growth(lambda: [name for name, _ in rows if not name]) > 8 * MIB


# --- damage ---------------------------------------------------------------------------------------


def test_damaged_manifest_is_wrong_input_with_the_remedy(tmp_path: Path) -> None:
    good = Manifest.from_rows([row(i) for i in range(50)], range(50)).to_bytes()
    path = manifest_path(tmp_path, "train")
    path.parent.mkdir()
    one_array = io.BytesIO()
    np.save(one_array, np.zeros(5))
    cuts = [good[:n] for n in (0, 1, 3, 4, 20, len(good) // 2, len(good) - 1)]
    for content in (*cuts, one_array.getvalue(), b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"manifest_train\.npz.*data\.preprocess"):
            read_manifest(tmp_path, "train")
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(good), 200):
        damaged = bytearray(good)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            manifest = read_manifest(tmp_path, "train")
        except InputError:
            refused += 1
        else:  # a bit that carries nothing, such as a date
            assert manifest is not None and manifest.to_bytes() == good
    assert refused > 100


@pytest.mark.parametrize("change", ["names_offsets", "labels", "sha256", "fps"])
def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path, change: str) -> None:
    path = write(tmp_path, Manifest.from_rows([row(i) for i in range(5)], range(5)))
    with np.load(path) as arrays:
        content = dict(arrays)
    content[change] = content[change][:-1]
    np.savez(path, **content)
    with pytest.raises(InputError, match="manifest"):
        read_manifest(tmp_path, "train")
    del content[change]
    np.savez(path, **content)
    with pytest.raises(InputError, match="manifest"):
        read_manifest(tmp_path, "train")


class Bomb:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("kind", ["object array", "pickle", "npy"])
def test_planted_pickle_is_refused_and_never_run(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "marker"
    path = write(tmp_path, Manifest.from_rows([row(i) for i in range(5)], range(5)))
    with np.load(path) as arrays:
        content = dict(arrays)
    content["labels"] = np.array([Bomb(str(marker))] * 5, dtype=object)
    if kind == "object array":
        np.savez(path, **content)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(str(marker))))
    else:
        buffer = io.BytesIO()
        np.save(buffer, content["labels"], allow_pickle=True)
        path.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="manifest"):
        read_manifest(tmp_path, "train")
    assert not marker.exists()
    if kind == "object array":  # it would have worked
        with np.load(path, allow_pickle=True) as arrays:
            _ = arrays["labels"]
        assert marker.exists()


# --- originals ------------------------------------------------------------------------------------


def test_originals_are_those_not_known_to_be_pyramids(tmp_path: Path) -> None:
    library = tmp_path / "Kinetics-400"
    (library / "videos_train").mkdir(parents=True)
    names = [str(row(i)["path"]) for i in range(20)]
    (library / "kinetics400_train_list_videos.txt").write_text(
        "".join(f"{name} 0\n" for name in names)
    )
    table = open_split(tmp_path, "train", num_classes=400)
    assert count_originals(tmp_path, "train", table) == 20  # no manifest: nothing is known
    write(library, Manifest.from_rows([row(i) for i in range(20)], [0] * 20))
    assert count_originals(tmp_path, "train", table) == 2
    assert count_originals(library, "train", table) == 2
    few = VideoTable.from_rows([(names[0], 0), ("mine.mp4", 0), (names[1], 0)])
    assert count_originals(tmp_path, "train", few) == 1
    assert count_originals(tmp_path / "nowhere", "train", few) == 3


def test_packed_text_is_like_a_list() -> None:
    texts = ["", "a", "ü b", "", "日本"]
    packed = PackedText.pack(texts)
    assert [packed[i] for i in range(len(packed))] == texts
    for index in (-1, 5):
        with pytest.raises(IndexError):
            packed[index]
