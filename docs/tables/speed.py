"""Tables of the performance page: what a training step costs on a CPU core, and where it goes."""

from typing import Any

from measured import BENCH, bench

SIZES = {384: "ViT-S", 768: "ViT-B", 1024: "ViT-L"}
FILES = ("step_cpu.json", "step_cpu_finetuning.json", "step_cpu_base.json", "step_cpu_large.json")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
# Operations by what they are for, by parts of their names.
GROUPS = {
    "matrix products": (),
    "attention, fused": ("scaled_dot_product",),
    "softmax": ("softmax",),
    "patch embedding as a convolution": ("convolution",),
    "optimizer": ("adam", "lerp", "addcmul", "addcdiv"),
    "GELU and norms": ("gelu", "layer_norm"),
    "copies and gathers": ("copy", "gather", "index", "nonzero", "cat", "_to_copy"),
}


def step() -> str:
    """Steps of all sides."""
    lines = [
        "| | step, ms | forward | backward | optimizer | clips/s | MFU | memory, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in FILES:
        measured = bench(name)
        lines.append(f"| **{title(measured)}** | | | | | | | |")
        for side, row in measured["sides"].items():
            lines.append(
                f"| {side} | {row['step_ms']:,.0f} | {row['forward_ms']:,.0f} "
                f"| {row['backward_ms']:,.0f} | {row['optimizer_ms']:,.0f} "
                f"| {row['clips_per_sec']:.2f} | {row['mfu']:.0%} | {row['peak_memory_mib']:,.0f} |"
            )
    about, versions = measured["machine"], measured["versions"]
    return "\n".join(
        [
            *lines,
            "",
            f"One core of {about['cpu']}; torch {versions['torch']}, transformers "
            f"{versions['transformers']}. `make bench-step`; raw rows in "
            f"[{BENCH}/](../{BENCH}).",
        ]
    )


def step_ratios() -> str:
    """Ours against the others."""
    lines = [
        "| | transformers ÷ ours: best of ours | both eager | both compiled | plain ÷ ours "
        "| memory, ours ÷ transformers | losses differ by |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in FILES:
        measured = bench(name)
        numbers = [
            *("ratio_transformers", "ratio_transformers_eager", "ratio_transformers_compiled"),
            *("ratio_reference", "memory_ratio"),
        ]
        cells = ["–" if measured[key] is None else f"{measured[key]:.2f}" for key in numbers]
        lines.append(
            f"| {title(measured)} | {' | '.join(cells)} | {measured['loss_difference']:.0e} |"
        )
    return "\n".join(lines)


def step_profile() -> str:
    """Where the time of an eager pretraining step goes."""
    measured = bench(FILES[0])
    sides = ("plain", "transformers", "ours")
    spent = {side: _grouped(measured["sides"][side]) for side in sides}
    lines = ["| ms of a step | " + " | ".join(sides) + " |", "|---|---|---|---|"]
    for group in (*GROUPS, "others"):
        cells = (f"{spent[side].get(group, 0):,.0f}" for side in sides)
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{title(measured)}, by torch's profiler."])


def _grouped(side: dict[str, Any]) -> dict[str, float]:
    """Milliseconds by group; what the profile does not list counts among the others."""
    spent: dict[str, float] = {}
    for kernel in side["kernels"]:
        group = _group(kernel["name"].removeprefix("aten::"))
        spent[group] = spent.get(group, 0) + kernel["ms"]
    first = side["kernels"][0]
    whole = first["ms"] / first["share"]
    spent["others"] = whole - sum(ms for group, ms in spent.items() if group != "others")
    return spent


def _group(name: str) -> str:
    if name in PRODUCTS:
        return next(iter(GROUPS))
    groups = (group for group, parts in GROUPS.items() if any(part in name for part in parts))
    return next(groups, "others")


def title(measured: dict[str, Any]) -> str:
    """What was measured, in a few words."""
    settings = measured["settings"]
    clips = f"{settings['batch_size']} clip{'s' if settings['batch_size'] > 1 else ''}"
    size = SIZES[settings["config"]["embed_dim"]]
    return f"{size}, {settings['method']}, {clips}, {settings['precision']}"
