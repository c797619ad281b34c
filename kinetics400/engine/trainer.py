"""The only training loop. Supervised and self-supervised methods share it."""

import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from kinetics400.batch import Batch
from kinetics400.engine.average import WeightAverage
from kinetics400.engine.interruption import Decision
from kinetics400.engine.log import RunLog
from kinetics400.engine.meter import Meter, WaitWarning
from kinetics400.engine.optim import set_lr
from kinetics400.engine.sharding import compile_method, whole
from kinetics400.engine.updates import Updates, gradient_norm
from kinetics400.errors import Stopped
from kinetics400.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `fit` does, in steps. A step is one optimizer update.

    Attributes:
        total_steps: of the whole run.
        steps_per_epoch: full global batches in the data.
        global_batch_size: videos per step, over all ranks and micro-batches.
        num_sample: clips of each video.
        lr: learning rate of a step.
        accumulate: micro-batches per step.
        clip_grad: largest gradient norm; None leaves gradients alone.
        log_every: steps between log lines; each epoch ends with one.
        save_every: epochs between checkpoints.
        eval_every: epochs between evaluations.
    """

    total_steps: int
    steps_per_epoch: int
    global_batch_size: int
    lr: Callable[[int], float]
    num_sample: int = 1
    accumulate: int = 1
    clip_grad: float | None = None
    log_every: int = 10
    save_every: int = 1
    eval_every: int = 1

    def slots(self, step: int) -> str:
        """Which places of an epoch's order a step takes, in words."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        first = step_in_epoch * self.global_batch_size
        return f"epoch {epoch}, slots {first} to {first + self.global_batch_size - 1}"


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
    record: Callable[[int, list], None] | None = None,
    check: Callable[[int], None] | None = None,
    average: WeightAverage | None = None,
    decide: Callable[[], Decision] = Decision,
    compiled: bool = False,
    mfu_unit: float | None = None,
) -> None:
    """Train from `start_step` to the end.

    Args:
        fabric: launched; device, precision and ranks.
        method: what `sharding.distribute` gave: on the device, not yet wrapped.
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
        record: told the step, and the videos that could not be read for it.
        check: called with the step before each log line, by all ranks together; stops a run that
            must not go on.
        average: takes in the weights after each step.
        decide: asked after each step whether to save, and whether to stop.
        compiled: whether the method's forward, its loss and their backward become one graph.
        mfu_unit: clips per second that count as an MFU of 1; None leaves the MFU out of the log.

    Raises:
        Failure: the loss or a gradient has not been finite too often.
        Stopped: `decide` said so; the step is saved.
    """

    def evaluate_if_due(done: int) -> None:
        epoch, rest = divmod(done, plan.steps_per_epoch)
        last = done == plan.total_steps
        if evaluate is not None and rest == 0 and (epoch % plan.eval_every == 0 or last):
            log.metrics(done, {"epoch": epoch, **evaluate(done)})

    if compiled:
        compile_method(method)
    model, wrapped = fabric.setup(method, optimizer)
    method.train()
    data = iter(batches)
    if fabric.world_size > 1 and (first := next(data, None)) is not None:
        _warm_up(fabric, model, wrapped, method, augment(first[0]))
        data = chain([first], data)
    updates = Updates(fabric, optimizer, plan.slots)
    meter = Meter(fabric, plan.global_batch_size * plan.num_sample, start_means or {}, mfu_unit)
    warn_of_waiting = WaitWarning(log.say)
    if start_step and not is_evaluated:
        evaluate_if_due(start_step)
        meter.restart_clock()
    with _Where(plan) as where:
        for step in range(start_step, plan.total_steps):
            where.step = step
            lr = plan.lr(step)
            set_lr(wrapped, lr)
            for micro in range(plan.accumulate):
                with meter.waiting():
                    batch, failures = next(data)
                if failures and record is not None:
                    record(step, failures)
                batch = augment(batch)
                # All ranks' gradients meet once per step, at its last micro-batch.
                with fabric.no_backward_sync(model, enabled=micro < plan.accumulate - 1):
                    outcome = model(batch, method.draw(batch.keys))
                    fabric.backward(outcome["loss"] / plan.accumulate)
                meter.add(outcome)
            if plan.clip_grad is not None:
                clipped = fabric.clip_gradients(
                    model, wrapped, max_norm=plan.clip_grad, error_if_nonfinite=False
                )
                assert clipped is not None
                norm = whole(clipped)
                meter.add({"clipped_share": (norm > plan.clip_grad).float()})
            else:
                norm = gradient_norm(method)
            meter.add({"grad_norm": norm})
            is_counted = updates.apply(step, wrapped.step, meter.step_sum("loss"), norm)
            wrapped.zero_grad(set_to_none=True)
            meter.end_step(is_counted)

            done = step + 1
            method.after_step(done / plan.total_steps)
            if average is not None:
                average.update()
            epoch, step_in_epoch = divmod(done, plan.steps_per_epoch)
            last = done == plan.total_steps
            if done % plan.log_every == 0 or step_in_epoch == 0:
                if check is not None:
                    check(step)
                updates.read(log.say)
                values = meter.read()
                log.metrics(done, {"epoch": done / plan.steps_per_epoch, "lr": lr, **values})
                warn_of_waiting(values["data_share"])
            decision = decide()
            at_epoch = step_in_epoch == 0 and (epoch % plan.save_every == 0 or last)
            # Before the evaluation: that may be repeated.
            if save is not None and (at_epoch or decision.save or decision.stop):
                updates.read(log.say)
                save(done, meter.sums())
                meter.restart_clock()
            if decision.stop:
                name = signal.Signals(decision.stop).name
                raise Stopped(
                    f"stopped by {name} after step {done}. Repeating the command continues."
                )
            if step_in_epoch == 0:
                evaluate_if_due(done)
                meter.restart_clock()


class _Where(AbstractContextManager):
    """Adds to an error that ends the loop in which step that was."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.step = 0

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(f"in step {self.step + 1} ({self._plan.slots(self.step)})")


def _warm_up(
    fabric: Fabric, model: nn.Module, optimizer: Optimizer, method: Method, batch: Batch
) -> None:
    """Let DDP arrange its buckets, which it does after its first gradients.

    Until then it sums them in another order: without this, a resumed run with four ranks differs
    from an uninterrupted one in the last bits. Weights and generators stay as they are. (Sharded
    training could do without.)
    """
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for _ in range(2):
            fabric.backward(model(batch, method.draw(batch.keys))["loss"])
            optimizer.zero_grad(set_to_none=True)
