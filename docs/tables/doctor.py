"""Tables of the doctor: what it may find, how long it takes."""

from measured import BENCH, bench  # first: it makes the package importable

from kinetics400.data.findings import KINDS


def doctor_reasons() -> str:
    """Everything that `kinetics400 doctor` may find."""
    lines = ["| reason | level | what to do |", "|---|---|---|"]
    lines += [f"| {reason} | {kind.level} | {kind.remedy} |" for reason, kind in KINDS.items()]
    return "\n".join(lines)


def doctor_speed() -> str:
    """The doctor on as many files as Kinetics-400 has."""
    measured = bench("doctor_speed.json")
    killed = f"continued, after a kill at {measured['killed_after_rows']:,} rows"
    rows = {
        "the first run": measured["first"],
        killed: measured["continued"],
        "everything remembered": measured["second"],
    }
    lines = ["| run | seconds | of CPU |", "|---|---|---|"]
    lines += [
        f"| {name} | {r['seconds']:.0f} | {r['cpu_seconds']:.0f} |" for name, r in rows.items()
    ]
    lines += [
        "",
        f"{measured['n_videos']:,} small MP4 files of equal length on a local disk; all of it, "
        f"on {measured['cores']} cores that other work shared. A network disk takes as long as it "
        f"takes to open each file. Raw figures: [{BENCH}/doctor_speed.json]"
        f"(../{BENCH}/doctor_speed.json); `make doctor-proof` measures again.",
    ]
    return "\n".join(lines)
