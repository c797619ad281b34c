"""What a training step costs: ours, transformers', and one written plainly (step_sides.py).

Whole steps, with the optimizer's update. The sides take turns; figures are medians. On a CPU one
core is measured, by the CPU's clock.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from kinetics400.bench.figures import machine, versions
from kinetics400.bench.loader import Say, one_core
from kinetics400.bench.step_sides import (
    COMPILE_MODES,
    COMPILED,
    GRAPHS,
    MATRIX_TYPES,
    OURS,
    PLAIN,
    SEED,
    TRANSFORMERS,
    TUNED,
    Side,
    Subject,
    make_method,
    make_side,
)
from kinetics400.engine.matrix_rate import datasheet_rate, matrix_rate

COMPARED_STEPS = 2
KERNELS = 40
PHASES = ("forward", "backward", "optimizer")


@dataclass(frozen=True)
class Amount:
    """How much is measured."""

    repeats: int
    compiled: bool
    """Compile ours and transformers', which takes a minute each."""
    largest_batch: bool = False
    """Look for the largest batch that fits; on CUDA only."""


FULL = Amount(repeats=7, compiled=True, largest_batch=True)
QUICK = Amount(repeats=3, compiled=False)


@dataclass(frozen=True)
class Row:
    """One measured step, seconds."""

    side: str
    repeat: int
    forward: float
    backward: float
    optimizer: float
    step: float
    """On CUDA measured by itself, without waiting for the device between the phases."""


@dataclass(frozen=True)
class Profiled:
    """What torch's profiler saw in one step.

    Attributes:
        kernels: the operations that took most time, with their shares of it.
        growth: most bytes that the CPU's allocator held beyond the start; 0 on CUDA.
    """

    kernels: list[dict[str, Any]]
    growth: int


