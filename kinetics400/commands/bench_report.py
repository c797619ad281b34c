"""What `kinetics400 bench` tells people: its results as tables."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def loader_table(result: Mapping[str, Any]) -> str:
    """The result for people."""
    return "\n".join(
        [
            *_about(result),
            "",
            *_rates(result["contenders"]),
            "",
            *_store(result),
            *_scaling(result["scaling"]),
            *(f"left out: {path}: {reason}" for path, reason in result["excluded"].items()),
        ]
    )


def _about(result: Mapping[str, Any]) -> list[str]:
    machine, versions = result["machine"], result["versions"]
    present = [f"{name} {version}" for name, version in versions.items() if version]
    kind = "made" if result["videos_made"] else "given"
    lines = [
        f"core {machine['pinned_to']} of {machine['cores']}, {machine['cpu']}",
        ", ".join(present),
    ]
    for video in result["videos"]:
        seconds = video["num_frames"] / video["fps"]
        lines.append(
            f"{kind}: {Path(video['path']).name}, {video['codec']} {video['width']}×"
            f"{video['height']}, {seconds:.1f} s, {video['fps']:.4g} frames/s, "
            f"{video['kbit_per_sec']:.0f} kbit/s, keyframes at {_some(video['keyframes'])}"
        )
    return lines


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:3])
    return f"{shown} …" if len(numbers) > 3 else shown


def _rates(contenders: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [("", "per second and core", "least–most", "to (a)", "of (e)")]
    for one in contenders:
        name = f"{one['task']:<9}{one['meaning']}"
        if one["per_sec"] is None:
            rows.append((name, f"unavailable: {one['unavailable']}", "", "", ""))
            continue
        spread = f"{one['least_per_sec']:.1f}–{one['most_per_sec']:.1f}"
        to_decord = _or_dash(one["ratio_to_decord"], lambda value: f"{value:.1f} ×")
        of_floor = _or_dash(one["share_of_floor"], lambda value: f"{100 * value:.0f} %")
        rows.append((name, f"{one['per_sec']:.1f} {one['unit']}", spread, to_decord, of_floor))
    return [f"{a:<58}{b:>20}{c:>15}{d:>9}{e:>8}".rstrip() for a, b, c, d, e in rows]


def _or_dash(value: float | None, text: Callable[[float], str]) -> str:
    return "–" if value is None else text(value)


def _store(result: Mapping[str, Any]) -> list[str]:
    psnr = _or_dash(result["psnr_luma_db"], lambda value: f"{value:.2f} dB")
    share = result["preprocess_share_of_bare_loop"]
    num_videos, byte_share = len(result["videos"]), 100 * result["store_bytes_ratio"]
    lines = [
        f"store of {num_videos} videos: {byte_share:.1f} % of the originals' bytes, luma PSNR "
        f"{psnr} against the scaled originals (mean over frames, then videos)",
        f"preprocessing: {result['preprocess_seconds_per_video']:.2f} s per video and core, "
        f"{100 * share:.0f} % of the throughput of a bare decode–scale–encode loop",
    ]
    busy = result["wall_share_of_cpu"]
    if busy > 1.1:
        lines.append(
            f"the core was shared: the clock ran {100 * (busy - 1):.0f} % longer than the CPU's "
            "time, which is what counts above"
        )
    return lines


def _scaling(rows: Sequence[Mapping[str, Any]] | None) -> list[str]:
    return [
        f"loader with {row['workers']} workers: {row['clips_per_sec']:.1f} pretraining clips/s"
        for row in rows or ()
    ]


def augment_table(result: Mapping[str, Any]) -> str:
    """What augmentation costs, for people."""
    machine, cost = result["machine"], result["cpu_ms_per_clip"]
    contenders = ("ours", "torchvision", "timm")
    lines = [f"core {machine['pinned_to']} of {machine['cores']}, {machine['cpu']}"]
    lines.append(f"{'CPU ms per clip of 16 × 224 × 224':<40}" + _columns(contenders))
    for task, by in cost.items():
        if task != "reading":
            lines.append(f"{task:<40}" + _columns([f"{by[name]:.2f}" for name in contenders]))
    lines += [f"{task:<40}{ms:>14.2f}" for task, ms in cost["reading"].items()]
    lines.append(
        f"whole batches: torchvision takes {result['ratio_torchvision']:.2f} times, timm "
        f"{result['ratio_timm']:.2f} times as long as ours"
    )
    return "\n".join(lines)


def step_table(result: Mapping[str, Any]) -> str:
    """What a training step costs, for people."""
    settings, about = result["settings"], result["machine"]
    config = settings["config"]
    lines = [
        f"{settings['method']}, width {config['embed_dim']}, depth {config['depth']}, "
        f"{settings['batch_size']} clips of {config['num_frames']} × {config['image_size']}², "
        f"{settings['precision']}, on {about['device']} ({about['cpu']})",
        f"{'':<24}"
        + "".join(
            f"{head:>12}"
            for head in ("step ms", "forward", "backward", "optimizer", "clips/s", "MFU", "GiB")
        ),
    ]
    for name, side in result["sides"].items():
        if side["unavailable"]:
            lines.append(f"{name:<24}unavailable: {side['unavailable']}")
            continue
        times = [side[key] for key in ("step_ms", "forward_ms", "backward_ms", "optimizer_ms")]
        cells = [f"{ms:.1f}" for ms in times] + [
            f"{side['clips_per_sec']:.2f}",
            f"{100 * side['mfu']:.0f} %",
            f"{side['peak_memory_mib'] / 1024:.2f}",
        ]
        lines.append(f"{name:<24}" + "".join(f"{cell:>12}" for cell in cells))
    speed, plain, memory = (
        _or_dash(result[name], lambda value: f"{value:.2f} ×")
        for name in ("ratio_transformers", "ratio_reference", "memory_ratio")
    )
    apart = _or_dash(result["loss_difference"], lambda value: f"{value:.1g}")
    lines.append(
        f"{result['ours']}: {speed} transformers, {plain} plain; memory {memory} transformers'; "
        f"first losses differ by {apart} at most"
    )
    rate, sheet = result["matrix_tflops"], result["datasheet_tflops"]
    lines.append(
        f"{result['training_gflops_per_clip']:.1f} GFLOPs per clip; matrices multiply at "
        f"{rate:.3g} TFLOP/s here" + (f", {sheet:g} in the data sheet" if sheet else "")
    )
    for name, size in (result["largest_batch"] or {}).items():
        lines.append(f"largest batch, {name}: {_or_dash(size, str)}")
    return "\n".join(lines)


def run_table(result: Mapping[str, Any]) -> str:
    """What a run would take, for people."""
    settings, made = result["settings"], result["videos_made"]
    return "\n".join(
        [
            f"{settings['method']} of {result['model']}, {result['clips_per_step']} clips per step "
            f"on {settings['n_device']} × {result['machine']['device']}, {settings['precision']}, "
            f"{settings['n_worker']} workers; videos {'made here' if made else 'as listed'}",
            f"{result['clips_per_sec']:.1f} clips/s, {result['step_time']:.3f} s per step, "
            f"{result['data_share']:.0%} of it waiting for data; MFU {result['mfu']:.0%}; memory "
            f"{result['memory_gib']:.1f} GiB",
            f"{result['n_epoch']} epochs of {result['train_videos']:,} videos: "
            f"{result['total_steps']:,} steps, {result['hours']:.1f} h, "
            f"{result['device_hours']:.1f} device-hours",
        ]
    )


def fidelity_table(result: Mapping[str, Any]) -> str:
    """How augmentation agrees with the references, for people."""
    lines = []
    for row in result["pixels"]:
        verdict = "" if row["holds"] else "  FAILED"
        numbers = f"{row['largest']:>10.3g} {row['unit']:<7}{row['share']:>10.4%} differ"
        lines.append(f"{row['rule']:<55}{numbers}{verdict}")
    for row in result["draws"]:
        verdict = "" if row["p_value"] >= result["least_p_value"] else "  FAILED"
        lines.append(f"{row['quantity']:<35}{row['test']:<20}p = {row['p_value']:.4f}{verdict}")
    return "\n".join([*lines, "all agree" if result["passed"] else "NOT ALL AGREE"])


def _columns(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>14}" for cell in cells)
