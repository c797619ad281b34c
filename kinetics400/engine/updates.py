"""Optimizer updates, but for those whose loss or gradient is not finite: they change nothing.

The decision falls on the device, for all ranks alike; the host reads it when the log is written.
"""

import math
from collections.abc import Callable

import torch
import torch.distributed
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from kinetics400.engine.sharding import whole
from kinetics400.errors import Failure

MOST_IN_A_ROW = 3
MOST_OF_THOUSAND = 10
_REMEDY = (
    "Repeating the command continues from the last checkpoint; if it comes again, start in another "
    "--save_dir with a lower --lr, a longer --warmup_epochs or --clip_grad"
)


class Updates:
    """Applies a run's updates and keeps count of those skipped.

    Args:
        fabric: the ranks.
        optimizer: not yet wrapped. Where its kernel is fused, an update is skipped on the device;
            otherwise (Lion) the host waits for each step's verdict.
        slots: names the samples of a step, for the message.
    """

    def __init__(self, fabric: Fabric, optimizer: Optimizer, slots: Callable[[int], str]) -> None:
        self._world_size = fabric.world_size
        # The scaler of float16 skips by itself what overflows, which its first steps do by design.
        self.is_scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
        self._optimizer = optimizer
        self._is_fused = all(group.get("fused") for group in optimizer.param_groups)
        self._slots = slots
        self._unread: list[tuple[int, Tensor]] = []
        self._in_a_row = 0
        self._skipped: list[int] = []

    def apply(self, step: int, update: Callable[[], object], loss: Tensor, norm: Tensor) -> Tensor:
        """Update, or do not.

        Args:
            step: its number, from 0.
            update: the optimizer's step.
            loss: (), this rank's.
            norm: (), of all gradients.

        Returns:
            (), bool: whether the step counts.
        """
        is_bad = ~loss.isfinite()
        if not self.is_scaled:
            is_bad = is_bad | ~norm.isfinite()
        flag = is_bad.float()
        if self._world_size > 1:
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        self._unread.append((step, flag))
        if self._is_fused and not self.is_scaled:
            self._optimizer.found_inf = flag  # type: ignore[attr-defined]  # as GradScaler does
            update()
        elif self.is_scaled or not flag:
            update()
        return flag == 0

    def read(self, say: Callable[[str], None]) -> None:
        """Report the updates skipped since the last reading; all ranks find the same.

        Args:
            say: told of each.

        Raises:
            Failure: three in a row, or 10 of 1,000 steps.
        """
        if not self._unread:
            return
        flags = torch.stack([flag for _, flag in self._unread]).tolist()
        steps = [step for step, _ in self._unread]
        self._unread.clear()
        for step, flag in zip(steps, flags, strict=True):
            if not flag:
                self._in_a_row = 0
                continue
            self._in_a_row += 1
            self._skipped = [one for one in self._skipped if one > step - 1000] + [step]
            told = f"step {step + 1} ({self._slots(step)})"
            if self._in_a_row == MOST_IN_A_ROW:
                raise Failure(
                    f"the loss or a gradient is not finite in {MOST_IN_A_ROW} steps in a row, the "
                    f"last of them {told}; they have changed nothing. {_REMEDY}"
                )
            if len(self._skipped) == MOST_OF_THOUSAND:
                raise Failure(
                    f"the loss or a gradient was not finite in {MOST_OF_THOUSAND} of 1,000 steps, "
                    f"the last of them {told}; they have changed nothing. {_REMEDY}"
                )
            say(f"WARNING: the loss or a gradient is not finite in {told}: skipped on all ranks")


def gradient_norm(module: nn.Module) -> Tensor:
    """Norm of all gradients together, (); on the device."""
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    return whole(nn.utils.get_total_norm(grads))


def require_finite_weights(module: nn.Module, step: int) -> None:
    """Keep weights that an update has spoilt from being saved: only the next loss would tell.

    Raises:
        Failure: some weight is not finite.
    """
    norm = whole(nn.utils.get_total_norm(p.detach() for p in module.parameters()))
    if not math.isfinite(norm.item()):
        raise Failure(f"weights are not finite after step {step}, and not saved. {_REMEDY}")
