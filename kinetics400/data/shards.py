"""Shares of one dataset: which videos are whose, as a pure function of their names."""

import hashlib
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from kinetics400.errors import InputError

PATTERN = re.compile(r"(\d+)/(\d+)")
ARRAY = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Shard:
    """One of `count` shares, the first being number 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def holds(self, split: str, name: str) -> bool:
        """Whether a video belongs to this share; every video belongs to exactly one."""
        digest = hashlib.sha256(f"{split}/{name}".encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8]) % self.count == self.index - 1


@dataclass(frozen=True)
class NotOurs:
    """(split, name) of the videos to leave out: those taken already, and other shards'."""

    taken: Container[tuple[str, str]]
    shard: Shard

    def __contains__(self, video: Any) -> bool:
        return video in self.taken or not self.shard.holds(*video)


def parse_shard(text: str) -> Shard:
    """Read "i/n".

    Raises:
        InputError: it is something else, or i is not from 1 to n.
    """
    match = PATTERN.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(
            f"--shard {text} is not i/n with i from 1 to n, for example --shard 3/8 for the third "
            "of eight shares."
        )
    return Shard(int(match[1]), int(match[2]))


def slurm_shard(environment: Mapping[str, str]) -> Shard | None:
    """The share of a task of a SLURM array; None outside of one, or if it is alone in it.

    >>> slurm_shard({ARRAY + "ID": "4", ARRAY + "MIN": "0", ARRAY + "MAX": "6",
    ...              ARRAY + "STEP": "2", ARRAY + "COUNT": "4"})
    Shard(index=3, count=4)

    Raises:
        InputError: the array's numbers are not evenly spaced, so they do not tell the share.
    """
    if ARRAY + "ID" not in environment:
        return None
    names = ("ID", "MIN", "MAX", "COUNT")
    number, least, most, count = (int(environment[ARRAY + name]) for name in names)
    step = int(environment.get(ARRAY + "STEP", "1"))
    if count == 1:
        return None
    if least + (count - 1) * step != most or (number - least) % step:
        raise InputError(
            f"the {count} tasks of this SLURM array are not evenly spaced from {least} to {most}, "
            "so their numbers do not tell their shares: name the share with --shard i/n."
        )
    return Shard((number - least) // step + 1, count)
