"""Tables of the reliability page: the fault campaign, and what its checkpoints cost."""

from measured import result


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
    lines += [
        "",
        f"{len(measured['cases'])} faults, {injected:,} injections, {minutes:.0f} minutes on two "
        f"cores; of exact resume's grid, {grid}.",
    ]
    return "\n".join(lines)


def left_out() -> str:
    """What was not injected, and why."""
    rows = result("faults.json")["left_out"].items()
    return "\n".join(f"- {row}: {why}." for row, why in rows)
