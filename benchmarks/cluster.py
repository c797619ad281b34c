"""What executors and shards cost beside a local run, on two cores of one machine.

    python benchmarks/cluster.py benchmarks/results/cluster.json

Each way of storing the same videos runs in processes of its own, all ways taking turns; what is
timed begins with the fifth video, so that starting Python, Ray and the children is left out. Then
the rate at which an archive is read by a process that keeps nothing of it, and one that spools all.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from kinetics400.bench.videos import make_videos  # noqa: E402 (needs the path)
from kinetics400.data.archive import Contents  # noqa: E402
from kinetics400.data.housekeeping import Housekeeping  # noqa: E402
from kinetics400.data.intake import Intake  # noqa: E402
from kinetics400.data.ray_pool import EVERY_CPU, ray_pool  # noqa: E402
from kinetics400.data.shards import Shard  # noqa: E402
from kinetics400.data.shelf import Shelf  # noqa: E402
from kinetics400.data.sources import ArchiveUnit, Original, spooled  # noqa: E402
from kinetics400.data.transcode import EncodeSettings  # noqa: E402

ROUNDS, VIDEOS, MADE, WARM = 5, 32, 4, 4
WAYS = ("local", "ray", "shards")


def one(way: str, source: Path, library: Path, address: str) -> dict[str, float]:
    """Store the videos of a folder in this process's way; seconds from the fifth on."""
    shard = Shard(int(way[-1]), 2) if way.startswith("shard") else None
    paths = sorted(source.iterdir())
    if shard is not None:
        paths = paths[shard.index - 1 :: 2]  # equal shares: names this few would not be
    originals = [
        Original("train", path.name, str(path), None, path.stat().st_size) for path in paths
    ]
    ticks: list[tuple[float, float]] = []
    keeper = Housekeeping(library, shard)
    with ExitStack() as stack:
        stack.enter_context(keeper.held())
        stack.enter_context(keeper.working())
        run = stack.enter_context(ray_pool(address, keeper.incoming)) if way == "ray" else None
        n_worker = EVERY_CPU if way == "ray" else 1 if shard else 2
        intake = Intake(keeper, EncodeSettings(), n_worker=n_worker, timeout=120, run=run)
        shelf = stack.enter_context(closing(Shelf(keeper.library, keeper.incoming)))
        intake.take(
            originals, shelf, lambda done: ticks.append((time.monotonic(), time.process_time()))
        )
    (start, cpu), (end, cpu_end) = ticks[WARM - 1], ticks[-1]
    return {"videos": len(ticks) - WARM, "seconds": end - start, "own_cpu": cpu_end - cpu}


def reading(archive: Path, folder: Path, *, keep: bool) -> float:
    """CPU seconds per GB to read an archive, spooling every video or none."""
    everything = {("train", f"{number:03}.mp4") for number in range(VIDEOS)}
    videos = spooled(
        ArchiveUnit((archive,)),
        Contents(),
        folder,
        skip=() if keep else everything,
        on_list=lambda split, data: None,
        required_lists=[],
        progress=lambda done: None,
    )
    start = time.process_time()
    for original in videos:
        os.unlink(original.path)
    return (time.process_time() - start) / (archive.stat().st_size / 1e9)


def measure(folder: Path, address: str) -> dict[str, Any]:
    """Everything, the ways interleaved."""
    source, archive = folder / "source", folder / "Kinetics-400.tar.gz"
    source.mkdir()
    made = [Path(path) for path in make_videos(folder, MADE)]
    for number in range(VIDEOS):
        shutil.copy(made[number % MADE], source / f"{number:03}.mp4")
    with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
        tar.add(source, "Kinetics-400/videos_train")
    rows = []
    for number in range(ROUNDS):
        for way in WAYS:
            names = ["shard1", "shard2"] if way == "shards" else [way]
            library = folder / f"{way}{number}"
            command = [sys.executable, __file__, "--one"]
            running = [
                subprocess.Popen([*command, name, source, library, address], stdout=subprocess.PIPE)
                for name in names
            ]
            parts = [json.loads(process.communicate()[0]) for process in running]
            rows.append(
                {
                    "round": number,
                    "way": way,
                    "videos_per_sec": sum(part["videos"] / part["seconds"] for part in parts),
                    "own_cpu_per_video": sum(part["own_cpu"] for part in parts)
                    / sum(part["videos"] for part in parts),
                }
            )
            print(rows[-1], file=sys.stderr)
            shutil.rmtree(library)
    rates = {
        way: statistics.median(r["videos_per_sec"] for r in rows if r["way"] == way) for way in WAYS
    }
    return {
        "benchmark": "cluster",
        "ratio_ray": rates["ray"] / rates["local"],
        "ratio_shards": rates["shards"] / rates["local"],
        "videos_per_sec": rates,
        "own_cpu_per_video": {
            way: statistics.median(r["own_cpu_per_video"] for r in rows if r["way"] == way)
            for way in WAYS
        },
        "read_seconds_per_gb": statistics.median(
            reading(archive, folder, keep=False) for _ in range(ROUNDS)
        ),
        "spool_seconds_per_gb": statistics.median(
            reading(archive, folder, keep=True) for _ in range(ROUNDS)
        ),
        "videos": VIDEOS,
        "cores": 2,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("av", "ray")},
        },
        "rows": rows,
    }


def main() -> None:
    """Start a cluster of two nodes with a core each, measure, write the file."""
    if sys.argv[1] == "--one":
        way, source, library, address = sys.argv[2:]
        print(json.dumps(one(way, Path(source), Path(library), address)))
        return
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(ROOT)
    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(**small, num_cpus=1)
        with tempfile.TemporaryDirectory() as folder:
            result = measure(Path(folder), cluster.address)
    finally:
        cluster.shutdown()
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
