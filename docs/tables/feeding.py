"""Tables of the store: what feeding costs, and what the store takes."""

from typing import Any

from measured import BENCH, COPY_GB, COPY_VIDEOS, bench

TASKS = {"pretrain": "pretraining", "finetune": "finetuning", "eval": "5×3 evaluation"}
CRFS = (21, 22, 23)


def _where(result: dict[str, Any]) -> str:
    about, versions = result["machine"], result["versions"]
    return (
        f"{about['cpu']}, torch {versions['torch']}, PyAV {versions['av']}, decord "
        f"{versions['decord']}"
    )


def loader() -> str:
    """Every contender of `kinetics400 bench loader` on videos it makes."""
    result = bench("loader.json")
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
    rows = {(row["task"], row["contender"]): row for row in bench("loader.json")["contenders"]}
    clips = bench("loader_clips.json")
    made = bench("loader.json")
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
        row = bench(f"store_crf{value}.json")
        default = " (default)" if value == 22 else ""
        lines.append(
            f"| {value}{default} | {row['store_bytes_ratio']:.0%} | {row['psnr_luma_db']:.1f} dB "
            f"| {row['preprocess_seconds_per_video']:.2f} |"
        )
    return "\n".join(lines)


def disk() -> str:
    """Disk and time for all of Kinetics-400, from the measured figures."""
    result = bench("loader_clips.json")
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
