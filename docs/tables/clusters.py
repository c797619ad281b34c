"""The plan for preprocessing on several machines."""

import math
from typing import Any

from measured import BENCH, COPY_GB, COPY_VIDEOS, bench

CORES = 16  # of each machine
ARCHIVES = 242 + 20 + 1  # CVDF's train and val parts, and the replacements


def cluster() -> str:
    """Hours and bytes for all of Kinetics-400 on several machines, from the measured figures."""
    measured, clips = bench("cluster.json"), bench("loader_clips.json")
    lines = [
        "| machines | way | hours | read in all | written in all | busiest machine's network |",
        "|---|---|---|---|---|---|",
    ]
    for machines in (1, 4, 64):
        for way, plan in (("CVDF, shards", _parts), ("one archive, shards", _one_archive)):
            lines.append(_row(machines, way, *plan(machines, measured, clips)))
        lines.append(_row(machines, "one archive, Ray", *_on_ray(machines, measured, clips)))
    ratios = [f"{measured[name]:.2f}" for name in ("ratio_ray", "ratio_shards")]
    local = [row["videos_per_sec"] for row in measured["rows"] if row["way"] == "local"]
    lines += [
        "",
        f"An estimate: nobody has run it on so many machines or on the whole dataset yet. It "
        f"assumes machines of {CORES} cores; {COPY_VIDEOS:,} videos of 10 s at 340×256, "
        f"{clips['preprocess_seconds_per_video']:.2f} s of one core each; {COPY_GB} GB of "
        f"originals, of which {clips['store_bytes_ratio']:.0%} are stored; CVDF's {ARCHIVES} "
        "archives of equal size; storage that delivers what the last column says to all machines "
        "at once. A spooled original is counted when it is written, and read again only where "
        "another machine does.",
        "",
        f"Measured on two cores ([{BENCH}/cluster.json](../{BENCH}/cluster.json), medians, ways "
        f"taking turns): Ray stores {ratios[0]} × and two shards {ratios[1]} × as many videos per "
        f"second as a local run, whose own rate went from {min(local):.2f} to {max(local):.2f}: no "
        "difference that this shared machine could show. (Ratios below 1 are in the hours above.) "
        "Reading an archive takes "
        f"{measured['read_seconds_per_gb']:.1f} s of one core per GB, spooling its videos "
        f"{measured['spool_seconds_per_gb']:.1f} s, and Ray's driver spends "
        f"{1000 * measured['own_cpu_per_video']['ray']:.0f} ms of its core on each video besides: "
        f"so one driver keeps about {_cores_of_a_driver(measured, clips):.0f} cores busy.",
    ]
    return "\n".join(lines)


def _row(machines: int, way: str, hours: float, read: float, written: float, most: float) -> str:
    """Of GB, `most` being those that cross the network of one machine."""
    return (
        f"| {machines} | {way} | {hours:.2f} | {read:,.0f} GB | {written:,.0f} GB "
        f"| {1000 * most / hours / 3600:,.0f} MB/s |"
    )


def _parts(machines: int, measured: dict[str, Any], clips: dict[str, Any]) -> tuple[float, ...]:
    """Each archive is one shard's; some shards have one more than others."""
    share = math.ceil(ARCHIVES / machines) / ARCHIVES
    hours = _work_hours(clips) * share / (_kept(measured, "shards") if machines > 1 else 1)
    stored = COPY_GB * clips["store_bytes_ratio"]
    return hours, COPY_GB, COPY_GB + stored, (2 * COPY_GB + stored) * share


def _one_archive(
    machines: int, measured: dict[str, Any], clips: dict[str, Any]
) -> tuple[float, ...]:
    """Every shard reads all of it and keeps its share."""
    work = _work_hours(clips) / machines / (_kept(measured, "shards") if machines > 1 else 1)
    own = COPY_GB * measured["spool_seconds_per_gb"] / machines
    others = COPY_GB * measured["read_seconds_per_gb"] * (1 - 1 / machines)
    stored = COPY_GB * clips["store_bytes_ratio"]
    most = COPY_GB + (COPY_GB + stored) / machines
    return max(work, (own + others) / 3600), COPY_GB * machines, COPY_GB + stored, most


def _on_ray(machines: int, measured: dict[str, Any], clips: dict[str, Any]) -> tuple[float, ...]:
    """The driver reads the archive, spools it, and reads what is stored for its checksum."""
    work = _work_hours(clips) / machines / _kept(measured, "ray")
    driver = COPY_VIDEOS * _driver_seconds(measured) / 3600
    stored = COPY_GB * clips["store_bytes_ratio"]
    away = 1 - 1 / machines  # the share of the videos that other machines work on
    read = COPY_GB + away * (COPY_GB + stored)
    most = 2 * COPY_GB + away * stored + stored / machines
    return max(work, driver), read, COPY_GB + stored, most


def _kept(measured: dict[str, Any], way: str) -> float:
    """The share of a local run's rate; what is more is noise."""
    return min(1.0, measured[f"ratio_{way}"])


def _work_hours(clips: dict[str, Any]) -> float:
    """Of one machine for all videos, if nothing else takes time."""
    return COPY_VIDEOS * clips["preprocess_seconds_per_video"] / CORES / 3600


def _driver_seconds(measured: dict[str, Any]) -> float:
    """Per video of an archive, of the driver's core."""
    spool = measured["spool_seconds_per_gb"] * COPY_GB / COPY_VIDEOS
    return measured["own_cpu_per_video"]["ray"] + spool


def _cores_of_a_driver(measured: dict[str, Any], clips: dict[str, Any]) -> float:
    return clips["preprocess_seconds_per_video"] / _driver_seconds(measured)
