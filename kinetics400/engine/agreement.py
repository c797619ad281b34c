"""Small facts that all ranks must agree on, without asking the device."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from lightning.fabric import Fabric


class Agreement:
    """Reduces numbers over ranks on the host, through gloo whatever the devices' backend is.

    To be made by all ranks together, and called by all of them in the same order.

    Args:
        fabric: launched.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.rank = fabric.global_rank
        self._group: Any = (
            torch.distributed.new_group(backend="gloo") if fabric.world_size > 1 else None
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
