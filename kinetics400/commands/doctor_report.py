"""What the doctor tells people: the machine, the data, and what is wrong, worst first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinetics400.commands.doctor_environment import GOOD, Fact
from kinetics400.data.annotations import CONTROL
from kinetics400.data.checkup import Checkup, counts, which_copy
from kinetics400.data.findings import KINDS, Finding, by_reason

SHOWN = 5  # of each reason, when there are more than SHOWN_ALL
SHOWN_ALL = 12
MARKS = {GOOD: " ", "note": "·", "warning": "!", "error": "✗"}


def format_environment(facts: Sequence[Fact]) -> str:
    """The machine, one fact per line."""
    wide = max(len(fact.name) for fact in facts)
    lines = ["machine"]
    for fact in facts:
        lines.append(f"{MARKS[fact.verdict]} {fact.name:<{wide}}  {fact.value}")
        if fact.remedy:
            lines.append(f"  {'':<{wide}}  {fact.verdict}: {fact.remedy}")
    return "\n".join(lines)


def format_data(checkup: Checkup) -> str:
    """The data in numbers."""
    lines = [f"data in {checkup.library}"]
    table = counts(checkup)
    for split, row in table.items():
        aside = f", {row['quarantined']:,} quarantined before" if row["quarantined"] else ""
        lines.append(f"  {split:<6}{row['listed']:,} videos, {row['in_order']:,} in order{aside}")
    copy = which_copy({s: row["listed"] + row["quarantined"] for s, row in table.items()})
    if copy:
        lines.append(f"  Kinetics-400: {copy}")
    if not checkup.is_kept:
        lines.append("  the folder cannot be written, so nothing is remembered for the next time")
    return "\n".join(lines)


def format_findings(findings: Sequence[Finding], target: Path | None) -> str:
    """What is wrong, by reason: all names when there are few, else where the others are."""
    lines = []
    for reason, group in by_reason(findings).items():
        kind = KINDS[reason]
        lines.append(f"{MARKS[kind.level]} {reason}: {len(group):,} ({kind.level})")
        shown = group if len(group) <= SHOWN_ALL else group[:SHOWN]
        for finding in shown:
            place = f"{finding.split}: {finding.path}".removesuffix(": ")
            detail = f"  ({finding.detail})" if finding.detail else ""
            lines.append(f"    {_printable(place + detail)}")
        if len(shown) < len(group):
            where = f"all in {target}" if target else "--json FILE names all"
            lines.append(f"    … and {len(group) - len(shown):,} more; {where}")
        lines.append(f"    → {kind.remedy}")
    return "\n".join(lines) if lines else "nothing is wrong with the data"


def _printable(text: str) -> str:
    """Without what moves a terminal's cursor, or no terminal can show: names come from anywhere."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def verdict(facts: Sequence[Fact], findings: Sequence[Finding]) -> str:
    """The last line."""
    levels = [fact.verdict for fact in facts] + [finding.level for finding in findings]
    n_error, n_warning = levels.count("error"), levels.count("warning")
    return f"{n_error:,} error(s), {n_warning:,} warning(s)"


def as_json(
    facts: Sequence[Fact], checkup: Checkup, findings: Sequence[Finding], *, full: bool
) -> dict[str, Any]:
    """Everything, for machines."""
    table: Mapping[str, Any] = counts(checkup)
    listed = {split: row["listed"] + row["quarantined"] for split, row in table.items()}
    return {
        "library": str(checkup.library),
        "full": full,
        "environment": [vars(fact) for fact in facts],
        "splits": table,
        "copy": which_copy(listed),
        "counts": {reason: len(group) for reason, group in by_reason(findings).items()},
        "findings": [f.as_row() for group in by_reason(findings).values() for f in group],
    }
