"""Tables of augmentation: its fidelity to the references, and its cost."""

from typing import Any

from measured import BENCH, bench, result


def augment_pixels() -> str:
    """Augmentation against the references, number by number."""
    fidelity = result("fidelity_augment.json")
    lines = ["| rule | reference | largest difference | numbers that differ | allowed |"]
    lines.append("|---|---|---|---|---|")
    for row in fidelity["pixels"]:
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
    found = [f"{name} {version}" for name, version in fidelity["versions"].items()]
    return "\n".join([*lines, "", f"{', '.join(found)}."])


def augment_draws() -> str:
    """Distributions of augmentation's parameters against the references' samplers."""
    return "\n".join(draws_table(result("fidelity_augment.json")))


def draws_table(fidelity: dict[str, Any]) -> list[str]:
    """Lines of a table of distributions, and what its numbers mean."""
    lines = ["| quantity | reference | test | draws | p |", "|---|---|---|---|---|"]
    for row in fidelity["draws"]:
        lines.append(
            f"| {row['quantity']} | {row['reference']} | {row['test']} | {row['count']:,} "
            f"| {row['p_value']:.3f} |"
        )
    told = f"Seed {fidelity['seed']}; p below {fidelity['least_p_value']} fails the command."
    return [*lines, "", told]


def augment_cost() -> str:
    """What `kinetics400 bench augment` measured."""
    measured = bench("augment.json")
    cost, settings = measured["cpu_ms_per_clip"], measured["settings"]
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
    about, versions = measured["machine"], measured["versions"]
    lines += [
        "",
        f"For whole batches torchvision takes {measured['ratio_torchvision']:.1f} times, timm "
        f"{measured['ratio_timm']:.1f} times as long as ours. One core of {about['cpu']}, medians "
        f"of {settings['repeats']}; {settings['batches']} batches of {settings['batch_size']} "
        f"clips. torch {versions['torch']}, torchvision {versions['torchvision']}, timm "
        f"{versions['timm']}, pillow {versions['pillow']}. torchvision's geometry is bilinear, as "
        "it has no bicubic one for uint8 tensors, and takes all frames as channels of one picture, "
        f"which is quicker than frame by frame. Raw rows: [{BENCH}/augment.json]"
        f"(../{BENCH}/augment.json); `kinetics400 bench augment --json FILE` measures again.",
    ]
    return "\n".join(lines)
