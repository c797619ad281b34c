"""The loop against a plain one, written here without it."""

import json
import math
import signal
import time
from collections.abc import Collection, Iterator
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision import MixedPrecision
from torch import Tensor, nn

from kinetics400.batch import Batch, normalize
from kinetics400.data import keys
from kinetics400.engine.average import WeightAverage
from kinetics400.engine.interruption import Decision
from kinetics400.engine.log import RunLog, read_metrics
from kinetics400.engine.trainer import Plan, fit
from kinetics400.errors import Failure, Stopped
from kinetics400.methods.base import Method
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.vit import DecoderConfig, VitConfig

VIT = VitConfig(
    embed_dim=24,
    depth=2,
    num_heads=2,
    image_size=16,
    patch_size=8,
    num_frames=4,
    tubelet_size=2,
    drop_path_rate=0.0,
)


class Line(Method):
    """Mean squared error of a linear prediction; the mean pixel of a clip is its input."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, 1)
        nn.init.constant_(self.encoder.weight, 2.0)
        nn.init.constant_(self.encoder.bias, 0.5)
        self.progress: list[float] = []

    def forward(self, batch: Batch, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        error = self.encoder(batch.clips.mean(dim=(1, 2, 3, 4))[:, None])[:, 0] - batch.labels
        return {"loss": error.square().mean(), "mean_error": error.mean()}

    def after_step(self, progress: float) -> None:
        self.progress.append(progress)


def make_batch(first: int, size: int) -> Batch:
    """Samples number first … first + size - 1 of an endless list, as the loader gives them."""
    samples = [torch.Generator().manual_seed(i) for i in range(first, first + size)]
    clips = [torch.randint(0, 256, (3, 4, 16, 16), generator=g, dtype=torch.uint8) for g in samples]
    ids = torch.arange(first, first + size)
    sample_keys = torch.stack([keys.sample_key(0, 0, int(i)) for i in ids])
    return Batch(torch.stack(clips), ids % 3, sample_keys)


def batches(num_steps: int, micro_batches: list[int], start: int = 0) -> Iterator[Any]:
    """Micro-batches of the given sizes, step by step through the endless list."""
    for step in range(start, num_steps):
        first = step * sum(micro_batches)
        for size in micro_batches:
            yield make_batch(first, size), []
            first += size


def augment(batch: Batch) -> Batch:
    return batch.with_clips(normalize(batch.clips))


def make_method(kind: str) -> Method:
    torch.manual_seed(0)
    if kind == "line":
        return Line()
    if kind == "classification":
        return Classification(VIT, 3, label_smoothing=0.1, head_init_scale=1.0)
    return VideoMAE(VIT, DecoderConfig(embed_dim=16, depth=1, num_heads=2), mask_ratio=0.5)


def make_optimizer(method: Method, kind: str) -> torch.optim.Optimizer:
    groups = method.param_groups(0.05, 0.75)
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=kind == "fused")


def lr_of(step: int) -> float:
    return 0.01 * (step + 1)


def run(
    method: Method,
    optimizer: torch.optim.Optimizer,
    data: Iterator[Any],
    *,
    save_dir: Path | None = None,
    start_step: int = 0,
    plan: dict[str, Any] | None = None,
    **callbacks: Any,
) -> None:
    settings = {
        "total_steps": 4,
        "steps_per_epoch": 4,
        "global_batch_size": 6,
        "lr": lr_of,
        "log_every": 1,
        **(plan or {}),
    }
    fabric = Fabric(accelerator="cpu", devices=1)
    with RunLog(save_dir, total_steps=settings["total_steps"], start_step=start_step) as log:
        fit(
            fabric,
            method,
            optimizer,
            data,
            augment=augment,
            plan=Plan(**settings),
            log=log,
            start_step=start_step,
            **callbacks,
        )


def plainly(method: Method, optimizer: torch.optim.Optimizer, num_steps: int) -> list[float]:
    """Train on whole batches of 6, one step after the other; the loss before each step."""
    losses = []
    for step in range(num_steps):
        batch = augment(make_batch(6 * step, 6))
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1) * group["lr_scale"]
        optimizer.zero_grad()
        loss = method(batch, method.draw(batch.keys))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_average_takes_in_the_weights_after_each_step() -> None:
    method = make_method("line")
    average = WeightAverage(method, 0.5)
    seen: list[float] = []

    class Noting(WeightAverage):
        def update(self) -> None:
            seen.append(method.encoder.weight.item())
            average.update()

    weight = method.encoder.weight.item()
    run(method, make_optimizer(method, "sgd"), batches(4, [6]), average=Noting(method, 0.5))
    assert len(set(seen)) == 4 and seen[-1] == method.encoder.weight.item()
    for value in seen:
        weight = 0.5 * weight + 0.5 * value
    assert average.state()["encoder.weight"].item() == pytest.approx(weight)


# --- one step is one global batch -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["line", "classification", "videomae"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("micro_batches", [[6], [3, 3], [2, 2, 2], [1] * 6])
def test_accumulation_equals_large_batch(
    tmp_path: Path, kind: str, optimizer: str, micro_batches: list[int]
) -> None:
    """SGD shows a wrong scale of the gradient, which Adam would hide."""
    plain, looped = make_method(kind), make_method(kind)
    losses = plainly(plain, make_optimizer(plain, optimizer), 4)
    run(
        looped,
        make_optimizer(looped, optimizer),
        batches(4, micro_batches),
        save_dir=tmp_path,
        plan={"accumulate": len(micro_batches)},
    )
    logged = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert logged == pytest.approx(losses, rel=1e-5)
    start = make_method(kind).state_dict()
    for name, value in plain.state_dict().items():
        moved = (value - start[name]).abs().max().item()
        # Adam divides by the gradient's size, so it magnifies rounding where that is near zero.
        tolerance = 1e-6 + (1e-4 if optimizer == "sgd" else 2e-2) * moved
        torch.testing.assert_close(looped.state_dict()[name], value, atol=tolerance, rtol=0)


def test_each_group_gets_the_scheduled_rate_times_its_scale() -> None:
    method = make_method("classification")
    seen: list[list[float]] = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    optimizer = Spy(method.param_groups(0.05, 0.5), lr=0.0)
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert sorted(set(scales)) == [0.125, 0.25, 0.5, 1.0]  # embedding, 2 blocks, head
    run(method, optimizer, batches(4, [6], start=1), start_step=1)
    assert seen == [[lr_of(step) * scale for scale in scales] for step in (1, 2, 3)]


def test_a_method_hears_of_its_progress_after_each_step() -> None:
    method = make_method("line")
    run(method, make_optimizer(method, "sgd"), batches(4, [3, 3]), plan={"accumulate": 2})
    assert isinstance(method, Line)
    assert method.progress == [0.25, 0.5, 0.75, 1.0]


# --- clipping -------------------------------------------------------------------------------------


def line_gradient() -> float:
    """Norm of the first batch's gradient, by hand: d/dw (wx + b - y)² = 2 (wx + b - y) x."""
    batch = augment(make_batch(0, 6))
    x = batch.clips.double().mean(dim=(1, 2, 3, 4))
    error = 2.0 * x + 0.5 - batch.labels
    return math.hypot((2 * error * x).mean().item(), (2 * error).mean().item())


