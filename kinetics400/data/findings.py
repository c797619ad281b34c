"""What the doctor may find: reasons, how bad each is, and what to do about it. No torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

ERROR, WARNING, NOTE = "error", "warning", "note"
GET_AGAIN = "Download the video again, or run `python -m data.preprocess`: it sets it aside."
LEAK = "Remove it from one of the two lists: the model is scored on what it has seen."


class Kind(NamedTuple):
    """How bad a reason is, and the remedy."""

    level: str
    remedy: str


# The first group are the reasons of data/verify.py and data/isolation.py.
KINDS: dict[str, Kind] = {
    "absent": Kind(ERROR, "Put the file in its place, or take the line out of the list."),
    "empty file": Kind(ERROR, GET_AGAIN),
    "truncated": Kind(ERROR, GET_AGAIN),
    "damaged": Kind(ERROR, GET_AGAIN),
    "not a video": Kind(ERROR, GET_AGAIN),
    "no video stream": Kind(ERROR, GET_AGAIN),
    "too short": Kind(ERROR, GET_AGAIN),
    "too large": Kind(ERROR, "Scale the video down, or take it out of the list."),
    "unreadable": Kind(ERROR, "Check the file's permissions and the disk."),
    "wrong extension": Kind(ERROR, "Rename the file and its line in the list."),
    "crashed": Kind(ERROR, GET_AGAIN),
    "hung": Kind(ERROR, GET_AGAIN),
    "out of memory": Kind(ERROR, GET_AGAIN),
    "broken frames": Kind(
        WARNING,
        "Look at these frames: torn blocks, as a decoder shows them after lost data. Download the "
        "video again, or take it out of the list.",
    ),
    "still picture": Kind(
        WARNING,
        "Look at these frames: after lost data a decoder shows a frozen, torn picture; an inserted "
        "title is as still.",
    ),
    # Against the records of preprocessing.
    "size changed": Kind(ERROR, "The file is not the one that was stored: store it again."),
    "content changed": Kind(ERROR, "The file is not the one that was stored: store it again."),
    "bad record": Kind(ERROR, "Repeat `python -m data.preprocess`: it writes its records anew."),
    "list and manifest differ": Kind(
        WARNING, "The list was edited after preprocessing: repeat `python -m data.preprocess`."
    ),
    "unfinished": Kind(WARNING, "Repeat `python -m data.preprocess`: it continues."),
    "quarantined": Kind(NOTE, "Nothing: preprocessing left it out of the list."),
    # Lists and labels.
    "no list": Kind(ERROR, "Put the list there, or let `python -m data.preprocess` write it."),
    "bad list": Kind(ERROR, "Correct the line: '<path> <label>', UTF-8, one video per line."),
    "label order": Kind(
        ERROR, "Translate the labels into the order of --label_names, in all lists alike."
    ),
    "wrong label": Kind(ERROR, "Correct the label in the list, or move the video to its class."),
    "class without videos": Kind(WARNING, "Check --num_classes and the list."),
    # Names and content.
    "in both splits": Kind(ERROR, LEAK),
    "duplicate": Kind(WARNING, "Keep one of the two."),
    "two names": Kind(WARNING, "Keep one of the two: both schemes name the same video."),
    "differs in case": Kind(
        WARNING, "Keep such videos off file systems that ignore case (macOS, Windows)."
    ),
    "unlisted": Kind(WARNING, "Training does not use it: list it, or delete it."),
    "short": Kind(NOTE, "Clips repeat its last frames."),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and where."""

    reason: str
    """A key of KINDS."""
    split: str
    path: str = ""
    """As it stands in the list, or below the split's folder; empty for the whole split."""
    detail: str = ""

    def __post_init__(self) -> None:
        assert self.reason in KINDS, self.reason

    @property
    def level(self) -> str:
        return KINDS[self.reason].level

    def as_row(self) -> dict[str, str]:
        """For JSON."""
        kind = KINDS[self.reason]
        place = {"split": self.split, "path": self.path}
        return {"reason": self.reason, "level": kind.level, **place} | {
            "detail": self.detail,
            "remedy": kind.remedy,
        }


def by_reason(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """Findings in the order of KINDS within errors, warnings, notes."""
    levels = (ERROR, WARNING, NOTE)
    order = sorted(KINDS, key=lambda reason: levels.index(KINDS[reason].level))
    counts = Counter(finding.reason for finding in findings)
    groups: dict[str, list[Finding]] = {reason: [] for reason in order if counts[reason]}
    for finding in findings:
        groups[finding.reason].append(finding)
    return groups
