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
from kinetics400.data.shards import Shard


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split."""

    listed: int
    usable: int
    unlisted: int = 0
    """Video files on disk that the list does not name."""
    missing: int = 0
    """Lines of CSV annotations that have no video."""
    pyramids: int = 0
    n_bytes: int = 0
    source_bytes: int = 0
    """Of the originals of the usable videos."""
    seconds: float = 0.0
    """Duration of the usable videos."""


@dataclass(frozen=True)
class Summary:
    """What preprocessing found and left behind."""

    library: Path
    store: str
    """"pyramid" or "original"."""
    splits: dict[str, SplitSummary]
    quarantined: list[Quarantined]
    ignored: dict[str, int]
    """Kinds of files in the archive that were not unpacked → how many."""
    originals: Path | None
    """Where originals lie that pyramids have replaced."""
    already_done: bool
    """Nothing had to be done: an earlier run finished."""


@dataclass(frozen=True)
class ShardSummary:
    """What a shard found and left behind."""

    library: Path
    shard: Shard
    stored: int
    new: int
    """Videos that this run has dealt with."""
    refused: list[Quarantined]


def format_shard(summary: ShardSummary) -> str:
    """The report of a shard: its counts, and what comes next."""
    lines = [
        f"{summary.library}: shard {summary.shard} done, {summary.stored:,} videos stored"
        f"{'' if summary.new else ' by earlier runs, nothing changed'}"
    ]
    if summary.refused:
        lines += [f"  refused: {len(summary.refused):,}", format_reasons(summary.refused)]
    lines.append("  when all shards are done, the same command without --shard writes the lists")
    return "\n".join(lines)


def format_summary(summary: Summary) -> str:
    """The report for the user: counts against the lists, then what was quarantined and why."""
    lines = [
        f"{summary.library}: {'already done, nothing changed' if summary.already_done else 'done'}"
    ]
    kinetics = summary.splits["train"].listed >= LOOKS_LIKE_KINETICS
    for split, counts in summary.splits.items():
        published = f"; Kinetics-400 has {PUBLISHED_COUNTS[split]:,}" if kinetics else ""
        unlisted = f"; {counts.unlisted:,} files on disk are not listed" if counts.unlisted else ""
        missing = f"; {counts.missing:,} lines of the CSV have no video" if counts.missing else ""
        lines.append(
            f"  {split:<5} {counts.usable:,} usable of {counts.listed:,} listed videos"
            f"{published}{missing}{unlisted}"
        )
        lines.append(f"        {_size(counts)}")
    if summary.ignored:
        common = Counter(summary.ignored).most_common(10)
        kinds = ", ".join(f"{n:,} × {kind}" for kind, n in common)
        lines.append(f"  not unpacked, because neither video nor list: {kinds}")
    if summary.originals is not None:
        lines.append(f"  the originals lie in {summary.originals}; training does not need them")
    if summary.quarantined:
        lines.append(f"  quarantined: {len(summary.quarantined):,}")
        lines.append(format_reasons(summary.quarantined))
    return "\n".join(lines)


def _size(counts: SplitSummary) -> str:
    """How much there is, and how it is stored."""
    n_bytes = counts.n_bytes
    size = f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"
    text = f"{counts.seconds / 3600:,.2f} hours, {size}"
    if counts.pyramids == counts.usable:
        share = counts.n_bytes / max(1, counts.source_bytes)
        return f"{text}, {share:.0%} of the originals' size; all temporal pyramids"
    return f"{text}; {counts.pyramids:,} temporal pyramids, the others as they were"
