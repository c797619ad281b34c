"""The comparison of training steps: equal losses, times and bytes that are what they say."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from kinetics400.bench import step as benched
from kinetics400.bench.step import Clock, Row
from kinetics400.bench.step_sides import PLAIN, TRANSFORMERS, TUNED, Side, Subject
from kinetics400.commands.bench_report import step_table
from kinetics400.models.vit import DecoderConfig, VitConfig

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
PRETRAINING = Subject(
    config=VitConfig(embed_dim=48, depth=2, num_heads=2, image_size=32, num_frames=4),
    decoder=DecoderConfig(embed_dim=32, depth=1, num_heads=2),
    batch_size=2,
    precision="32-true",
    device=torch.device("cpu"),
)
FINETUNING = replace(PRETRAINING, decoder=None)


@pytest.mark.parametrize("name", [TRANSFORMERS, PLAIN])
@pytest.mark.parametrize("subject", [PRETRAINING, FINETUNING], ids=["pretraining", "finetuning"])
def test_all_sides_have_our_losses(name: str, subject: Subject) -> None:
    """Also after updates: gradients, groups and the optimizer's settings are the same."""
    ours = benched.make_side("ours", subject)
    other = benched.make_side(name, subject)
    for _ in range(4):
        own = benched.step(ours, subject).item()
        assert benched.step(other, subject).item() == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_all_sides_train_in_bfloat16(precision: str) -> None:
    subject = replace(PRETRAINING, precision=precision)
    losses = [
        benched.step(benched.make_side(name, subject), subject).item()
        for name in ("ours", TRANSFORMERS, PLAIN)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=0.02)


def test_peak_memory_counts_what_is_held_at_once() -> None:
    """1 MiB of weights, 2 of moments; a step holds 3 MiB at a time of the 6 it asks for."""
    mib = 2**18  # values

    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(mib))

    module = Holding()

    def loss() -> torch.Tensor:
        first = torch.zeros(3 * mib)
        del first
        second = torch.zeros(mib)
        return (module.weight * 0).sum() + second[0]  # the product, then the gradient

    side = Side(loss, module, torch.optim.AdamW(module.parameters(), fused=True))
    benched.step(side, PRETRAINING)
    assert benched.kept_bytes(side) == pytest.approx(3 * 2**20, abs=100)
    assert benched.profiled(side, PRETRAINING).growth / 2**20 == pytest.approx(3, abs=0.01)


