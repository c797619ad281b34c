"""What a GPU shows, on the performance page; and what is still missing until one has measured."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measured import BENCH, ROOT
from speed import title

FOLDER = "h200"
# What `benchmarks/gpu.sh` writes, by the beginnings of the files' names, and what each is for.
PARTS = {
    "step_": "step times, MFU and peak memory in bfloat16, what `torch.compile`'s modes and CUDA "
    "graphs add, the largest batches",
    "run_": "whole runs from MP4 files, with their hours and the time spent waiting for data",
    "decode": "NVDEC beside the cores",
}


def gpu(folder: Path = ROOT / BENCH / FOLDER) -> str:
    """Tables of what has been measured, and a sentence of what has not."""
    tables: dict[str, Callable[[Sequence[dict[str, Any]]], list[str]]]
    tables = {"step_": _steps, "run_": _runs, "decode": _decoding}
    lines, missing = [], []
    for part, table in tables.items():
        # Those with a profiler in them are not figures of speed.
        files = [
            path for path in sorted(folder.glob(f"{part}*.json")) if "profile" not in path.stem
        ]
        if files:
            lines += [*table([json.loads(path.read_text("utf-8")) for path in files]), ""]
        else:
            missing.append(PARTS[part])
    if missing:
        begin = "Not measured yet" if lines else "**No GPU has measured this version yet.** Missing"
        lines.append(f"{begin}: {'; '.join(missing)}.")
    lines.append(f"`benchmarks/gpu.sh {BENCH}/{FOLDER}` measures on a machine with a GPU.")
    return "\n".join(lines)


def _steps(results: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| step | ours | ms | clips/s | MFU | of the data sheet | GiB | transformers ÷ ours "
        "| plain ÷ ours | largest batch: ours, transformers, plain |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        ours = one["sides"][one["ours"]]
        if ours["unavailable"]:
            lines.append(f"| {title(one)} | {ours['unavailable']} | | | | | | | | |")
            continue
        sheet = one["datasheet_tflops"]
        share = ours["mfu"] * one["matrix_tflops"] / sheet if sheet else None
        largest = one["largest_batch"] or {}
        ratios = (one["ratio_transformers"], one["ratio_reference"])
        cells = [
            *(title(one), one["ours"], f"{ours['step_ms']:.1f}", f"{ours['clips_per_sec']:,.0f}"),
            *(f"{ours['mfu']:.0%}", "–" if share is None else f"{share:.0%}"),
            f"{ours['peak_memory_mib'] / 1024:.1f}",
            *("–" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            ", ".join("–" if size is None else str(size) for size in largest.values()) or "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _runs(results: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| run from MP4 files | clips/s | waiting for data | MFU | GiB | epochs | hours "
        "| GPU-hours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        settings = one["settings"]
        what = (
            f"{settings['method']} of {one['model']}, {one['clips_per_step']} clips per step, "
            f"{settings['n_worker']} workers, {one['machine']['device']}"
        )
        lines.append(
            f"| {what} | {one['clips_per_sec']:,.0f} | {one['data_share']:.1%} | {one['mfu']:.0%} "
            f"| {one['memory_gib']:.1f} | {one['n_epoch']} | {one['hours']:.1f} "
            f"| {one['device_hours']:.1f} |"
        )
    return lines


def _decoding(results: Sequence[dict[str, Any]]) -> list[str]:
    (one,) = results
    rates = [f"{way}: {rate:,.0f} clips/s" for way, rate in one["clips_per_sec"].items()]
    missing = [f"{way} cannot be used: {why}" for way, why in one["missing"].items()]
    return [f"Decoding alone. {'; '.join([*rates, *missing])}."]
