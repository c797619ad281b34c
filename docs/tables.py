"""Fill the tables of README.md and docs/ from the files in results/ and benchmarks/: `make docs`.

A block between `<!-- NAME -->` and `<!-- /NAME -->` belongs to the table of that name. A test holds
the committed pages to what this script writes.
"""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from kinetics400.commands.report import ROWS, demo_table, demo_verdict  # noqa: E402 (needs the path)


def inherited() -> str:
    """Accuracies that others measured."""
    rows = json.loads((ROOT / "results/inherited.json").read_text(encoding="utf-8"))["rows"]
    lines = [
        "| model | pretraining | finetuning | top-1 | top-5 | measured by |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['pretraining']} | {row['finetuning']} "
            f"| {row['top1_acc']:.2f} | {row['top5_acc']:.2f} | {row['origin']} |"
        )
    return "\n".join(lines)


def demo() -> str:
    """The committed run of `make demo`."""
    results = json.loads((ROOT / "results/demo/results.json").read_text(encoding="utf-8"))
    minutes = results["seconds"] / 60
    unseen = json.loads((ROOT / "results/demo_seed1.json").read_text(encoding="utf-8"))
    top1 = [f"{unseen[name]['top1_acc']:.1f}" for name in ROWS]
    return (
        f"{demo_table(results)}\n\n"
        f"{demo_verdict(results)} All of it took {minutes:.1f} minutes.\n\n"
        "Classes and settings were chosen with these validation videos in view. On videos never "
        f"looked at before (`--seed 1`) the four rows give {', '.join(top1)} % top-1."
    )


# --- feeding --------------------------------------------------------------------------------------

BENCH = "benchmarks/results"
TASKS = {"pretrain": "pretraining", "finetune": "finetuning", "eval": "5×3 evaluation"}
CRFS = (21, 22, 23)
# Of Kinetics-400: the published copy's counts and bytes (data/README.md).
COPY_VIDEOS, COPY_GB = 240_436 + 19_796, 436


def _bench(name: str) -> dict[str, Any]:
    return json.loads((ROOT / BENCH / name).read_text(encoding="utf-8"))


def _where(result: dict[str, Any]) -> str:
    about, versions = result["machine"], result["versions"]
    return (
        f"{about['cpu']}, torch {versions['torch']}, PyAV {versions['av']}, decord "
        f"{versions['decord']}"
    )


def loader() -> str:
    """Every contender of `kinetics400 bench loader` on videos it makes."""
    result = _bench("loader.json")
    lines = ["| task | reader | per second and core | ratio to decord | share of the floor |"]
    lines.append("|---|---|---|---|---|")
    for row in result["contenders"]:
        start = f"| {TASKS[row['task']]} | {row['meaning']} "
        if row["per_sec"] is None:
            lines.append(f"{start}| unavailable: {row['unavailable']} | | |")
            continue
        to_decord = row["ratio_to_decord"]
        share = row["share_of_floor"]
        lines.append(
            f"{start}| {row['per_sec']:.1f} {row['unit']} "
            f"| {'' if to_decord is None else f'{to_decord:.1f}'} "
            f"| {'' if share is None else f'{share:.0%}'} |"
        )
    rates = [video["kbit_per_sec"] for video in result["videos"]]
    videos = result["videos"][0]
    lines += [
        "",
        f"{len(rates)} videos drawn for the purpose, {videos['width']}×{videos['height']}, "
        f"{videos['num_frames'] / videos['fps']:.0f} s, a key frame every 250, {min(rates):.0f} to "
        f"{max(rates):.0f} kbit/s; 16 frames of 224×224, stride 4. {_where(result)}. "
        f"Preprocessing took {result['preprocess_seconds_per_video']:.2f} s per video and core, "
        f"{result['preprocess_share_of_bare_loop']:.0%} of the throughput of a bare "
        f"decode–scale–encode loop. Raw rows: "
        f"[{BENCH}/loader.json](../{BENCH}/loader.json); `kinetics400 bench loader --json FILE` "
        "measures again.",
    ]
    return "\n".join(lines)


def loader_short() -> str:
    """What the README says of it."""
    rows = {(row["task"], row["contender"]): row for row in _bench("loader.json")["contenders"]}
    clips = _bench("loader_clips.json")
    made = _bench("loader.json")
    lines = [
        "| | decord, as VideoMAE reads | this store | ratio | on real clips |",
        "|---|---|---|---|---|",
    ]
    for task, name in TASKS.items():
        decord, ours = rows[task, "decord"], rows[task, "pyramid"]
        lines.append(
            f"| {name} | {decord['per_sec']:.2g} {decord['unit']}/s | {ours['per_sec']:.3g} "
            f"{ours['unit']}/s | {made[f'ratio_{task}']:.1f} × | {clips[f'ratio_{task}']:.1f} × |"
        )
    return "\n".join(lines)


def crf() -> str:
    """Bytes and quality of the store on real clips."""
    lines = [
        "| `--crf` | bytes, share of the originals' | luma PSNR | seconds per video and core |"
    ]
    lines.append("|---|---|---|---|")
    for value in CRFS:
        row = _bench(f"store_crf{value}.json")
        default = " (default)" if value == 22 else ""
        lines.append(
            f"| {value}{default} | {row['store_bytes_ratio']:.0%} | {row['psnr_luma_db']:.1f} dB "
            f"| {row['preprocess_seconds_per_video']:.2f} |"
        )
    return "\n".join(lines)