class Clock:
    """Seconds spent by the device, or by the CPU that computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self) -> float:
        if self._device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()


# --- measuring ------------------------------------------------------------------------------------


def bench_step(subject: Subject, *, amount: Amount, say: Say) -> dict[str, Any]:
    """Measure everything; the result is plain JSON.

    Args:
        subject: what is trained.
        amount: how much to measure.
        say: takes a line on what is going on.
    """
    on_cuda = subject.device.type == "cuda"
    names = [OURS, TRANSFORMERS, PLAIN]
    if amount.compiled:
        names += [OURS + COMPILED, TRANSFORMERS + COMPILED]
        names += [OURS + TUNED, OURS + GRAPHS] if on_cuda else []
    with nullcontext(None) if on_cuda else one_core() as core:
        sides: dict[str, Side] = {}
        about: dict[str, dict[str, Any]] = {}
        losses: dict[str, list[float]] = {}
        for name in names:
            say(f"{name}: building, {COMPARED_STEPS} first steps")
            start, held = time.perf_counter(), _held(subject.device)
            try:
                side = make_side(name, subject)
                losses[name] = first_losses(side, subject)
            except torch.cuda.OutOfMemoryError:
                about[name] = {"unavailable": "out of memory"}
                continue
            except (RuntimeError, AssertionError) as error:
                # torch.compile's errors: no compiler on this machine, or a model it cannot take.
                if name in (OURS, TRANSFORMERS, PLAIN):
                    raise
                about[name] = {"unavailable": _first_line(error)}
                continue
            seconds, sides[name] = time.perf_counter() - start, side
            seen = profiled(side, subject)
            peak = peak_memory(side, subject, held) if on_cuda else kept_bytes(side) + seen.growth
            about[name] = {
                "unavailable": None,
                "seconds_to_start": seconds,
                "peak_memory_mib": peak / 2**20,
                "kernels": seen.kernels,
            }
        say("taking turns")
        rows, lost = take_turns(sides, subject, amount.repeats)
        for name in lost:
            del sides[name]
            about[name] = {"unavailable": "out of memory beside the others"}
        rate = matrix_rate(subject.device, MATRIX_TYPES[subject.precision], repeats=20)
        model_flops = make_method(subject).training_flops()
        for name in sides:
            about[name] |= figures(rows, name, subject.batch_size, model_flops, rate)
        sides.clear()  # and their memory
        del side
        largest: dict[str, int | None] | None = None
        if on_cuda and amount.largest_batch:
            say("looking for the largest batches")
            # Compiled sides would be compiled anew, a minute or more, for each batch tried.
            largest = {name: largest_of(name, subject, say) for name in (OURS, TRANSFORMERS, PLAIN)}
    return {
        "benchmark": "step",
        **headline(about, losses),
        "sides": about,
        "losses": losses,
        "training_gflops_per_clip": model_flops / 1e9,
        "matrix_tflops": rate / 1e12,
        "datasheet_tflops": datasheet_rate(subject.device, MATRIX_TYPES[subject.precision]),
        "largest_batch": largest,
        "settings": {
            "method": "finetuning" if subject.decoder is None else "pretraining",
            "config": asdict(subject.config),
            "batch_size": subject.batch_size,
            "precision": subject.precision,
            "repeats": amount.repeats,
            "seed": SEED,
        },
        "machine": machine(core)
        | {"device": torch.cuda.get_device_name(subject.device) if on_cuda else "CPU, one core"},
        "versions": versions() | {"transformers": metadata.version("transformers")},
        "rows": [asdict(row) for row in rows],
    }


def step(side: Side, subject: Subject, mark: Callable[[], object] = lambda: None) -> Tensor:
    """One training step; its loss, (). `mark` is called after each phase."""
    with subject.autocast():
        loss = side.loss()
    mark()
    loss.backward()
    mark()
    side.optimizer.step()
    side.optimizer.zero_grad(set_to_none=True)
    mark()
    return loss.detach()


def first_losses(side: Side, subject: Subject) -> list[float]:
    """Losses of the first steps, which also warm everything up."""
    return [step(side, subject).item() for _ in range(COMPARED_STEPS)]


def take_turns(
    sides: Mapping[str, Side], subject: Subject, repeats: int
) -> tuple[list[Row], set[str]]:
    """Time a step of each side in each repeat; also those that have no room beside the others."""
    clock = Clock(subject.device)
    rows: list[Row] = []
    lost: set[str] = set()
    for repeat in range(repeats):
        for name, side in sides.items():
            if name in lost:
                continue
            try:
                phases = timed_phases(side, subject, clock)
                whole = sum(phases)
                if subject.device.type == "cuda":
                    start = clock()
                    step(side, subject)
                    whole = clock() - start
            except torch.cuda.OutOfMemoryError:
                lost.add(name)
                continue
            rows.append(Row(name, repeat, *phases, whole))
    return [row for row in rows if row.side not in lost], lost


def timed_phases(side: Side, subject: Subject, clock: Clock) -> tuple[float, float, float]:
    """Seconds of forward, backward and optimizer."""
    times = [clock()]
    step(side, subject, lambda: times.append(clock()))
    forward, backward, optimizer = (after - before for before, after in pairwise(times))
    return forward, backward, optimizer


def _held(device: torch.device) -> int:
    """Bytes allocated on a GPU before a side is built."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def profiled(side: Side, subject: Subject) -> Profiled:
    """Look into one step."""
    on_cuda = subject.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with profile(activities=activities, profile_memory=not on_cuda) as seen:
        step(side, subject)
    averages = seen.key_averages()
    spent = {
        event.key: event.self_device_time_total if on_cuda else event.self_cpu_time_total
        for event in averages
    }
    whole = sum(spent.values())
    calls = {event.key: event.count for event in averages}
    kernels = [
        {"name": key, "share": spent[key] / whole, "ms": spent[key] / 1e3, "calls": calls[key]}
        for key in sorted(spent, key=lambda key: -spent[key])[:KERNELS]
    ]
    return Profiled(kernels, 0 if on_cuda else _peak(seen))


