"""Means of what steps return, and their rates and times, between two lines of the log."""

import time
from collections.abc import Mapping

import torch
from lightning.fabric import Fabric
from torch import Tensor

from kinetics400.engine.log import memory_gib


class Meter:
    """Sums on the device, read only when logging.

    Args:
        fabric: the ranks.
        clips_per_step: over all ranks and micro-batches.
        start: what `sums` gave when an earlier attempt was saved.
    """

    def __init__(self, fabric: Fabric, clips_per_step: int, start: Mapping[str, Tensor]) -> None:
        self._fabric = fabric
        self._clips_per_step = clips_per_step
        self._sums = {name: pair.to(fabric.device) for name, pair in start.items()}
        self._step: dict[str, Tensor] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave what happened since the last step (evaluation, saving) out of the times."""
        self._started = time.perf_counter()
        self._n_steps = 0
        self.data_time = 0.0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in one micro-batch's values, or one of the step's own."""
        for name, value in values.items():
            pair = torch.stack((value.detach().float(), torch.ones_like(value.detach().float())))
            self._step[name] = self._step[name] + pair if name in self._step else pair

    def step_sum(self, name: str) -> Tensor:
        """Of the step that has not ended yet."""
        return self._step[name][0]

    def end_step(self, is_counted: Tensor) -> None:
        """Take the step's values in, unless its update was skipped."""
        skipped = (~is_counted).float()
        for name, pair in [
            *((name, torch.where(is_counted, pair, 0.0)) for name, pair in self._step.items()),
            ("skipped_share", torch.stack((skipped, torch.ones_like(skipped)))),
        ]:
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair
        self._step.clear()
        self._n_steps += 1

    def sums(self) -> dict[str, Tensor]:
        """Sum and count of each value since the last reading, (2,), on the CPU."""
        return {name: pair.cpu() for name, pair in self._sums.items()}

    def read(self) -> dict[str, float]:
        """Means over ranks and steps since the last reading, rates and times; starts anew.

        A mean is NaN where no step was counted.
        """
        names = sorted(self._sums)
        own = torch.stack([self._sums[name][0] / self._sums[name][1] for name in names])
        means = self._fabric.all_reduce(own, reduce_op="mean")
        assert isinstance(means, Tensor)
        values = dict(zip(names, means.tolist(), strict=True))
        elapsed = time.perf_counter() - self._started
        values |= {
            "clips_per_sec": self._clips_per_step * self._n_steps / elapsed,
            "data_time": self.data_time / self._n_steps,
            "step_time": elapsed / self._n_steps,
            "memory": memory_gib(self._fabric.device),
        }
        self._sums.clear()
        self.restart_clock()
        return values
