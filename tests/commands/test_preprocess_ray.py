"""On a real cluster of two nodes: what a local run leaves, also when nodes and drivers die."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kinetics400.commands.preprocess import preprocess
from kinetics400.commands.preprocess_report import Summary
from kinetics400.config.preprocess import PreprocessConfig
from kinetics400.data import ray_pool
from kinetics400.data.isolation import JobLimits
from kinetics400.data.transcode import EncodeSettings, Job
from kinetics400.errors import InputError, Stopped

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402 (ray may be missing)

ROOT = Path(__file__).parents[2]
ARCHIVE = "Kinetics-400.tar.gz"
Tree = dict[str, bytes]
Published = Callable[[Path], Tree]

# The function that the nodes run: it does as it is told by the files beside it.
PLAYED = """
import os, signal, sys, time
from pathlib import Path
from kinetics400.data.transcode import store_as_json

FOLDER = Path(__file__).parent

def told(kind, data):
    return (FOLDER / kind).exists() and (FOLDER / kind).read_bytes() == data

def store(job):
    data = Path(job[0]).read_bytes()
    if "ray" in sys.modules:
        (FOLDER / "ray in a child").touch()
    (FOLDER / f"started-{os.getpid()}-{time.monotonic_ns()}").write_text(job[1])
    while (FOLDER / "wait").exists():
        time.sleep(0.005)
    if told("crash", data):
        os.kill(os.getpid(), signal.SIGSEGV)
    if told("hang", data):
        time.sleep(60)
    if told("kill the worker", data):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return store_as_json(job)
"""


def children_of(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.add(int(stat.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Nodes:
    """A cluster whose head does no work, and two nodes with one CPU each."""

    def __init__(self, folder: Path, temporary: str) -> None:
        self.folder = folder
        small = {"object_store_memory": 80 << 20, "include_dashboard": False}
        self._small = small
        head = {**small, "num_cpus": 0, "temp_dir": temporary}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add(), self.add()]

    def add(self):
        return self.cluster.add_node(**self._small, num_cpus=1)

    def kill(self, number: int) -> None:
        """Its raylet and its workers, with SIGKILL."""
        node = self.nodes.pop(number)
        (raylet,) = node.all_processes["raylet"]
        workers = children_of(raylet.process.pid)
        isolated = {pid for worker in workers for pid in children_of(worker)}
        for pid in (raylet.process.pid, *workers):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, isolated)))
        self.cluster.remove_node(node, allow_graceful=False)

    def started(self) -> list[int]:
        """Process ids of the isolated children that have begun a video, one for each."""
        return [int(path.name.split("-")[1]) for path in self.folder.glob("started-*")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("played")
    (folder / "played.py").write_text(PLAYED)
    sys.path.insert(0, str(folder))
    patch = pytest.MonkeyPatch()
    paths = [str(ROOT), str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    patch.setenv("PYTHONPATH", os.pathsep.join(paths))
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    temporary = tempfile.mkdtemp()  # short: paths of sockets may not be long
    # Ray notes the cluster's address below it; /tmp/ray may be absent, or another cluster's.
    patch.setenv("RAY_TMPDIR", temporary)
    os.mkdir(f"{temporary}/ray")
    nodes = Nodes(folder, f"{temporary}/ray")
    yield nodes
    nodes.cluster.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)
    patch.undo()
    sys.path.remove(str(folder))


@pytest.fixture
def nodes(cluster: Nodes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Both nodes, with nothing told to them."""
    import played  # type: ignore[import-not-found]

    monkeypatch.setattr("kinetics400.data.intake.store_as_json", played.store)
    yield cluster
    for path in cluster.folder.iterdir():
        if path.is_file() and path.suffix != ".py":
            path.unlink()
    while len(cluster.nodes) < 2:
        cluster.nodes.append(cluster.add())


def config(data_dir: Path, **options: object) -> PreprocessConfig:
    defaults = {"max_bad_share": 0.5, "n_worker": 2}
    return PreprocessConfig(data_dir=data_dir, **{**defaults, **options})  # type: ignore[arg-type]


