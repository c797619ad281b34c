"""The only training loop. Supervised and self-supervised methods share it."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from kinetics400.batch import Batch
from kinetics400.engine.average import WeightAverage
from kinetics400.engine.interruption import Decision
from kinetics400.engine.log import RunLog, memory_gib
from kinetics400.engine.optim import set_lr
from kinetics400.errors import Failure, Stopped
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
    start_means: Mapping[str, Tensor] | None = None,
    is_evaluated: bool = True,
    save: Callable[[int, Mapping[str, Tensor]], None] | None = None,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    bad_videos: BadVideos | None = None,
    average: WeightAverage | None = None,
    decide: Callable[[], Decision] = Decision,
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
        start_means: what `save` was given there: this rank's sums since the last log line.
        is_evaluated: whether the evaluation due at `start_step` has been logged.
        save: called with the number of steps done, and the sums since the last log line, every
            `save_every` epochs, at the end, and whenever `decide` says so.
        evaluate: called every `eval_every` epochs and at the end; what it returns is logged.
        bad_videos: told of videos that could not be read; asked at each log line whether they
            have become too many.
        average: takes in the weights after each step.
        decide: asked after each step whether to save, and whether to stop.

    Raises:
        Failure: the loss is not finite.
        Stopped: `decide` said so; the step is saved.
    """

    def evaluate_if_due(done: int) -> None:
        epoch, rest = divmod(done, plan.steps_per_epoch)
        last = done == plan.total_steps
        if evaluate is not None and rest == 0 and (epoch % plan.eval_every == 0 or last):
            log.metrics(done, {"epoch": epoch, **evaluate(done)})

    model, optimizer = fabric.setup(method, optimizer)
    method.train()
    data = iter(batches)
    if fabric.world_size > 1 and (first := next(data, None)) is not None:
        _warm_up(fabric, model, optimizer, method, augment(first[0]))
        data = chain([first], data)
    meter = _Meter(fabric, plan, start_means or {})
    if start_step and not is_evaluated:
        evaluate_if_due(start_step)
        meter.restart_clock()
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
        decision = decide()
        at_epoch = step_in_epoch == 0 and (epoch % plan.save_every == 0 or last)
        # Before the evaluation: that may be repeated.
        if save is not None and (at_epoch or decision.save or decision.stop):
            save(done, meter.sums(done))
            meter.restart_clock()
        if decision.stop:
            name = signal.Signals(decision.stop).name
            raise Stopped(f"stopped by {name} after step {done}. Repeating the command continues.")
        if step_in_epoch == 0:
            evaluate_if_due(done)
            meter.restart_clock()


def _warm_up(
    fabric: Fabric, model: nn.Module, optimizer: Optimizer, method: Method, batch: Batch
) -> None:
    """Let DDP arrange its buckets, which it does after its first gradients.

    Until then it sums them in another order: without this, a resumed run with four ranks differs
    from an uninterrupted one in the last bits. Weights and generators stay as they are.
    """
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for _ in range(2):
            fabric.backward(model(batch, method.draw(batch.keys))["loss"])
            optimizer.zero_grad(set_to_none=True)


class _Meter:
    """Means of what the steps returned, kept on the device and read only when logging."""

    def __init__(self, fabric: Fabric, plan: Plan, start: Mapping[str, Tensor]) -> None:
        self._fabric = fabric
        self._plan = plan
        self._sums = {name: pair[0].to(fabric.device) for name, pair in start.items()}
        self._counts = {name: int(pair[1]) for name, pair in start.items()}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave what happened since the last step (evaluation, saving) out of the times."""
        self._started = time.perf_counter()
        self._steps = 0
        self.data_time = 0.0

    def sums(self, step: int) -> dict[str, Tensor]:
        """Sum and count of each value since the last reading, on the CPU."""
        if "loss" in self._sums:
            total = self._fabric.all_reduce(self._sums["loss"].clone(), reduce_op="sum")
            assert isinstance(total, Tensor)
            _require_finite(total.item(), step)
        return {
            name: torch.stack((value.cpu(), torch.tensor(float(self._counts[name]))))
            for name, value in self._sums.items()
        }

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
        _require_finite(values["loss"], step)
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


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise Failure(
            f"the loss is {loss} at step {step}. Repeating the command continues "
            "from the last checkpoint; if it comes again, start in another --save_dir with a "
            "lower --lr, a longer --warmup_epochs or --clip_grad"
        )
