"""Whether all ranks still have the same weights: a bit flipped in one's memory goes unseen."""

import torch
from torch import nn

from kinetics400.engine.agreement import Agreement
from kinetics400.engine.sharding import is_sharded
from kinetics400.errors import Failure

EVERY = 100
_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(module: nn.Module) -> int:
    """Of the bits of all parameters; one flipped bit changes it."""
    sums = [
        (parameter.detach().reshape(-1).view(_INTEGER[parameter.element_size()])).sum(
            dtype=torch.int64
        )
        for parameter in module.parameters()
    ]
    # A factor for each, as two swapped parameters are no agreement.
    weights = torch.arange(1, len(sums) + 1, device=sums[0].device)
    return int((torch.stack(sums) * weights).sum())


class DriftCheck:
    """Compares the ranks' weights now and then; called by all of them together.

    Sharded weights are on one rank each, and nothing to compare: they are not checked.

    Args:
        agreement: the ranks.
        module: whose weights are to be the same everywhere.
    """

    def __init__(self, agreement: Agreement, module: nn.Module) -> None:
        self._agreement = agreement
        self._module = module
        self._has_replicas = not is_sharded(module)
        self._checked = 0

    def now_and_then(self, step: int) -> None:
        """Compare, unless that was done within the last `EVERY` steps.

        Raises:
            Failure: see `now`.
        """
        if step - self._checked >= EVERY:
            self.now(step)

    def now(self, step: int) -> None:
        """Compare.

        Raises:
            Failure: the weights differ; the ranks are listed.
        """
        self._checked = step
        if not self._has_replicas:
            return
        sums = [one for [one] in self._agreement.gather([checksum(self._module)])]
        if len(set(sums)) == 1:
            return
        usual = max(sums, key=sums.count)
        odd = [str(rank) for rank, one in enumerate(sums) if one != usual]
        who = f"rank {', '.join(odd)} has" if sums.count(usual) > 1 else "the ranks have"
        raise Failure(
            f"{who} drifted: after step {step} the weights are not the same on all ranks. Memory "
            "or a GPU may be failing: look at its error counters. Nothing was saved since the "
            "last agreement; repeating the command continues from there"
        )