def on(nodes: Nodes, data_dir: Path, **options: object) -> Summary:
    address = nodes.cluster.address
    return preprocess(
        config(data_dir, executor="ray", ray_address=address, **{"n_worker": None, **options})
    )


def journal(data_dir: Path) -> set[str]:
    lines = (data_dir / "Kinetics-400/.preprocess/journal.jsonl").read_text().splitlines()
    return {json.dumps(json.loads(line), sort_keys=True) for line in lines}


@pytest.fixture(scope="module")
def local(
    tmp_path_factory: pytest.TempPathFactory, corpus, write_archive: Callable, published: Published
) -> tuple[Tree, set[str]]:
    data_dir = tmp_path_factory.mktemp("local")
    write_archive(data_dir / ARCHIVE, corpus.members)
    preprocess(config(data_dir))
    return published(data_dir / "Kinetics-400"), journal(data_dir)


def test_cluster_leaves_what_a_local_run_leaves(
    tmp_path: Path, corpus, write_archive: Callable, published: Published, local, nodes: Nodes
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    handler = signal.getsignal(signal.SIGTERM)
    on(nodes, tmp_path)
    assert signal.getsignal(signal.SIGTERM) is handler  # Ray's own would exit
    assert (published(tmp_path / "Kinetics-400"), journal(tmp_path)) == local
    assert not (tmp_path / "Kinetics-400/.preprocess/incoming").exists()
    assert len(set(nodes.started())) == 2  # one child for each node's CPU, kept for all its videos
    assert not (nodes.folder / "ray in a child").exists()  # it holds nothing but its job
    wait_until(lambda: not any(map(is_alive, nodes.started())))
    assert not ray.is_initialized()


def test_killed_node_costs_nothing_but_doing_its_videos_again(
    tmp_path: Path, corpus, write_archive: Callable, published: Published, local, nodes: Nodes
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    (nodes.folder / "wait").touch()
    incoming = tmp_path / "Kinetics-400/.preprocess/incoming"
    spooled: list[int] = []

    def kill_one() -> None:
        wait_until(lambda: len(nodes.started()) == 2)
        spooled.append(len([p for p in incoming.iterdir() if p.stem.isdigit()]))
        nodes.kill(1)
        (nodes.folder / "wait").unlink()

    killer = threading.Thread(target=kill_one)
    killer.start()
    on(nodes, tmp_path)
    killer.join()
    assert (published(tmp_path / "Kinetics-400"), journal(tmp_path)) == local
    assert spooled == [2]  # no more than are worked on
    targets = [path.read_text() for path in nodes.folder.glob("started-*")]
    assert len(targets) == 11 + 1 == len(set(targets))  # the second attempt has its own file


def test_without_a_second_attempt_a_killed_node_would_stop_the_run(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    nodes: Nodes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control; and what ends a run whose every worker dies with one video."""
    monkeypatch.setattr(ray_pool, "ATTEMPTS", 2)
    (nodes.folder / "kill the worker").write_bytes(corpus.members["videos_train/t 1.mp4"])
    write_archive(tmp_path / ARCHIVE, corpus.members)
    with pytest.raises(Stopped, match=r"2 nodes or Ray workers died with .*repeat the command"):
        on(nodes, tmp_path)
    rows = [json.loads(row) for row in journal(tmp_path)]
    assert "t 1.mp4" not in [row["source"] for row in rows]  # nothing is said of the video


def test_videos_that_crash_or_hang_get_the_same_verdict_as_locally(
    tmp_path: Path, corpus, write_archive: Callable, published: Published, nodes: Nodes
) -> None:
    for kind, name in (("crash", "t 1"), ("hang", "t 2")):
        (nodes.folder / kind).write_bytes(corpus.members[f"videos_train/{name}.mp4"])
    found = []
    for executor in ("ray", "local"):
        data_dir = tmp_path / executor
        write_archive(data_dir / ARCHIVE, corpus.members)
        if executor == "ray":
            summary = on(nodes, data_dir, timeout=1.0)
        else:
            summary = preprocess(config(data_dir, timeout=1.0))
        found.append((summary.quarantined, published(data_dir / "Kinetics-400")))
    assert found[0] == found[1]
    reasons = {video.path: video.reason for video in found[0][0]}
    assert (reasons["t 1.mp4"], reasons["t 2.mp4"]) == ("crashed", "hung")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_driver_leaves_no_process_and_continues(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    published: Published,
    local,
    nodes: Nodes,
    number: int,
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    (nodes.folder / "wait").touch()
    code = (
        "import sys, played\nfrom kinetics400.__main__ import run_command\n"
        "from kinetics400.data import intake\nintake.store_as_json = played.store\n"
        "sys.exit(run_command('preprocess', sys.argv[1:]))"
    )
    flags = ["--data_dir", str(tmp_path), "--executor", "ray"]
    flags += ["--ray_address", nodes.cluster.address, "--max_bad_share", "0.5"]
    with subprocess.Popen([sys.executable, "-c", code, *flags], cwd=ROOT) as driver:
        wait_until(lambda: len(nodes.started()) == 2 or driver.poll() is not None)
        driver.send_signal(number)
    assert driver.returncode == (75 if number == signal.SIGTERM else -number)
    children = nodes.started()
    assert len(children) == 2
    wait_until(lambda: not any(map(is_alive, children)))
    incoming = tmp_path / "Kinetics-400/.preprocess/incoming"
    assert incoming.exists() == (number == signal.SIGKILL)
    (nodes.folder / "wait").unlink()
    on(nodes, tmp_path)
    assert published(tmp_path / "Kinetics-400") == local[0]
    assert not incoming.exists()


# --- what a cluster must be -----------------------------------------------------------------------


@pytest.fixture
def connected(nodes: Nodes) -> Iterator[None]:
    ray.init(address=nodes.cluster.address, logging_level=40)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("connected")
def test_node_that_does_not_see_the_library_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"node .+ \(.+\) does not see .*/nowhere"):
        ray_pool._check_nodes(str(tmp_path / "nowhere"))


@pytest.mark.usefixtures("connected")
def test_node_with_another_codec_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "version", lambda name: "0.1")  # of this process
    (tmp_path / "token").touch()
    with pytest.raises(InputError, match=r"node .* this process .*'0\.1'"):
        ray_pool._check_nodes(str(tmp_path / "token"))


@pytest.mark.usefixtures("connected")
def test_original_that_a_node_does_not_see_is_not_taken_for_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kinetics400.data.transcode import store_as_json

    (tmp_path / "token").touch()
    pool = ray_pool.RayPool(str(tmp_path / "token"))
    job: Job = (str(tmp_path / "v.mp4"), str(tmp_path / "t.mp4"), EncodeSettings())
    (gone,) = pool(store_as_json, [job], n_worker=1, limits=JobLimits())
    assert gone.value is not None and gone.value["reason"] == "absent"  # nor is it here
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "exists", lambda path: True)  # for this process
        with pytest.raises(InputError, match=r"does not see .*v\.mp4\. Sources and --data_dir"):
            list(pool(store_as_json, [job], n_worker=1, limits=JobLimits()))
    (tmp_path / "token").unlink()
    with pytest.raises(InputError, match=r"does not see .*token\. Sources and --data_dir"):
        list(pool(store_as_json, [job], n_worker=1, limits=JobLimits()))


def test_missing_ray_and_dead_address_are_told_with_the_remedy(
    tmp_path: Path, corpus, write_archive: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    monkeypatch.setattr(ray_pool, "CONNECT_SECONDS", 5.0)
    with pytest.raises(InputError, match=r"--ray_address 127\.0\.0\.1:1: no Ray cluster there"):
        preprocess(config(tmp_path, executor="ray", ray_address="127.0.0.1:1"))
    monkeypatch.setattr(ray_pool, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'kinetics400\[ray\]'"):
        preprocess(config(tmp_path, executor="ray"))
    assert os.listdir(tmp_path) == [ARCHIVE]
