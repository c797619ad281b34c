"""Means of what steps return, and their rates and times, between two lines of the log."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

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
        mfu_unit: clips per second, over all ranks, at which the devices would only multiply
            matrices; None leaves the MFU out.
    """

    def __init__(
        self,
        fabric: Fabric,
        clips_per_step: int,
        start: Mapping[str, Tensor],
        mfu_unit: float | None = None,
    ) -> None:
        self._fabric = fabric
        self._clips_per_step = clips_per_step
        self._mfu_unit = mfu_unit
        self._sums = {name: pair.to(fabric.device) for name, pair in start.items()}
        self._step: dict[str, Tensor] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave what happened since the last step (evaluation, saving) out of the times."""
        self._started = time.perf_counter()
        self._n_steps = 0
        self._waits: list[Callable[[], float]] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time what the device waits for: the next batch.

        The host runs ahead of a GPU, and may wait long for a batch while the GPU is busy. So on
        CUDA the GPU's own idle time counts, from the end of its last step to the batch's arrival.
        """
        if self._fabric.device.type == "cuda":
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            yield
            after.record()  # the stream waits for the batch's copy
            self._waits.append(lambda: before.elapsed_time(after) / 1e3)
        else:
            start = time.perf_counter()
            yield
            seconds = time.perf_counter() - start
            self._waits.append(lambda: seconds)

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
        elapsed = time.perf_counter() - self._started  # the device has just been waited for
        own_wait = torch.tensor(sum(wait() for wait in self._waits), dtype=torch.float64)
        longest = self._fabric.all_reduce(own_wait.to(self._fabric.device), reduce_op="max")
        assert isinstance(longest, Tensor)
        (data_time,) = longest.reshape(1).tolist()  # the other ranks wait for the last
        values |= {
            "clips_per_sec": self._clips_per_step * self._n_steps / elapsed,
            "data_time": data_time / self._n_steps,
            "data_share": data_time / elapsed,
            "step_time": elapsed / self._n_steps,
            "memory": memory_gib(self._fabric.device),
        }
        if self._mfu_unit is not None:
            values["mfu"] = values["clips_per_sec"] / self._mfu_unit
        self._sums.clear()
        self.restart_clock()
        return values


class WaitWarning:
    """Says once, with the remedy, that the loader holds the devices back.

    Args:
        say: takes the warning.
    """

    MOST = 0.1
    """Share of the time that may go by waiting."""
    PATIENCE = 60.0
    """Seconds from the first line of the log on in which workers may get going."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._first: float | None = None
        self._was_above = False
        self._said = False

    def __call__(self, data_share: float) -> None:
        """Take in a line of the log; two in a row are above the most that may be."""
        now = time.monotonic()
        self._first = now if self._first is None else self._first
        is_above = data_share > self.MOST and now - self._first >= self.PATIENCE
        if is_above and self._was_above and not self._said:
            self._said = True
            self._say(
                f"WARNING: {data_share:.0%} of the time goes by waiting for data. Raise --n_worker "
                "as far as there are cores; store the videos with 'python -m data.preprocess' if "
                "they are originals; 'kinetics400 bench loader' tells what a core can read "
                "(docs/performance.md)"
            )
        self._was_above = is_above
