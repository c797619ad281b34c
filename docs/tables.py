"""Fill the tables of README.md and docs/ from the files in results/ and benchmarks/: `make docs`.

A block between `<!-- NAME -->` and `<!-- /NAME -->` belongs to the table of that name. A test holds
the committed pages to what this script writes.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from kinetics400.commands.report import ROWS, demo_table, demo_verdict  # noqa: E402 (needs the path)
from kinetics400.data.findings import KINDS  # noqa: E402


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


# --- doctor ---------------------------------------------------------------------------------------


def doctor_reasons() -> str:
    """Everything that `kinetics400 doctor` may find."""
    lines = ["| reason | level | what to do |", "|---|---|---|"]
    lines += [f"| {reason} | {kind.level} | {kind.remedy} |" for reason, kind in KINDS.items()]
    return "\n".join(lines)


def doctor_speed() -> str:
    """The doctor on as many files as Kinetics-400 has."""
    result = _bench("doctor_speed.json")
    killed = f"continued, after a kill at {result['killed_after_rows']:,} rows"
    rows = {
        "the first run": result["first"],
        killed: result["continued"],
        "everything remembered": result["second"],
    }
    lines = ["| run | seconds | of CPU |", "|---|---|---|"]
    lines += [
        f"| {name} | {r['seconds']:.0f} | {r['cpu_seconds']:.0f} |" for name, r in rows.items()
    ]
    lines += [
        "",
        f"{result['n_videos']:,} small MP4 files of equal length on a local disk; all of it, "
        f"on {result['cores']} cores that other work shared. A network disk takes as long as it "
        f"takes to open each file. Raw figures: [{BENCH}/doctor_speed.json]"
        f"(../{BENCH}/doctor_speed.json); `make doctor-proof` measures again.",
    ]
    return "\n".join(lines)


TABLES = {
    "inherited": inherited,
    "demo": demo,
    "loader": loader,
    "loader_short": loader_short,
    "crf": crf,
    "disk": disk,
    "doctor_reasons": doctor_reasons,
    "doctor_speed": doctor_speed,
}
PAGES = ("README.md", "docs/data.md", "docs/doctor.md")


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
