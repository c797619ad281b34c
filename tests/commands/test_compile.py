"""`--compile` and `--activation_checkpointing`: the same run, made otherwise.

Compiling for a CPU takes long; the graphs themselves are tests/methods' matter.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kinetics400.__main__ import run_command
from kinetics400.commands.plan import is_compiled, lacks_compiler
from kinetics400.config.common import DeviceFlags

PRETRAIN = ("--mask_ratio", "0.75")
TRAIN = (
    *("--num_classes", "4", "--views", "1x1", "--eval_frequency", "100"),
    *("--drop_path_rate", "0.2", "--mixup", "0.8", "--cutmix", "1"),
)
SHORT = ("--n_epoch", "2", "--warmup_epochs", "1", "--n_worker", "0", "--log_every", "1")


def losses(save_dir: Path) -> list[float]:
    rows = map(json.loads, (save_dir / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture
def run_losses(
    tiny_flags: tuple[str, ...], library: Path, tmp_path: Path
) -> Callable[..., list[float]]:
    def run(command: str, name: str, *flags: str) -> list[float]:
        where = ("--data_dir", str(library), "--save_dir", str(tmp_path / name))
        own = PRETRAIN if command == "pretrain" else TRAIN
        argv = [*tiny_flags, *own, *SHORT, *where, "--batch_size", "8", *flags]
        assert run_command(command, argv) == 0
        return losses(tmp_path / name)

    return run


@pytest.mark.parametrize("command", ["pretrain", "train"])
def test_activation_checkpointing_changes_no_bit(
    run_losses: Callable[..., list[float]], command: str
) -> None:
    plain = run_losses(command, "plain", "--activation_checkpointing", "none")
    blocks = run_losses(command, "blocks", "--activation_checkpointing", "blocks")
    assert blocks == plain and len(plain) == 6


def test_a_compiled_run_has_the_losses_of_an_eager_one(
    run_losses: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the graphs that torch.compile makes, run operation by operation."""
    made: list[dict[str, Any]] = []
    real = torch.compile

    def compile_quickly(model: Any, **options: Any) -> Any:
        made.append(options)
        return real(model, **options, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_quickly)
    eager = run_losses("pretrain", "eager", "--compile", "off")
    assert made == []
    compiled = run_losses("pretrain", "compiled", "--compile", "on")
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert made and all(options["fullgraph"] and not options["dynamic"] for options in made)


@pytest.mark.campaign
def test_two_compiled_processes_have_the_losses_of_an_eager_one(
    start_run: Callable[..., subprocess.Popen[str]],
    run_losses: Callable[..., list[float]],
    tmp_path: Path,
) -> None:
    """With torch's own compiler, and the graph cut where DDP exchanges gradients."""
    eager = run_losses("pretrain", "eager", "--compile", "off")
    flags = (*PRETRAIN, *SHORT, "--n_device", "2", "--batch_size", "4", "--compile", "on")
    process = start_run("pretrain", tmp_path / "compiled", *flags)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert ", compiled" in out
    assert losses(tmp_path / "compiled") == pytest.approx(eager, rel=1e-4)


def test_compiling_without_a_compiler_is_refused_before_the_run(
    run_losses: Callable[..., list[float]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(AssertionError):
        run_losses("pretrain", "never", "--compile", "on")
    assert "--compile on needs a C compiler" in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("flag", "cuda", "compiler", "expected"),
    [
        ("auto", True, True, True),
        ("auto", True, False, False),
        ("auto", False, True, False),
        ("on", False, True, True),
        ("off", True, True, False),
    ],
)
def test_what_is_compiled(
    monkeypatch: pytest.MonkeyPatch, flag: Any, cuda: bool, compiler: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/cc" if compiler else None)
    assert is_compiled(DeviceFlags(compile=flag)) is expected
    lacks = flag == "auto" and cuda and not compiler
    assert lacks_compiler(DeviceFlags(compile=flag)) is lacks
