"""Interrupted equals uninterrupted: losses as hex, all files of the checkpoint, samples in order.

A run of two epochs of three steps is stopped after a step, as by a signal, and continued with
another number of workers. Pairs of stop, workers and ranks; all of them with KINETICS400_GRID=full.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

pytestmark = pytest.mark.campaign

STOPS, WORKERS, RANKS = range(1, 7), (0, 1, 2, 4), (1, 2, 4)
STEPS = 6
COMMON = (
    *("--n_epoch", "2", "--warmup_epochs", "1", "--log_every", "1", "--save_frequency", "1"),
    *("--save_minutes", "0"),
)
OWN = {
    "pretrain": ("--mask_ratio", "0.75"),
    "train": (
        *("--num_classes", "4", "--views", "1x1", "--ema_decay", "0.9", "--drop_path_rate", "0.3"),
        *("--head_dropout", "0.2", "--mixup", "0.8", "--cutmix", "1.0", "--accumulate", "2"),
    ),
}
# Writes down what each rank learns from; stops after a step.
WATCHED = """
from kinetics400.commands import session
from kinetics400.engine import interruption
fit, steps = session.fit, []
def watched(fabric, method, optimizer, batches, **more):
    def noted():
        for batch, failures in batches:
            with open({notes!r} + str(fabric.global_rank), "a") as file:
                print(batch.keys.tolist(), file=file)
            yield batch, failures
    fit(fabric, method, optimizer, noted(), **more)
session.fit = watched
def decide(self):
    steps.append(1)
    return interruption.Decision(stop=15 if len(steps) == {stop} else 0)
interruption.Interruption.decide = decide
"""
Run = Callable[[str, Path, int, int, int], None]


@pytest.fixture(scope="module")
def run(
    start_run: Callable[..., subprocess.Popen[str]], outcome: Callable[..., tuple[int, str, str]]
) -> Run:
    """`run(command, save_dir, ranks, workers, stop)`, to the end or until after step `stop`."""

    def run(command: str, save_dir: Path, ranks: int, workers: int, stop: int) -> None:
        micro = 2 if command == "train" else 1
        flags = ("--n_device", str(ranks), "--n_worker", str(workers))
        batch = ("--batch_size", str(8 // ranks // micro))
        prelude = WATCHED.format(notes=str(save_dir) + ".rank", stop=stop)
        code, _, err = outcome(
            start_run(command, save_dir, *COMMON, *OWN[command], *flags, *batch, prelude=prelude)
        )
        assert code == (75 if stop > 0 else 0), err

    return run


def found(save_dir: Path, ranks: int) -> dict[str, object]:
    rows = map(json.loads, (save_dir / "metrics.jsonl").read_text().splitlines())
    last = save_dir / f"checkpoints/step-{STEPS:010}"
    return {
        "losses": [float(row["loss"]).hex() for row in rows if "loss" in row],
        "samples": [Path(f"{save_dir}.rank{rank}").read_text() for rank in range(ranks)],
        **{
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted([*last.glob("*.safetensors"), last / "state.json"])
        },
    }


@pytest.fixture(scope="module")
def whole(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], dict[str, object]]:
    """The uninterrupted run."""
    known: dict[tuple[str, int], dict[str, object]] = {}

    def of(command: str, ranks: int) -> dict[str, object]:
        if (command, ranks) not in known:
            save_dir = tmp_path_factory.mktemp("whole") / "run"
            run(command, save_dir, ranks, 1, -1)
            known[command, ranks] = found(save_dir, ranks)
        return known[command, ranks]

    return of


def grid() -> list[tuple[str, int, int, int]]:
    if os.environ.get("KINETICS400_GRID") == "full":
        return list(product(OWN, STOPS, WORKERS, RANKS))
    commands = tuple(OWN)
    return [
        (commands[(i + j) % 2], stop, workers, RANKS[(i + j) % 3])
        for i, stop in enumerate(STOPS)
        for j, workers in enumerate(WORKERS)
    ]


@pytest.mark.parametrize(("command", "stop", "workers", "ranks"), grid())
def test_a_stopped_run_continues_to_the_last_bit(
    command: str,
    stop: int,
    workers: int,
    ranks: int,
    run: Run,
    whole: Callable[[str, int], dict[str, object]],
    tmp_path: Path,
) -> None:
    save_dir = tmp_path / "run"
    others = WORKERS[(WORKERS.index(workers) + 1) % len(WORKERS)]
    run(command, save_dir, ranks, workers, stop)
    run(command, save_dir, ranks, others, -1)
    expected = whole(command, ranks)
    assert len(expected["losses"]) == STEPS and len(expected) == 2 + 3 + ranks + (
        command == "train"
    )
    assert found(save_dir, ranks) == expected


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_continues_with_the_same_samples(
    before: int,
    after: int,
    run: Run,
    whole: Callable[[str, int], dict[str, object]],
    tmp_path: Path,
) -> None:
    """Stopped in the middle of the second epoch, with the same global batch on both sides."""
    save_dir, stop = tmp_path / "run", 4
    run("pretrain", save_dir, before, 1, stop)
    run("pretrain", save_dir, after, 1, -1)
    seen: list[list[int]] = [[] for _ in range(STEPS)]
    for rank in range(2):
        # Rank 1 is there before the stop or after it.
        lines = Path(f"{save_dir}.rank{rank}").read_text().splitlines()
        first = stop if rank == 1 and before == 1 else 0
        for step, line in enumerate(lines, first):
            seen[step] += json.loads(line)
    expected = whole("pretrain", 1)
    (samples,) = expected["samples"]
    assert [sorted(keys) for keys in seen] == [
        sorted(json.loads(line)) for line in samples.splitlines()
    ]
    ours, theirs = (
        [float.fromhex(loss) for loss in losses]
        for losses in (found(save_dir, after)["losses"], expected["losses"])
    )
    assert ours == pytest.approx(theirs, rel=1e-4)
