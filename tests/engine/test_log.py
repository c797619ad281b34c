"""The log of a run: rows, what a resumed run keeps of them, the console."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kinetics400.engine.log import RunLog, duration, memory_gib, read_metrics

VALUES = {
    "epoch": 0.5,
    "loss": 1.23456,
    "lr": 1.5e-4,
    "clips_per_sec": 444.44,
    "data_time": 0.0123,
    "data_share": 0.027,
    "mfu": 0.456,
    "step_time": 0.456,
    "memory": 9.87,
}


def write(save_dir: Path, steps: range, *, start_step: int = 0, loss: float = 1.0) -> None:
    with RunLog(save_dir, total_steps=100, start_step=start_step) as log:
        for step in steps:
            log.metrics(step, {"loss": loss * step})


def scalars(save_dir: Path) -> Iterator[tuple[int, float]]:
    events = EventAccumulator(str(save_dir))
    events.Reload()
    return ((event.step, event.value) for event in events.Scalars("loss"))


def test_rows_are_json_with_their_step(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": s, "loss": s} for s in (1, 2, 3)]
    assert read_metrics(tmp_path / "metrics.jsonl") == [json.loads(line) for line in lines]


def test_rows_are_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    with RunLog(tmp_path, total_steps=10) as log:
        log.metrics(1, VALUES)
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, **VALUES}]


def test_a_resumed_run_cuts_off_the_rows_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, range(1, 8))
    write(tmp_path, range(5, 9), start_step=4, loss=10.0)
    rows = [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics.jsonl")]
    expected = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50), (6, 60), (7, 70), (8, 80)]
    assert rows == expected
    assert list(scalars(tmp_path)) == expected


def test_a_fresh_run_keeps_no_rows(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    write(tmp_path, range(1, 3), loss=2.0)
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2.0, 4.0]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text()[:-5])
    assert [row["step"] for row in read_metrics(file)] == [1, 2]
    write(tmp_path, range(3, 5), start_step=2)
    assert [row["step"] for row in read_metrics(file)] == [1, 2, 3, 4]
    assert len(file.read_text().splitlines()) == 4


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_console_line_has_every_number_with_its_unit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, total_steps=100, start_step=10) as log:
        log.metrics(20, VALUES)
        log.metrics(20, {"epoch": 2, "val_top1_acc": 50.0})
        log.say("two videos could not be read")
    training, evaluation, said = capsys.readouterr().out.splitlines()
    assert training.startswith("step 20/100  loss 1.2346  lr 0.00015  444.4 clips/s  step 0.456 s")
    assert training.endswith("waiting for data 3%  MFU 46%  mem 9.9 GiB  ETA 0:00:00")
    assert evaluation.startswith("epoch 2  ") and "50.0" in evaluation and "ETA" not in evaluation
    assert said == "two videos could not be read"


def test_eta_counts_the_steps_of_this_attempt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("kinetics400.engine.log.time.monotonic", lambda: now)
    with RunLog(tmp_path, total_steps=100, start_step=40) as log:
        now += 60.0
        log.metrics(50, {"loss": 1.0})  # ten steps in a minute, fifty to go
    assert capsys.readouterr().out.endswith("ETA 0:05:00\n")


def test_other_ranks_are_silent_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(None, total_steps=10) as log:
        log.say("hello")
        log.metrics(1, VALUES)
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00"),
        (59.4, "0:00:59"),
        (59.6, "0:01:00"),
        (3599.7, "1:00:00"),
        (3723.4, "1:02:03"),
        (100 * 3600, "100:00:00"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_memory_of_this_process_is_in_gib() -> None:
    assert 0.05 < memory_gib(torch.device("cpu")) < 64  # torch alone takes more than 50 MiB
