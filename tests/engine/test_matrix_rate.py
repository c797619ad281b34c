"""The rate of matrix products, and what makers say of theirs."""

import time

import pytest
import torch

from kinetics400.engine.matrix_rate import datasheet_rate, matrix_rate


def test_the_rate_is_that_of_a_product_timed_by_hand() -> None:
    matrix = torch.ones(1024, 1024)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        times.append(time.perf_counter() - start)
    by_hand = 2 * 1024**3 / min(times)
    assert matrix_rate(torch.device("cpu"), torch.float32) == pytest.approx(by_hand, rel=0.5)


def test_measuring_moves_no_generator() -> None:
    before = torch.get_rng_state()
    matrix_rate(torch.device("cpu"), torch.float32, repeats=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA B999", None),
    ],
)
def test_data_sheets(monkeypatch: pytest.MonkeyPatch, name: str, rate: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert datasheet_rate(torch.device("cuda"), torch.bfloat16) == rate
    assert datasheet_rate(torch.device("cuda"), torch.float32) is None
    assert datasheet_rate(torch.device("cpu"), torch.bfloat16) is None