def _peak(seen: profile) -> int:
    assert seen.profiler is not None
    held = most = 0
    results: Any = seen.profiler.kineto_results  # each allocation by itself is only here
    memory = [event for event in results.events() if event.name() == "[memory]"]
    for event in sorted(memory, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def kept_bytes(side: Side) -> int:
    """Bytes that stay from step to step: weights, buffers, moments."""
    tensors = [*side.module.parameters(), *side.module.buffers()]
    for state in side.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def peak_memory(side: Side, subject: Subject, held: int) -> int:
    """Largest number of bytes that a side takes of a GPU; `held` is what others took before it."""
    torch.cuda.reset_peak_memory_stats(subject.device)
    step(side, subject)
    return torch.cuda.max_memory_allocated(subject.device) - held


def largest_batch(fits: Callable[[int], bool], limit: int = 4096) -> int:
    """Largest batch size that fits, to the next power of two and then to an eighth of it; 0: none.

    >>> largest_batch(lambda batch_size: batch_size <= 200)
    192
    """
    size = 1
    if not fits(size):
        return 0
    while size < limit and fits(2 * size):
        size *= 2
    part = max(size // 8, 1)
    good = size
    while size < limit and good + part < 2 * size and fits(good + part):
        good += part
    return good


def largest_of(name: str, subject: Subject, say: Say) -> int | None:
    """Of one side; None where the search ends in another error: what was measured is not lost."""
    try:
        return largest_batch(_fits(name, subject))
    except RuntimeError as error:
        say(f"{name}: no largest batch: {_first_line(error)}")
        return None


def _fits(name: str, subject: Subject) -> Callable[[int], bool]:
    def fits(batch_size: int) -> bool:
        with _freed(subject.device):
            try:
                trial = replace(subject, batch_size=batch_size)
                side = make_side(name, trial)
                for _ in range(2):  # the second has the optimizer's moments from its beginning
                    step(side, trial)
            except torch.cuda.OutOfMemoryError:
                return False
            return True

    return fits


@contextmanager
def _freed(device: torch.device) -> Iterator[None]:
    try:
        yield
    finally:
        torch.compiler.reset()
        torch.cuda.empty_cache()


# --- figures --------------------------------------------------------------------------------------


def figures(
    rows: Sequence[Row], name: str, batch_size: int, model_flops: int, rate: float
) -> dict[str, float]:
    """A side's medians, ms, and what follows from them."""
    own = [row for row in rows if row.side == name]
    seconds = median(row.step for row in own)
    return {
        "step_ms": 1e3 * seconds,
        "least_step_ms": 1e3 * min(row.step for row in own),
        "most_step_ms": 1e3 * max(row.step for row in own),
        **{f"{phase}_ms": 1e3 * median(getattr(row, phase) for row in own) for phase in PHASES},
        "clips_per_sec": batch_size / seconds,
        "mfu": batch_size * model_flops / seconds / rate,
    }


def headline(
    about: Mapping[str, Mapping[str, Any]], losses: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The figures that claims are made of. Ours is the best of eager and compiled."""

    def ratio(figure: str, above: str, below: str) -> float | None:
        over, under = (about.get(name, {}).get(figure) for name in (above, below))
        return None if over is None or under is None else over / under

    def time_of(name: str) -> float:
        return about.get(name, {}).get("step_ms", math.inf)

    ours = min((OURS, *(OURS + how for how in COMPILE_MODES)), key=time_of)
    return {
        "ours": ours,
        "ratio_transformers": ratio("step_ms", TRANSFORMERS, ours),
        "ratio_transformers_eager": ratio("step_ms", TRANSFORMERS, OURS),
        "ratio_transformers_compiled": ratio("step_ms", TRANSFORMERS + COMPILED, OURS + COMPILED),
        "ratio_reference": ratio("step_ms", PLAIN, ours),
        "memory_ratio": ratio("peak_memory_mib", ours, TRANSFORMERS),
        "memory_ratio_reference": ratio("peak_memory_mib", ours, PLAIN),
        "loss_difference": None
        if ours not in losses
        else max(
            abs(loss - own) / abs(own)
            for side in losses.values()
            for loss, own in zip(side, losses[ours], strict=True)
        ),
    }


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