def disk() -> str:
    """Disk and time for all of Kinetics-400, from the measured figures."""
    result = _bench("loader_clips.json")
    seconds, share = result["preprocess_seconds_per_video"], result["store_bytes_ratio"]
    lines = ["| machine | preprocessing | disk |", "|---|---|---|"]
    for cores in (8, 16, 64):
        hours = COPY_VIDEOS * seconds / cores / 3600
        lines.append(f"| {cores} cores | {hours:.1f} h | {COPY_GB * share:.0f} GB |")
    lines += [
        "",
        f"{COPY_VIDEOS:,} videos at {seconds:.2f} s of one core each, and {share:.0%} of CVDF's "
        f"{COPY_GB} GB; an estimate: nobody has run it on the whole dataset yet.",
    ]
    return "\n".join(lines)


# --- augmentation ---------------------------------------------------------------------------------


def _fidelity() -> dict[str, Any]:
    return json.loads((ROOT / "results/fidelity_augment.json").read_text(encoding="utf-8"))


def augment_pixels() -> str:
    """Augmentation against the references, number by number."""
    result = _fidelity()
    lines = ["| rule | reference | largest difference | numbers that differ | allowed |"]
    lines.append("|---|---|---|---|---|")
    for row in result["pixels"]:
        levels = row["unit"] == "levels"
        number = "{:.0f}" if levels or not row["largest"] else "{:.1e}"
        unit = " of 255" if levels else ""
        exact = row["allowed_difference"] == 0
        allowed = "exact" if exact else f"{row['allowed_difference']:g}{unit}"
        share = row["allowed_share"]
        lines.append(
            f"| {row['rule']} | {row['reference']} | {number.format(row['largest'])}{unit} "
            f"| {row['share']:.3%} of {row['compared']:,} "
            f"| {allowed}{'' if exact or share == 1 else f' on {share:.1%}'} |"
        )
    found = [f"{name} {version}" for name, version in result["versions"].items()]
    return "\n".join([*lines, "", f"{', '.join(found)}."])


def augment_draws() -> str:
    """Distributions of augmentation's parameters against the references' samplers."""
    result = _fidelity()
    lines = ["| quantity | reference | test | draws | p |", "|---|---|---|---|---|"]
    for row in result["draws"]:
        lines.append(
            f"| {row['quantity']} | {row['reference']} | {row['test']} | {row['count']:,} "
            f"| {row['p_value']:.3f} |"
        )
    lines += ["", f"Seed {result['seed']}; p below {result['least_p_value']} fails the command."]
    return "\n".join(lines)


def augment_cost() -> str:
    """What `kinetics400 bench augment` measured."""
    result = _bench("augment.json")
    cost, settings = result["cpu_ms_per_clip"], result["settings"]
    names = ("ours", "torchvision", "timm")
    lines = ["| CPU ms per clip of 16 × 224 × 224 | ours | torchvision v2 | timm on PIL images |"]
    lines.append("|---|---|---|---|")
    batches = [by for task, by in cost.items() if task.startswith("batch")]
    whole = {name: sum(by[name] for by in batches) / len(batches) for name in names}
    others = ("batch", "reading")
    rows = {task: by for task, by in cost.items() if not task.startswith(others)}
    rows["**all of finetuning's**"] = whole
    for task, by in rows.items():
        lines.append(f"| {task} | " + " | ".join(f"{by[name]:.1f}" for name in names) + " |")
    lines += [f"| reading, {task} | {ms:.1f} | | |" for task, ms in cost["reading"].items()]
    about, versions = result["machine"], result["versions"]
    lines += [
        "",
        f"For whole batches torchvision takes {result['ratio_torchvision']:.1f} times, timm "
        f"{result['ratio_timm']:.1f} times as long as ours. One core of {about['cpu']}, medians of "
        f"{settings['repeats']}; {settings['batches']} batches of {settings['batch_size']} clips. "
        f"torch {versions['torch']}, torchvision {versions['torchvision']}, timm "
        f"{versions['timm']}, pillow {versions['pillow']}. torchvision's geometry is bilinear, as "
        "it has no bicubic one for uint8 tensors, and takes all frames as channels of one picture, "
        f"which is quicker than frame by frame. Raw rows: [{BENCH}/augment.json]"
        f"(../{BENCH}/augment.json); `kinetics400 bench augment --json FILE` measures again.",
    ]
    return "\n".join(lines)


# --- clusters -------------------------------------------------------------------------------------

CORES = 16  # of each machine
ARCHIVES = 242 + 20 + 1  # CVDF's train and val parts, and the replacements


def cluster() -> str:
    """Hours and bytes for all of Kinetics-400 on several machines, from the measured figures."""
    measured, clips = _bench("cluster.json"), _bench("loader_clips.json")
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


TABLES = {
    "inherited": inherited,
    "demo": demo,
    "loader": loader,
    "loader_short": loader_short,
    "crf": crf,
    "disk": disk,
    "augment_pixels": augment_pixels,
    "augment_draws": augment_draws,
    "augment_cost": augment_cost,
    "cluster": cluster,
}
PAGES = ("README.md", "docs/data.md", "docs/augmentation.md", "docs/clusters.md")


def filled(text: str) -> str:
    """`text` with every block in it filled anew."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        if re.search(pattern, text, flags=re.DOTALL):
            body = table()
            text = re.sub(pattern, lambda m, b=body: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