@pytest.mark.parametrize("micro_batches", [[6], [2, 2, 2]])
@pytest.mark.parametrize("share", [0.1, 3.0])
def test_gradients_are_clipped_to_the_norm_once_per_step(
    tmp_path: Path, micro_batches: list[int], share: float
) -> None:
    method = make_method("line")
    norm = line_gradient()
    before = torch.cat([p.detach().flatten() for p in method.parameters()])
    run(
        method,
        torch.optim.SGD(method.param_groups(0.0), lr=0.0),
        batches(1, micro_batches),
        save_dir=tmp_path,
        plan={
            "total_steps": 1,
            "lr": lambda step: 1.0,
            "accumulate": len(micro_batches),
            "clip_grad": share * norm,
        },
    )
    after = torch.cat([p.detach().flatten() for p in method.parameters()])
    assert (after - before).norm().item() == pytest.approx(min(1.0, share) * norm, rel=1e-4)
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-5)  # as it was before clipping


# --- when the loss is no number -------------------------------------------------------------------


class Breaks(Line):
    """Its loss is multiplied by a value at some steps, numbered from 0."""

    def __init__(self, steps: Collection[int], value: float) -> None:
        super().__init__()
        self.steps, self.value, self.step = steps, value, -1

    def forward(self, batch: Batch, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        values = super().forward(batch, drawn)
        self.step += 1
        bad = self.step in self.steps
        return {**values, "loss": values["loss"] * self.value} if bad else values


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["sgd", "adamw", "fused"])
def test_a_step_that_is_not_finite_changes_nothing(value: float, kind: str, tmp_path: Path) -> None:
    """As if its samples had not been there, but for the schedule; the log's means leave it out."""
    method = Breaks({1}, value)
    optimizer = make_optimizer(method, kind)
    run(method, optimizer, batches(4, [6]), plan={"log_every": 4}, save_dir=tmp_path)

    plain, losses = Line(), []
    twin = make_optimizer(plain, kind)
    for step in (0, 2, 3):
        for group in twin.param_groups:
            group["lr"] = lr_of(step) * group["lr_scale"]
        loss = plain(augment(make_batch(6 * step, 6)), {})["loss"]
        twin.zero_grad()
        loss.backward()
        twin.step()
        losses.append(loss.item())
    for mine, theirs in zip(method.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert row["skipped_share"] == 0.25


def test_each_skipped_step_is_named_with_its_slots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = Breaks({1, 4}, math.nan)
    plan = {"total_steps": 6, "steps_per_epoch": 3, "log_every": 100}
    run(method, make_optimizer(method, "sgd"), batches(6, [6]), plan=plan, save_dir=tmp_path)
    told = [line for line in capsys.readouterr().out.splitlines() if "not finite" in line]
    assert ["step 2 (epoch 0, slots 6 to 11)" in line for line in told] == [True, False]
    assert "step 5 (epoch 1, slots 6 to 11)" in told[1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_three_in_a_row_stop_the_run_at_the_next_line_of_the_log(value: float) -> None:
    method = Breaks({1, 3, 4, 5}, value)
    with pytest.raises(Failure, match=r"3 steps in a row.* step 6 \(epoch 0, slots 30 to 35\)"):
        run(
            method,
            make_optimizer(method, "sgd"),
            batches(10, [6]),
            plan={"total_steps": 10, "steps_per_epoch": 10, "log_every": 4},
        )
    assert method.step == 7


def test_ten_of_a_thousand_stop_the_run() -> None:
    plan = {"total_steps": 1100, "steps_per_epoch": 1100, "log_every": 100, "lr": lambda step: 0.0}
    few = Breaks({*range(0, 18, 2), 1000}, math.nan)  # the first of these ten is forgotten by then
    run(few, make_optimizer(few, "sgd"), repeat((make_batch(0, 2), [])), plan=plan)
    many = Breaks({*range(0, 18, 2), 999}, math.nan)
    with pytest.raises(Failure, match=r"10 of 1,000 steps.* step 1000"):
        run(many, make_optimizer(many, "sgd"), repeat((make_batch(0, 2), [])), plan=plan)


# --- what is called when --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_epochs", "save_every", "saved"),
    [(5, 2, [6, 12, 15]), (4, 2, [6, 12]), (3, 1, [3, 6, 9]), (2, 9, [6])],
)
def test_saving_every_few_epochs_and_at_the_end(
    num_epochs: int, save_every: int, saved: list[int]
) -> None:
    method, found = make_method("line"), []
    steps = 3 * num_epochs
    run(
        method,
        make_optimizer(method, "sgd"),
        batches(steps, [6]),
        plan={"total_steps": steps, "steps_per_epoch": 3, "save_every": save_every},
        save=lambda step, means: found.append(step),
    )
    assert found == saved


def test_evaluation_once_per_epoch_after_saving(tmp_path: Path) -> None:
    """A run that is stopped in an evaluation has lost nothing but that."""
    method, calls = make_method("line"), []

    def evaluate(step: int) -> dict[str, float]:
        calls.append(f"evaluate {step}")
        return {"val_top1_acc": 10.0 * step}

    run(
        method,
        make_optimizer(method, "sgd"),
        batches(6, [6]),
        save_dir=tmp_path,
        plan={"total_steps": 6, "steps_per_epoch": 2, "log_every": 4},
        save=lambda step, means: calls.append(f"save {step}"),
        evaluate=evaluate,
    )
    assert calls == [f"{what} {step}" for step in (2, 4, 6) for what in ("save", "evaluate")]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    scores = {row["step"]: (row["epoch"], row["val_top1_acc"]) for row in rows if "lr" not in row}
    assert scores == {2: (1, 20.0), 4: (2, 40.0), 6: (3, 60.0)}


@pytest.mark.parametrize("is_evaluated", [True, False])
def test_an_evaluation_that_was_cut_off_is_made_up_for(is_evaluated: bool) -> None:
    method, calls = make_method("line"), []
    run(
        method,
        make_optimizer(method, "sgd"),
        batches(4, [6], start=2),
        start_step=2,
        is_evaluated=is_evaluated,
        plan={"steps_per_epoch": 2},
        evaluate=lambda step: calls.append(step) or {},
    )
    assert calls == ([4] if is_evaluated else [2, 4])


def test_a_checkpoint_within_an_epoch_is_no_evaluation(tmp_path: Path) -> None:
    method, calls = make_method("line"), []
    run(
        method,
        make_optimizer(method, "sgd"),
        batches(4, [6], start=3),
        start_step=3,
        is_evaluated=False,
        plan={"steps_per_epoch": 2},
        evaluate=lambda step: calls.append(step) or {},
    )
    assert calls == [4]


def test_it_saves_and_stops_when_told() -> None:
    """Between epochs, after whole steps; the last step of all is no exception."""
    decisions = {2: Decision(save=True), 3: Decision(stop=signal.SIGTERM)}
    for stop_at in (3, 4):
        method, saved, done = make_method("line"), [], iter(range(1, 9))
        last = decisions if stop_at == 3 else {4: Decision(stop=signal.SIGTERM)}
        with pytest.raises(Stopped, match=f"stopped by SIGTERM after step {stop_at}"):
            run(
                method,
                make_optimizer(method, "sgd"),
                batches(4, [6]),
                save=lambda step, means, saved=saved: saved.append(step),
                decide=lambda last=last, done=done: last.get(next(done), Decision()),
            )
        assert saved == ([2, 3] if stop_at == 3 else [4])


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_rows_go_on_where_a_checkpoint_within_them_left_off(tmp_path: Path, stop_at: int) -> None:
    """A row's means hold the steps before the stop as well."""

    def rows(folder: Path, start: int, **rest: Any) -> list[tuple[int, float]]:
        try:
            run(
                method,
                optimizer,
                batches(4, [6], start=start),
                save_dir=folder,
                start_step=start,
                plan={"log_every": 4},
                **rest,
            )
        except Stopped:
            return []
        return [(row["step"], row["loss"]) for row in read_metrics(folder / "metrics.jsonl")]

    method = make_method("line")
    optimizer = make_optimizer(method, "sgd")
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    whole = rows(tmp_path / "whole", 0)

    method, kept, done = make_method("line"), {}, iter(range(1, 9))
    optimizer = make_optimizer(method, "sgd")
    rows(
        tmp_path / "parts",
        0,
        save=lambda step, means: kept.update(means),
        decide=lambda: Decision(stop=signal.SIGTERM if next(done) == stop_at else 0),
    )
    assert (
        kept.keys() == {"loss", "mean_error", "grad_norm", "skipped_share"}
        and kept["loss"][1] == stop_at
    )
    assert rows(tmp_path / "parts", stop_at, start_means=kept) == whole
    assert len(whole) == 1


def test_training_mode_is_on_while_training() -> None:
    method = make_method("line")
    method.eval()
    modes = []
    method.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    run(method, make_optimizer(method, "sgd"), batches(4, [6]))
    assert modes == [True] * 4


def test_bad_videos_are_recorded_at_once_and_checked_before_each_line_of_the_log() -> None:
    method, heard = make_method("line"), []

    data = (
        (batch, [f"video {n}"] if n in (0, 5) else [])
        for n, (batch, _) in enumerate(batches(4, [3, 3]))
    )
    run(
        method,
        make_optimizer(method, "sgd"),
        data,
        plan={"accumulate": 2, "log_every": 2},
        save=lambda step, means: heard.append((step, "save")),
        record=lambda step, failures: heard.append((step, *failures)),
        check=lambda step: heard.append((step, "check")),
    )
    # `save` gets the number of steps done.
    assert heard == [
        (0, "video 0"),
        (1, "check"),
        (2, "video 5"),
        (3, "check"),
        (4, "save"),
    ]


# --- metrics --------------------------------------------------------------------------------------


def test_rows_hold_means_since_the_last_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, looped = make_method("line"), make_method("line")
    losses = plainly(plain, make_optimizer(plain, "sgd"), 7)
    run(
        looped,
        make_optimizer(looped, "sgd"),
        batches(7, [3, 3]),
        save_dir=tmp_path,
        plan={"total_steps": 7, "steps_per_epoch": 7, "log_every": 3, "accumulate": 2},
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6, 7]
    means = [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    assert [row["loss"] for row in rows] == pytest.approx(means, rel=1e-5)
    assert [row["lr"] for row in rows] == pytest.approx([0.03, 0.06, 0.07])
    assert [row["epoch"] for row in rows] == pytest.approx([3 / 7, 6 / 7, 1])
    for row in rows:
        assert "mean_error" in row  # what the method returns beside the loss
        assert 0 <= row["data_time"] <= row["step_time"]
        assert row["clips_per_sec"] == pytest.approx(6 / row["step_time"])
        assert row["memory"] > 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["3/7", "6/7", "7/7"]
    for word in ("loss", "lr", "clips/s", "data", "step", "mem", "ETA"):
        assert word in lines[0]


def test_evaluation_and_saving_do_not_count_as_training_time(tmp_path: Path) -> None:
    method = make_method("line")
    run(
        method,
        make_optimizer(method, "sgd"),
        batches(4, [6]),
        save_dir=tmp_path,
        plan={"steps_per_epoch": 2, "log_every": 1},
        save=lambda step, means: time.sleep(0.3),
        evaluate=lambda step: time.sleep(0.3) or {},
    )
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "lr" in row]
    assert max(row["step_time"] for row in rows) < 0.25


def test_a_spike_of_the_loss_is_clipped_and_its_norm_is_logged(tmp_path: Path) -> None:
    """One batch's loss is 10,000 times too large: the weights move no further than the norm."""

    class Spiking(Breaks):
        def __init__(self) -> None:
            super().__init__({2}, 1e4)
            self.weights = [nn.utils.parameters_to_vector(self.parameters()).detach()]

        def after_step(self, progress: float) -> None:
            self.weights.append(nn.utils.parameters_to_vector(self.parameters()).detach())

    method = Spiking()
    optimizer = torch.optim.SGD(method.param_groups(0.0), lr=0.0)
    plan = {"clip_grad": 0.5}
    run(method, optimizer, batches(4, [6]), plan=plan, save_dir=tmp_path)
    for step, (before, after) in enumerate(pairwise(method.weights)):
        assert 0 < (after - before).norm() <= 0.5 * lr_of(step) * 1.0001
    rows = read_metrics(tmp_path / "metrics.jsonl")
    norms = [row["grad_norm"] for row in rows]
    assert norms[2] > 1000 * max(norms[0], norms[1], norms[3])
    assert [row["clipped_share"] for row in rows] == [float(norm > 0.5) for norm in norms]
    assert rows[2]["clipped_share"] == 1


def test_clipping_lets_the_scaler_skip_a_step_that_overflows(tmp_path: Path) -> None:
    """The first steps in float16 overflow by design; JSON has no infinity for their norm."""

    class Overflows(Line):
        calls = 0

        def forward(self, batch: Batch, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
            self.calls += 1
            values = super().forward(batch, drawn)
            return values if self.calls > 1 else {**values, "loss": values["loss"].float() * 1e35}

    method = Overflows()
    optimizer = make_optimizer(method, "sgd")
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu")])
    settings = {"total_steps": 2, "steps_per_epoch": 2, "global_batch_size": 6, "log_every": 1}
    with RunLog(tmp_path, total_steps=2) as log:
        plan = Plan(**settings, lr=lr_of, clip_grad=1.0)
        fit(fabric, method, optimizer, batches(2, [6]), augment=augment, plan=plan, log=log)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    norms = [json.loads(line, parse_constant=pytest.fail)["grad_norm"] for line in lines]
    assert norms[0] is None and norms[1] > 0
    assert all(parameter.isfinite().all() for parameter in method.parameters())
