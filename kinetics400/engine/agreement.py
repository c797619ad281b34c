"""Small facts that all ranks must agree on, without asking the device."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from lightning.fabric import Fabric


class Agreement:
    """Exchanges numbers between ranks on the host, through gloo whatever the devices' backend is.

    To be made by all ranks together, and called by all of them in the same order.

    Args:
        fabric: launched.
        timeout: seconds after which a rank that does not answer counts as lost.
    """

    def __init__(self, fabric: Fabric, *, timeout: float = 600) -> None:
        self.rank = fabric.global_rank
        self._world_size = fabric.world_size
        self._group: Any = None
        if fabric.world_size > 1:
            self._group = torch.distributed.new_group(
                backend="gloo", timeout=timedelta(seconds=timeout)
            )

    def largest(self, values: Sequence[int]) -> list[int]:
        """Of each value the largest that any rank has."""
        if self._group is None:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.int64)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self._group)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """Whether it holds for some rank. Ranks wait here for each other."""
        return bool(self.largest([int(flag)])[0])

    def gather(self, values: Sequence[int]) -> list[list[int]]:
        """Every rank's values (as many on each), by rank; of 64 bits."""
        if self._group is None:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.int64)
        parts = [torch.empty_like(own) for _ in range(self._world_size)]
        torch.distributed.all_gather(parts, own, group=self._group)
        return [part.tolist() for part in parts]

    def disagreements(self, facts: Mapping[str, object]) -> list[str]:
        """Names of the facts that are not the same everywhere, each with the ranks unlike rank 0.

        Args:
            facts: of this rank, told apart by `repr`.
        """
        names = sorted(facts)
        own_names = _digest(names)
        unlike = [rank for rank, [one] in enumerate(self.gather([own_names])) if one != own_names]
        if self.largest([len(unlike)])[0]:
            return ["the flags there are (is it the same version everywhere?)"]
        first, *others = self.gather([_digest(facts[name]) for name in names])
        found = {
            name: [rank for rank, theirs in enumerate(others, 1) if theirs[i] != first[i]]
            for i, name in enumerate(names)
        }
        return [
            f"{name} (rank {', '.join(map(str, ranks))})" for name, ranks in found.items() if ranks
        ]


def _digest(fact: object) -> int:
    digest = hashlib.sha256(repr(fact).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