def test_phases_are_timed_apart() -> None:
    weight = nn.Parameter(torch.ones(()))

    def busy(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            busy(0.02)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            busy(0.06)
            return gradient

    side = Side(lambda: Slow.apply(weight), nn.Module(), torch.optim.SGD([weight]))
    forward, backward, optimizer = benched.timed_phases(
        side, PRETRAINING, Clock(torch.device("cpu"))
    )
    assert 0.02 <= forward < 0.05 and 0.06 <= backward < 0.12 and optimizer < 0.02


def test_figures_are_medians_over_the_repeats() -> None:
    rows = [Row("ours", n, 1.0, 2.0, 0.5, seconds) for n, seconds in enumerate((4.0, 2.0, 9.0))]
    rows.append(Row("plain", 0, 1.0, 1.0, 1.0, 100.0))
    figures = benched.figures(rows, "ours", batch_size=8, model_flops=10**9, rate=4e9)
    assert (figures["step_ms"], figures["least_step_ms"], figures["most_step_ms"]) == (
        *(4000, 2000, 9000),
    )
    assert (figures["forward_ms"], figures["clips_per_sec"], figures["mfu"]) == (1000, 2, 0.5)


def test_the_headline_takes_the_better_of_ours() -> None:
    times = {"ours": 10.0, "transformers": 12.0, "plain": 20.0, "transformers, compiled": 7.0}
    about = {name: {"step_ms": ms, "peak_memory_mib": 10 * ms} for name, ms in times.items()}
    losses = {name: [2.0, 1.0] for name in times} | {"plain": [2.0, 1.01]}
    told = benched.headline(about, losses)
    assert (told["ours"], told["ratio_transformers"], told["ratio_reference"]) == ("ours", 1.2, 2)
    assert told["ratio_transformers_compiled"] is None
    assert told["loss_difference"] == pytest.approx(0.01)
    about["ours, compiled"] = {"step_ms": 5.0, "peak_memory_mib": 60.0}
    losses["ours, compiled"] = [2.0, 1.0]
    told = benched.headline(about, losses)
    assert (told["ours"], told["ratio_transformers"], told["memory_ratio"]) == (
        *("ours, compiled", 2.4, 0.5),
    )
    assert (told["ratio_transformers_eager"], told["ratio_transformers_compiled"]) == (1.2, 1.4)
    about["ours" + TUNED] = {"step_ms": 4.0, "peak_memory_mib": 60.0}
    losses["ours" + TUNED] = [2.0, 1.0]
    assert benched.headline(about, losses)["ours"] == "ours" + TUNED


@pytest.mark.parametrize("most", [0, 1, 3, 63, 64, 65, 100, 127, 5000])
def test_the_largest_batch_fits_and_little_more_would_not(most: int) -> None:
    tried = []

    def fits(batch_size: int) -> bool:
        tried.append(batch_size)
        return batch_size <= most

    found = benched.largest_batch(fits)
    assert found <= most
    assert most >= 4096 or found + max(found // 8, 1) > most
    assert len(tried) < 24


def test_what_cannot_be_compiled_is_told_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", refuse)
    told: list[str] = []
    amount = benched.Amount(repeats=1, compiled=True)
    result = benched.bench_step(FINETUNING, amount=amount, say=told.append)
    assert result["sides"]["ours, compiled"] == {"unavailable": "no C++ compiler"}
    assert result["ours"] == "ours"
    assert result["sides"]["ours"]["mfu"] > 0


def test_a_side_that_does_not_fit_is_told_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = benched.first_losses
    losses: list[list[float]] = []

    def first_losses(side: Side, subject: Subject) -> list[float]:
        if len(losses) == 2:
            raise torch.cuda.OutOfMemoryError
        losses.append(real(side, subject))
        return losses[-1]

    monkeypatch.setattr(benched, "first_losses", first_losses)
    amount = benched.Amount(repeats=1, compiled=False)
    result = benched.bench_step(FINETUNING, amount=amount, say=lambda _: None)
    assert result["sides"][PLAIN] == {"unavailable": "out of memory"}
    assert result["ratio_reference"] is None and result["ratio_transformers"] > 0


def test_a_side_that_does_not_fit_beside_the_others_loses_its_figures_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the last repeat: its earlier rows go, too, as medians would be of other repeats."""
    real = benched.timed_phases
    turns = []

    def timed_phases(side: Side, subject: Subject, clock: Clock) -> tuple[float, float, float]:
        turns.append(side)
        if len(turns) == 4:
            raise torch.cuda.OutOfMemoryError
        return real(side, subject, clock)

    monkeypatch.setattr(benched, "timed_phases", timed_phases)
    amount = benched.Amount(repeats=2, compiled=False)
    result = benched.bench_step(FINETUNING, amount=amount, say=lambda _: None)
    assert result["sides"]["ours"] == {"unavailable": "out of memory beside the others"}
    assert [row["side"] for row in result["rows"]] == [TRANSFORMERS, PLAIN] * 2
    assert result["ratio_transformers"] is None and result["loss_difference"] < 1e-5


def test_without_ours_the_others_are_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = benched.make_side

    def make_side(name: str, subject: Subject) -> Side:
        if name == "ours":
            raise torch.cuda.OutOfMemoryError
        return real(name, subject)

    monkeypatch.setattr(benched, "make_side", make_side)
    amount = benched.Amount(repeats=1, compiled=False)
    result = benched.bench_step(FINETUNING, amount=amount, say=lambda _: None)
    assert result["loss_difference"] is None and result["sides"][PLAIN]["step_ms"] > 0
    assert "first losses differ by – at most" in step_table(result)


def test_an_error_in_the_search_loses_one_answer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_side(name: str, subject: Subject) -> Side:
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED\nand more")

    monkeypatch.setattr(benched, "make_side", make_side)
    told: list[str] = []
    assert benched.largest_of("ours", FINETUNING, told.append) is None
    assert told == ["ours: no largest batch: CUBLAS_STATUS_ALLOC_FAILED"]


def test_what_the_performance_page_claims_was_measured() -> None:
    """The committed figures of ViT-S pretraining in float32 on a core."""
    found = json.loads((RESULTS / "step_cpu.json").read_text())
    settings = found["settings"]
    assert (settings["method"], settings["precision"]) == ("pretraining", "32-true")
    assert settings["config"]["embed_dim"] == 384
    assert found["ratio_transformers_eager"] >= 1.05 and found["ratio_reference"] >= 1.5
    assert found["memory_ratio"] <= 1 and found["loss_difference"] <= 1e-5
