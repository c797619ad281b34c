"""The learning rate of a step; the golden schedule is in tests/models/test_golden.py."""

import math

import pytest

from kinetics400.engine.schedule import warmup_cosine


def lr(step: int, *, warmup_steps: int = 5, total_steps: int = 20) -> float:
    return warmup_cosine(
        step, peak=2.0, final=0.5, warmup_steps=warmup_steps, total_steps=total_steps
    )


def test_warm_up_is_linear_from_zero_and_ends_at_the_peak() -> None:
    assert [lr(step) for step in range(5)] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])


def test_cosine_starts_at_the_peak_again_and_never_reaches_the_end() -> None:
    assert lr(5) == 2.0
    assert lr(5 + 5) == pytest.approx(0.5 + 1.5 * 0.75)  # a third of the way: cos 60 degrees
    assert lr(5 + 10) == pytest.approx(0.5 + 1.5 * 0.25)  # two thirds: cos 120 degrees
    assert 0.5 < lr(19) < 0.52
    rates = [lr(step) for step in range(5, 20)]
    assert rates == sorted(rates, reverse=True)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert lr(0, warmup_steps=0) == 2.0


def test_one_step_of_warm_up_is_at_zero() -> None:
    assert [lr(step, warmup_steps=1) for step in (0, 1)] == [0.0, 2.0]


def test_warm_up_alone_needs_no_cosine() -> None:
    assert [lr(s, warmup_steps=3, total_steps=3) for s in range(3)] == [0.0, 1.0, 2.0]


def test_published_pretraining_rates() -> None:
    """ViT-B, 800 epochs of 469 steps with 40 of warm-up, as often quoted."""
    warmup, total = 40 * 469, 800 * 469

    def rate(step: int) -> float:
        return warmup_cosine(step, peak=1.5e-4, final=1e-5, warmup_steps=warmup, total_steps=total)

    assert rate(warmup // 2) == pytest.approx(7.5e-5, rel=1e-3)
    assert rate(warmup - 1) == rate(warmup) == 1.5e-4
    assert rate((warmup + total) // 2) == pytest.approx(8e-5)
    last = 1e-5 + 7e-5 * (1 + math.cos(math.pi * (1 - 1 / (total - warmup))))
    assert rate(total - 1) == pytest.approx(last, rel=1e-12)


def test_warm_up_may_start_elsewhere() -> None:
    def rate(step: int, warmup_steps: int = 5) -> float:
        return warmup_cosine(
            step, start=0.4, peak=2.0, final=0.5, warmup_steps=warmup_steps, total_steps=20
        )

    assert [rate(step) for step in range(5)] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rate(5) == 2.0
    assert rate(0, warmup_steps=1) == 0.4
