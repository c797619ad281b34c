"""Times between two lines of the log, and the warning that data comes too slowly."""

import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.fabric import Fabric

from kinetics400.engine.meter import Meter, WaitWarning


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now


def test_shares_and_rates_are_of_the_time_since_the_last_line(clock: list[float]) -> None:
    """Two steps of 8 clips, each 1 s of waiting and 3 s of computing, at 10 clips/s a whole MFU."""
    meter = Meter(Fabric(accelerator="cpu", devices=1), 8, {}, mfu_unit=10.0)
    for _ in range(2):
        for _ in range(2):
            with meter.waiting():
                clock[0] += 1
            clock[0] += 3
            meter.add({"loss": torch.tensor(1.0)})
            meter.end_step(torch.tensor(True))
        values = meter.read()
        assert (values["data_time"], values["data_share"], values["step_time"]) == (1, 0.25, 4)
        assert (values["clips_per_sec"], values["mfu"]) == (2, pytest.approx(0.2))
        clock[0] += 50  # an evaluation
        meter.restart_clock()


def test_on_a_gpu_its_own_idle_time_counts() -> None:
    """Not the host's: that waits for 5 s here, the GPU for 0.5 s."""
    order: list[str] = []

    class Event:
        def __init__(self, **_: Any) -> None:
            self.number = sum(name == "made" for name in order)
            order.append("made")

        def record(self) -> None:
            order.append(f"event {self.number}")

        def elapsed_time(self, later: "Event") -> float:
            order.append(f"read {self.number} to {later.number}")
            return 500.0

    fabric = mock.Mock()
    fabric.device = torch.device("cuda")
    meter = Meter(fabric, 8, {})
    with mock.patch.object(torch.cuda, "Event", Event), meter.waiting():
        order.append("batch")
    assert order == ["made", "made", "event 0", "batch", "event 1"]
    (wait,) = meter._waits
    assert wait() == 0.5
    assert order[-1] == "read 0 to 1"


def test_slow_data_is_told_once_after_a_minute(clock: list[float]) -> None:
    told: list[str] = []
    warn = WaitWarning(told.append)
    for share in (0.9, 0.9, 0.9, 0.9):  # workers start
        warn(share)
        clock[0] += 14
    clock[0] += 10
    for share in (0.3, 0.05, 0.3):
        warn(share)
    assert told == []
    warn(0.34)
    warn(0.5)
    (text,) = told
    assert "34% of the time" in text and "--n_worker" in text


def test_fast_data_is_not_mentioned(clock: list[float]) -> None:
    told: list[str] = []
    warn = WaitWarning(told.append)
    for _ in range(20):
        warn(0.1)
        clock[0] += 30
    assert told == []
