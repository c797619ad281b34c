"""Tables of the reliability page: the fault campaign, and what its checkpoints cost."""

from statistics import median

from measured import BENCH, bench, result


def faults() -> str:
    """Every fault: injected, survived, and whether its control failed."""
    measured = result("faults.json")
    lines = [
        "| FAULTS | fault | promise | injected | survived | figure | without the guard |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in measured["cases"]:
        guard = row["control"].partition("=")[0].removeprefix("kinetics400.").replace(":", ".")
        red = f"fails (`{guard}`)" if row["control_failed"] else f"**passes** (`{guard}`)"
        lines.append(
            f"| {row['row']} | {row['name']} | {row['promise']} | {row['injected']:,} "
            f"| {row['survived']:,} | {row['figure']} | {red} |"
        )
    injected = sum(row["injected"] for row in measured["cases"])
    minutes = sum(row["seconds"] for row in measured["cases"]) / 60
    grid = "all" if measured["full_grid"] else "pairs"
    commits = ", ".join(dict.fromkeys(f"`{row['commit']}`" for row in measured["cases"]))
    lines += [
        "",
        f"{len(measured['cases'])} faults, {injected:,} injections, {minutes:.0f} minutes on two "
        f"cores; of exact resume's grid, {grid}. Code under test: {commits}"
        " (+: with changes that were not committed).",
    ]
    return "\n".join(lines)


def left_out() -> str:
    """What was not injected, and why."""
    rows = result("faults.json")["left_out"].items()
    return "\n".join(f"- {row}: {why}." for row, why in rows)


def checkpoint_cost() -> str:
    """What one checkpoint of ViT-B costs."""
    measured = bench("checkpoint_cost.json")
    save, load = (median(measured[f"{what}_seconds"]) for what in ("save", "load"))
    return (
        f"{measured['model']}, {measured['n_parameters'] / 1e6:.1f} M parameters: a checkpoint has "
        f"{measured['bytes'] / 1e9:.2f} GB, takes {save:.1f} s to write, sync and read back, "
        f"and {load:.1f} s to verify and load, on a local disk and one core of a CPU. Every "
        f"{measured['save_minutes']:g} minutes that is {measured['share']:.2%} of a run "
        f"(`python benchmarks/checkpoint_cost.py {BENCH}/checkpoint_cost.json`, medians of "
        f"{len(measured['save_seconds'])})."
    )
