"""What `preprocess` tells its user at the end."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from kinetics400.data.library import (
    LOOKS_LIKE_KINETICS,
    PUBLISHED_COUNTS,
    Quarantined,
    format_reasons,
)


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split."""

    listed: int
    usable: int
    unlisted: int
    """Video files on disk that the list does not name."""


@dataclass(frozen=True)
class Summary:
    """What preprocessing found and left behind."""

    library: Path
    splits: dict[str, SplitSummary]
    quarantined: list[Quarantined]
    ignored: dict[str, int]
    """Kinds of files in the archive that were not unpacked → how many."""
    already_done: bool
    """Nothing had to be done: an earlier run finished."""


def format_summary(summary: Summary) -> str:
    """The report for the user: counts against the lists, then what was quarantined and why."""
    lines = [
        f"{summary.library}: {'already done, nothing changed' if summary.already_done else 'done'}"
    ]
    kinetics = summary.splits["train"].listed >= LOOKS_LIKE_KINETICS
    for split, counts in summary.splits.items():
        published = f"; Kinetics-400 has {PUBLISHED_COUNTS[split]:,}" if kinetics else ""
        unlisted = f"; {counts.unlisted:,} files on disk are not listed" if counts.unlisted else ""
        lines.append(
            f"  {split:<5} {counts.usable:,} usable of {counts.listed:,} listed videos"
            f"{published}{unlisted}"
        )
    if summary.ignored:
        common = Counter(summary.ignored).most_common(10)
        kinds = ", ".join(f"{n:,} × {kind}" for kind, n in common)
        lines.append(f"  not unpacked, because neither video nor list: {kinds}")
    if summary.quarantined:
        lines.append(f"  quarantined: {len(summary.quarantined):,}")
        lines.append(format_reasons(summary.quarantined))
    return "\n".join(lines)
