"""A disk that takes no checkpoint, a folder with links in it, and what a run's files tell."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kinetics400.__main__ import run_command
from kinetics400.commands import saving
from kinetics400.errors import StorageError


@pytest.fixture
def run_with_failures(
    tiny_flags: tuple[str, ...], library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Pretrain for six epochs that end with a checkpoint each; those named cannot be written."""

    def run(*failing: int) -> int:
        real, calls = saving.save_checkpoint, []

        def save(*given: Any, **named: Any) -> None:
            calls.append(named["step"])
            if len(calls) in failing:
                raise StorageError("no space left on device")
            real(*given, **named)

        monkeypatch.setattr(saving, "save_checkpoint", save)
        where = ("--data_dir", str(library), "--save_dir", str(tmp_path / "run"))
        flags = ("--n_epoch", "6", "--warmup_epochs", "1", "--save_frequency", "1")
        more = ("--mask_ratio", "0.75", "--batch_size", "8", "--n_worker", "0")
        return run_command("pretrain", [*tiny_flags, *where, *flags, *more])

    return run


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())


def test_the_third_failure_in_a_row_stops_the_run_with_code_74(
    run_with_failures: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with_failures(2, 3, 4, 5, 6) == 74
    told = capsys.readouterr().err
    assert told.count("WARNING: no space left on device. The run goes on") == 2
    assert saved(tmp_path) == ["step-0000000003"]  # of the first epoch; nothing half-written


def test_failures_that_are_not_in_a_row_do_not_stop_it(
    run_with_failures: Callable[..., int], tmp_path: Path
) -> None:
    assert run_with_failures(1, 2, 4, 5) == 0
    assert saved(tmp_path) == ["step-0000000009", "step-0000000018"]


def test_the_last_checkpoint_must_be_written(run_with_failures: Callable[..., int]) -> None:
    assert run_with_failures(6) == 74


PLANTED = ("config.yaml", "metrics.jsonl", ".restarts.json")
ON_THE_WAY = (".config.yaml.tmp", ".metrics.jsonl.tmp")  # names that writing takes for a moment


def test_nothing_is_written_through_links_in_the_folder(
    run_with_failures: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else has prepared the folder: each file of a run points to one of the user's."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # for .restarts.json
    (tmp_path / "run").mkdir()
    for name in (*PLANTED, *ON_THE_WAY):
        (tmp_path / f"precious {name}").write_text("")
        (tmp_path / "run" / name).symlink_to(tmp_path / f"precious {name}")
    assert run_with_failures() == 0
    for name in (*PLANTED, *ON_THE_WAY):
        assert (tmp_path / f"precious {name}").read_text() == ""
    for name in PLANTED:
        assert (tmp_path / "run" / name).stat().st_size > 0
        assert not (tmp_path / "run" / name).is_symlink()


def test_a_lock_that_is_a_link_is_refused(
    run_with_failures: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    assert run_with_failures() == 2
    assert "is a link" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_published_run_tells_no_secret(
    run_with_failures: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the environment nothing is recorded; of paths, those that flags gave, in config.yaml."""
    secrets = {"HF_TOKEN": "hf_secret", "WANDB_API_KEY": "wandb_secret", "USER": "user_secret"}
    for name, value in {**secrets, "HOME": "/home/home_secret"}.items():
        monkeypatch.setenv(name, value)
    assert run_with_failures() == 0
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        content = path.read_bytes()
        assert b"_secret" not in content, path
        assert path.name == "config.yaml" or str(tmp_path).encode() not in content, path
