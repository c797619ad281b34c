"""The only training loop. Supervised and self-supervised methods share it."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from kinetics400.batch import Batch
from kinetics400.engine.average import WeightAverage
from kinetics400.engine.log import RunLog, memory_gib
from kinetics400.engine.optim import set_lr
from kinetics400.errors import Failure
from kinetics400.methods.base import Method


class BadVideos(Protocol):
    """Who keeps count of the videos that could not be read."""

    def record(self, step: int, failures: list) -> None:
        """Note what one rank met while loading a step's clips."""

    def check(self, step: int) -> None:
        """Stop the run if they are too many; called by all ranks together."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `fit` does, in steps. A step is one optimizer update.

    Attributes:
        total_steps: of the whole run.
        steps_per_epoch: full global batches in the data.
        clips_per_step: over all ranks and micro-batches.
        lr: learning rate of a step.
        accumulate: micro-batches per step.
        clip_grad: largest gradient norm; None leaves gradients alone.
        log_every: steps between log lines; each epoch ends with one.
        save_every: epochs between checkpoints.
        eval_every: epochs between evaluations.
    """

    total_steps: int
    steps_per_epoch: int
    clips_per_step: int
    lr: Callable[[int], float]
    accumulate: int = 1
    clip_grad: float | None = None
    log_every: int = 10
    save_every: int = 1
    eval_every: int = 1


def fit(
    fabric: Fabric,
    method: Method,
    optimizer: Optimizer,
    batches: Iterable[tuple[Batch, list]],
    *,
    augment: Callable[[Batch], Batch],
    plan: Plan,
    log: RunLog,
    start_step: int = 0,
    save: Callable[[int], None] | None = None,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    bad_videos: BadVideos | None = None,
    average: WeightAverage | None = None,
) -> None:
    """Train from `start_step` to the end.

    Args:
        fabric: launched; device, precision and ranks.
        method: on the device, not yet wrapped.
        optimizer: over the method's parameter groups.
        batches: this rank's micro-batches from `start_step` on, on the device, with the videos that
            failed.
        augment: from uint8 batches to normalised ones, on the device.
        plan: see there.
        log: where metrics go.
        start_step: steps already done.
        save: called with the number of steps done every `save_every` epochs and at the end.
        evaluate: called every `eval_every` epochs and at the end; what it returns is logged.
        bad_videos: told of videos that could not be read; asked at each log line whether they
            have become too many.
        average: takes in the weights after each step.

    Raises:
        Failure: the loss is not finite.
    """
    model, optimizer = fabric.setup(method, optimizer)
    method.train()
    data = iter(batches)
    meter = _Meter(fabric, plan)
    for step in range(start_step, plan.total_steps):
        lr = plan.lr(step)
        set_lr(optimizer, lr)
        for micro in range(plan.accumulate):
            waiting = time.perf_counter()
            batch, failures = next(data)
            meter.data_time += time.perf_counter() - waiting
            if failures and bad_videos is not None:
                bad_videos.record(step, failures)
            batch = augment(batch)
            # All ranks' gradients meet once per step, at its last micro-batch.
            with fabric.no_backward_sync(model, enabled=micro < plan.accumulate - 1):
                values = model(batch, method.draw(batch.keys))
                fabric.backward(values["loss"] / plan.accumulate)
            meter.add(values)
        if plan.clip_grad is not None:
            # The first steps in float16 overflow by design; the scaler skips them.
            norm = fabric.clip_gradients(
                model, optimizer, max_norm=plan.clip_grad, error_if_nonfinite=False
            )
            assert norm is not None
            meter.add({"grad_norm": norm})
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.end_step()

        done = step + 1
        method.after_step(done / plan.total_steps)
        if average is not None:
            average.update()
        epoch, step_in_epoch = divmod(done, plan.steps_per_epoch)
        last = done == plan.total_steps
        if done % plan.log_every == 0 or step_in_epoch == 0:
            if bad_videos is not None:
                bad_videos.check(step)
            log.metrics(done, {"epoch": done / plan.steps_per_epoch, "lr": lr, **meter.read(done)})
        if step_in_epoch == 0:
            if evaluate is not None and (epoch % plan.eval_every == 0 or last):
                log.metrics(done, {"epoch": epoch, **evaluate(done)})
            if save is not None and (epoch % plan.save_every == 0 or last):
                save(done)
            meter.restart_clock()


class _Meter:
    """Means of what the steps returned, kept on the device and read only when logging."""

    def __init__(self, fabric: Fabric, plan: Plan) -> None:
        self._fabric = fabric
        self._plan = plan
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave what happened since the last reading (evaluation, saving) out of the times."""
        self._started = time.perf_counter()
        self._steps = 0
        self.data_time = 0.0

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def end_step(self) -> None:
        self._steps += 1

    def read(self, step: int) -> dict[str, float]:
        """Means over ranks and steps since the last reading, rates and times; starts anew."""
        names = sorted(self._sums)
        own = torch.stack([self._sums[name] / self._counts[name] for name in names])
        means = self._fabric.all_reduce(own, reduce_op="mean")
        assert isinstance(means, Tensor)
        values = dict(zip(names, means.tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            raise Failure(
                f"the loss is {values['loss']} at step {step}. Repeating the command continues "
                "from the last checkpoint; if it comes again, start in another --save_dir with a "
                "lower --lr, a longer --warmup_epochs or --clip_grad"
            )
        elapsed = time.perf_counter() - self._started
        values |= {
            "clips_per_sec": self._plan.clips_per_step * self._steps / elapsed,
            "data_time": self.data_time / self._steps,
            "step_time": elapsed / self._steps,
            "memory": memory_gib(self._fabric.device),
        }
        self._sums.clear()
        self._counts.clear()
        self.restart_clock()
        return values
