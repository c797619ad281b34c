"""Pretraining and finetuning end to end with the tiny model, stopped, continued and shared."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kinetics400.__main__ import run_command
from kinetics400.commands import session
from kinetics400.commands import train as train_command
from kinetics400.data.library import open_split
from kinetics400.engine.evaluation import Evaluation
from kinetics400.models.keymaps import to_hf

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    *("--model_name", "tiny", "--input_size", "32", "--patch_size", "8", "--num_frames", "4"),
    *("--sampling_rate", "2", "--n_epoch", "2", "--save_frequency", "1", "--log_every", "1"),
    *("--warmup_epochs", "0.5", "--lr", "1e-3", "--accelerator", "cpu", "--n_worker", "0"),
)
FINETUNING = ("--num_classes", "4", "--views", "2x3")
# What a clip meets by itself, wherever it is trained on: not the ranks' own dropout, nor partners.
ALONE = ("--drop_path_rate", "0", "--mixup", "0", "--cutmix", "0")
STEPS = 6  # 24 videos, 8 clips per step, 2 epochs
TIMES = {"clips_per_sec", "data_time", "data_share", "step_time", "mfu", "memory"}


def run(name: str, library: Path, save_dir: Path, *flags: str, code: int = 0) -> None:
    own = FINETUNING if name == "train" else ("--mask_ratio", "0.75")
    where = ("--data_dir", str(library), "--save_dir", str(save_dir), "--batch_size", "8")
    assert run_command(name, [*TINY, *own, *where, *flags]) == code


def rows(save_dir: Path) -> list[dict[str, float]]:
    """Metrics without what depends on the machine."""
    lines = (save_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def losses(save_dir: Path) -> dict[int, float]:
    return {int(row["step"]): row["loss"] for row in rows(save_dir) if "loss" in row}


def weights(save_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(save_dir / "model" / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    """Bit for bit."""
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def state_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def pretrained(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretraining."""
    save_dir = tmp_path_factory.mktemp("runs") / "pretrained_weights"
    run("pretrain", library, save_dir)
    return save_dir


@pytest.fixture(scope="module")
def finetuned(library: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished finetuning of it, with drop path and dropout at work."""
    save_dir = tmp_path_factory.mktemp("runs") / "weights"
    run("train", library, save_dir, *own_flags(pretrained))
    return save_dir


def start_from(pretrained: Path) -> tuple[str, ...]:
    name = ("--pretrained_name", "MCG-NJU/videomae-tiny")
    return ("--pretrained", *name, "--pretrained_dir", str(pretrained))


def own_flags(pretrained: Path) -> tuple[str, ...]:
    """Those of the `finetuned` run."""
    return (*start_from(pretrained), "--head_dropout", "0.3")


# --- what a run leaves ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pretrained", "finetuned"])
def test_run_directory(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    own = {"results.json"} if name == "finetuned" else set()
    names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    assert names == {".lock", "config.yaml", "metrics.jsonl", "checkpoints", "model"} | own
    assert any("tfevents" in path.name for path in folder.iterdir())
    assert sorted(path.name for path in (folder / "checkpoints").glob("step-*")) == [
        "step-0000000003",
        "step-0000000006",
    ]
    assert {path.name for path in (folder / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "README.md",
    }
    assert list(losses(folder)) == [1, 2, 3, 4, 5, 6]
    assert all(1e-6 < loss < 10 for loss in losses(folder).values())


def test_metrics_of_finetuning_have_scores_after_each_epoch(finetuned: Path) -> None:
    scored = {row["step"]: row for row in rows(finetuned) if "val_top1_acc" in row}
    assert list(scored) == [3, 6]
    for row in scored.values():
        assert row["val_top1_acc"] % 12.5 == 0  # of 8 videos
        assert row["val_top1_acc"] <= row["val_top5_acc"] == 100  # of 4 classes


def test_results(
    library: Path, finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every video counted; evaluating the model folder afresh gives the same."""
    results = json.loads((finetuned / "results.json").read_text())
    expected = {"num_videos": 8, "num_scored": 8, "views": "2x3", "merge": "prob", "failures": []}
    assert {name: results[name] for name in expected} == expected
    assert results["top1_acc"] % 12.5 == 0
    flags = ["--checkpoint", str(finetuned), "--data_dir", str(library), "--sampling_rate", "2"]
    flags += ["--views", "2x3", "--accelerator", "cpu", "--n_worker", "1"]
    assert run_command("evaluate", [*flags, "--output_dir", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert {name: again[name] for name in results} == results
    told = capsys.readouterr()
    assert f"top-1 {results['top1_acc']:.2f} %" in told.out + told.err


def test_the_class_names_come_with_the_model(
    library: Path, tmp_path: Path, finetuned: Path
) -> None:
    config = json.loads((finetuned / "model" / "config.json").read_text())
    assert len(config["id2label"]) == 4
    (tmp_path / "names.txt").write_text("up\ndown\nleft\nright\n")
    flags = ("--label_names", str(tmp_path / "names.txt"), "--n_epoch", "1")
    run("train", library, tmp_path / "run", *flags)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "up", "1": "down", "2": "left", "3": "right"}


# --- the pair -------------------------------------------------------------------------------------


def test_finetuning_starts_from_the_pretrained_encoder(
    library: Path, pretrained: Path, tmp_path: Path
) -> None:
    """With a learning rate of 0 it ends where it starts."""
    still = ("--lr", "0", "--min_lr", "0", "--n_epoch", "1")
    run("train", library, tmp_path / "with", *start_from(pretrained), *still)
    run("train", library, tmp_path / "without", *still)
    theirs = weights(pretrained)
    shared = [name for name in weights(tmp_path / "with") if name in theirs]
    assert len(shared) > 40
    for name in shared:
        assert torch.equal(weights(tmp_path / "with")[name], theirs[name]), name
    matrices = [name for name in shared if theirs[name].dim() > 1]
    for name in matrices:
        assert not torch.equal(weights(tmp_path / "without")[name], theirs[name]), name


@pytest.mark.parametrize("form", ["the run", "its model", "by name below a folder"])
def test_where_pretrained_weights_are_looked_for(
    library: Path, pretrained: Path, tmp_path: Path, form: str
) -> None:
    folder = {"the run": pretrained, "its model": pretrained / "model"}.get(form)
    if folder is None:
        folder = tmp_path / "zoo"
        shutil.copytree(pretrained / "model", folder / "videomae-tiny")
    flags = (*start_from(folder), "--dry_run")
    run("train", library, tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


def test_training_changes_every_weight(pretrained: Path, finetuned: Path) -> None:
    """A frozen or forgotten parameter would stay."""
    before, after = weights(pretrained), weights(finetuned)
    same = [name for name in after if name in before and torch.equal(before[name], after[name])]
    assert same == []


# --- repeating and continuing ---------------------------------------------------------------------


def test_config_yaml_repeats_the_run_bit_for_bit(
    pretrained: Path, finetuned: Path, tmp_path: Path
) -> None:
    """Also with workers: they change nothing."""
    for name, original in (("pretrain", pretrained), ("train", finetuned)):
        config = yaml.safe_load((original / "config.yaml").read_text())
        assert config["save_dir"] == str(original)
        again = tmp_path / name
        flags = ["--recipe", str(original / "config.yaml"), "--save_dir", str(again)]
        assert run_command(name, [*flags, "--n_worker", "1"]) == 0
        assert rows(again) == rows(original)
        assert_same_weights(again, original)


def stop_after(monkeypatch: pytest.MonkeyPatch, num_batches: int) -> None:
    """Let the process be interrupted while it waits for a batch."""
    original = session.fit

    def fit(fabric: Any, method: Any, optimizer: Any, batches: Iterable[Any], **rest: Any) -> None:
        def few() -> Iterator[Any]:
            for n, batch in enumerate(batches):
                if n == num_batches:
                    raise KeyboardInterrupt
                yield batch

        original(fabric, method, optimizer, few(), **rest)

    monkeypatch.setattr(session, "fit", fit)


@pytest.fixture
def stopped(
    library: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Start a run and stop it after some steps."""

    def start(name: str, after: int, *flags: str) -> Path:
        with monkeypatch.context() as patch:
            stop_after(patch, after)
            run(name, library, tmp_path / "run", *flags, code=75)
        return tmp_path / "run"

    return start


@pytest.mark.parametrize("after", [1, 3, 5])
def test_resume_gives_identical_losses(
    library: Path,
    pretrained: Path,
    finetuned: Path,
    stopped: Callable[..., Path],
    tmp_path: Path,
    after: int,
) -> None:
    """Before the first checkpoint, at it, and some steps later; drop path and dropout included."""
    flags = own_flags(pretrained)
    save_dir = stopped("train", after, *flags)
    assert max(losses(save_dir)) == after
    assert not (save_dir / "model").exists()
    torch.manual_seed(987)  # a new process would not have this one's random state
    run("train", library, save_dir, *flags)
    assert rows(save_dir) == rows(finetuned)
    assert_same_weights(save_dir, finetuned)
    assert json.loads((save_dir / "results.json").read_text()) == json.loads(
        (finetuned / "results.json").read_text()
    )


def test_resuming_pretraining_gives_identical_losses(
    library: Path, pretrained: Path, stopped: Callable[..., Path]
) -> None:
    save_dir = stopped("pretrain", 4)
    run("pretrain", library, save_dir)
    assert rows(save_dir) == rows(pretrained)
    assert_same_weights(save_dir, pretrained)


def test_resume_gives_identical_rows_whatever_the_interval_of_the_log(
    library: Path, stopped: Callable[..., Path], tmp_path: Path
) -> None:
    """The checkpoint at step 3 lies between the rows of steps 2 and 4."""
    run("pretrain", library, tmp_path / "whole", "--log_every", "2")
    save_dir = stopped("pretrain", 5, "--log_every", "2")
    run("pretrain", library, save_dir, "--log_every", "2")
    assert rows(save_dir) == rows(tmp_path / "whole")


def test_resuming_from_the_checkpoint_before_the_last(
    library: Path, pretrained: Path, tmp_path: Path
) -> None:
    """The newest one and all that came after it are gone."""
    save_dir = shutil.copytree(pretrained, tmp_path / "run")
    shutil.rmtree(save_dir / "checkpoints" / "step-0000000006")
    shutil.rmtree(save_dir / "model")
    run("pretrain", library, save_dir)
    assert rows(save_dir) == rows(pretrained)
    assert_same_weights(save_dir, pretrained)


def test_lion_continues_and_is_not_adam(
    library: Path, pretrained: Path, stopped: Callable[..., Path], tmp_path: Path
) -> None:
    lion = ("--optimizer", "lion")
    run("pretrain", library, tmp_path / "whole", *lion)
    save_dir = stopped("pretrain", 4, *lion)
    run("pretrain", library, save_dir, *lion)
    assert rows(save_dir) == rows(tmp_path / "whole") != rows(pretrained)
    assert_same_weights(save_dir, tmp_path / "whole")


def test_an_average_of_the_weights_is_evaluated_kept_and_continued(
    library: Path,
    finetuned: Path,
    pretrained: Path,
    stopped: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluated: list[torch.Tensor] = []
    score = train_command.score

    def noted(fabric: Any, method: Any, **rest: Any) -> Any:
        evaluated.append(method.head.weight.detach().clone())
        return score(fabric, method, **rest)

    monkeypatch.setattr(train_command, "score", noted)
    flags = (*own_flags(pretrained), "--ema_decay", "0.5")
    run("train", library, tmp_path / "whole", *flags)
    assert losses(tmp_path / "whole") == losses(finetuned)  # what is trained is the same
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").glob("step-*"))
    averages = [load_file(folder / "average.safetensors") for folder in checkpoints]
    trained = [load_file(folder / "model.safetensors") for folder in checkpoints]
    kept = weights(tmp_path / "whole")
    assert all(torch.equal(kept[name], value) for name, value in to_hf(averages[-1]).items())
    heads = [average["head.weight"] for average in (*averages, averages[-1])]
    assert all(torch.equal(*pair) for pair in zip(evaluated, heads, strict=True))
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], trained[1]["head.weight"])

    save_dir = stopped("train", 4, *flags)
    run("train", library, save_dir, *flags)
    assert rows(save_dir) == rows(tmp_path / "whole")
    assert_same_weights(save_dir, tmp_path / "whole")


def test_pretraining_flips_if_asked_and_warms_up_from_where_it_is_told(
    library: Path, pretrained: Path, tmp_path: Path
) -> None:
    run("pretrain", library, tmp_path / "run", "--flip", "1", "--warmup_lr", "1e-5")
    ours, theirs = rows(tmp_path / "run"), rows(pretrained)
    assert (ours[0]["lr"], theirs[0]["lr"]) == (1e-5, 0.0)
    assert ours[0]["loss"] != theirs[0]["loss"]  # before any step: other clips


@pytest.mark.parametrize("name", ["pretrain", "train"])
def test_a_finished_run_says_so_and_changes_nothing(
    name: str,
    library: Path,
    pretrained: Path,
    finetuned: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_dir = pretrained if name == "pretrain" else finetuned
    before = state_of(save_dir)
    capsys.readouterr()
    run(name, library, save_dir, *(() if name == "pretrain" else own_flags(pretrained)))
    told = capsys.readouterr()
    assert "is finished" in told.out + told.err
    assert state_of(save_dir) == before


@pytest.mark.parametrize("lost", ["model", "results.json"])
def test_what_is_missing_of_a_finished_run_is_made_again(
    library: Path, pretrained: Path, finetuned: Path, tmp_path: Path, lost: str
) -> None:
    """Stopped after the last checkpoint: no step is repeated."""
    save_dir = shutil.copytree(finetuned, tmp_path / "run")
    if lost == "model":
        shutil.rmtree(save_dir / "model")
    (save_dir / "results.json").unlink()
    run("train", library, save_dir, *own_flags(pretrained))
    assert rows(save_dir) == rows(finetuned)
    assert_same_weights(save_dir, finetuned)
    assert (save_dir / "results.json").read_text() == (finetuned / "results.json").read_text()


@pytest.mark.parametrize(
    ("name", "flags", "named"),
    [
        ("train", ["--lr", "2e-3"], "peak_lr was 0.001, now 0.002"),
        ("train", ["--seed", "1"], "seed was 0, now 1"),
        ("train", ["--batch_size", "4"], "global_batch_size was 8, now 4"),
        ("train", ["--n_epoch", "3"], "total_steps was 6, now 9"),
        ("train", ["--num_classes", "5"], "num_classes"),
        ("train", ["--weight_decay", "0.1"], "weight_decay"),
        ("train", ["--warmup_epochs", "1"], "warmup"),
        ("pretrain", ["--mask_ratio", "0.5"], "mask_ratio"),
        ("pretrain", ["--no_norm_pix_loss"], "norm_pix_loss"),
    ],
)
def test_another_setting_is_not_continued(
    library: Path,
    stopped: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    name: str,
    flags: list[str],
    named: str,
) -> None:
    save_dir = stopped(name, 3)
    before = state_of(save_dir)
    run(name, library, save_dir, *flags, code=2)
    told = capsys.readouterr().err
    assert "was started with other settings" in told
    assert named in told
    assert state_of(save_dir) == before


def test_the_same_global_batch_in_other_parts_is_continued(
    library: Path, pretrained: Path, stopped: Callable[..., Path]
) -> None:
    save_dir = stopped("pretrain", 4)
    run("pretrain", library, save_dir, "--batch_size", "4", "--accumulate", "2")
    assert losses(save_dir) == pytest.approx(losses(pretrained), rel=1e-4)


def test_a_damaged_checkpoint_is_refused_by_name(
    library: Path, stopped: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    save_dir = stopped("pretrain", 4)
    file = save_dir / "checkpoints" / "step-0000000003" / "optimizer.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    run("pretrain", library, save_dir, code=2)
    assert "optimizer.safetensors is damaged" in capsys.readouterr().err


def test_a_damaged_newest_checkpoint_is_set_aside_loudly_unless_it_was_named(
    library: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_dir = shutil.copytree(pretrained, tmp_path / "run")
    shutil.rmtree(save_dir / "model")
    newest = save_dir / "checkpoints" / "step-0000000006"
    damaged = bytearray((newest / "model.safetensors").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (newest / "model.safetensors").write_bytes(damaged)
    before = state_of(save_dir)
    run("pretrain", library, save_dir, "--resume", str(newest), code=2)
    assert "model.safetensors is damaged" in capsys.readouterr().err
    assert state_of(save_dir) == before

    run("pretrain", library, save_dir, "--resume", "auto")
    told = capsys.readouterr().err
    (warning,) = [line for line in told.splitlines() if line.startswith("WARNING")]
    assert "model.safetensors is damaged" in warning
    assert "Continuing from step-0000000003 instead; the damaged one is renamed" in warning
    aside = newest.with_name(f".bad-{newest.name}")
    assert (aside / "model.safetensors").read_bytes() == damaged
    assert rows(save_dir) == rows(pretrained)
    assert_same_weights(save_dir, pretrained)


def test_other_versions_at_a_resume_are_told_and_do_not_forbid_it(
    library: Path,
    stopped: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_dir = stopped("pretrain", 4)
    capsys.readouterr()
    monkeypatch.setattr("kinetics400.engine.checkpoint.__version__", "0.0.9")
    run("pretrain", library, save_dir)
    told = capsys.readouterr().err
    assert told.count("continuing with kinetics400 0.0.9 instead of 0.1.0: the last bits may") == 1


# --- the disk -------------------------------------------------------------------------------------


def test_the_best_every_other_epoch_and_the_two_newest_checkpoints_stay(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five epochs of three steps, of which the first scores best."""
    falling = count(100.0, -1.0)
    monkeypatch.setattr(Evaluation, "top1_acc", property(lambda _: next(falling)))
    run("train", library, tmp_path / "run", "--n_epoch", "5", "--keep_every", "2")
    folder = tmp_path / "run" / "checkpoints"
    assert json.loads((folder / "best.json").read_text()) == {"step": 3, "score": 100.0}
    kept = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
    assert kept == [3, 6, 12, 15]  # not 9


def test_a_disk_too_small_for_the_checkpoints_is_said_before_the_first_step(
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nearly_full = SimpleNamespace(free=1_000_000)  # bytes: the weights alone take more
    monkeypatch.setattr(shutil, "disk_usage", lambda _: nearly_full)
    run("train", library, tmp_path / "run", code=74)
    assert "0.001 GB are free" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# --- two processes --------------------------------------------------------------------------------


def start_two(module: str, data: Path, save_dir: Path, *flags: str) -> subprocess.Popen[str]:
    """`python -m module` on two CPU processes, 4 clips each."""
    own = FINETUNING if module == "train" else ("--mask_ratio", "0.75")
    where = ("--data_dir", str(data), "--save_dir", str(save_dir), "--batch_size", "4")
    return subprocess.Popen(
        [sys.executable, "-m", module, *TINY, *own, *where, "--n_device", "2", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def in_two(
    library: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[int, str, Path]]]:
    """Exit code, messages and folder of three commands; side by side, as starting takes longest."""
    place = tmp_path_factory.mktemp("two")
    bad = with_bad_videos(library, place / "Kinetics-400")
    flags = (*start_from(pretrained), *ALONE, "--n_worker", "1")
    started = {
        "pretraining": start_two("pretraining", library, place / "pretraining"),
        "train": start_two("train", library, place / "train", *flags),
        "bad video": start_two("pretraining", bad, place / "bad video"),
    }
    try:
        ended = {name: process.communicate(timeout=300) for name, process in started.items()}
    finally:
        for process in started.values():
            process.kill()
    yield {n: (started[n].returncode, err, place / n) for n, (_, err) in ended.items()}


def test_two_processes_pretrain_as_one(
    in_two: dict[str, tuple[int, str, Path]], pretrained: Path
) -> None:
    """At the same global batch: samples and masks are the same, so the losses are."""
    code, told, save_dir = in_two["pretraining"]
    assert code == 0, told
    assert losses(save_dir) == pytest.approx(losses(pretrained), rel=1e-4)


def test_two_processes_finetune_and_evaluate_as_one(
    in_two: dict[str, tuple[int, str, Path]], library: Path, pretrained: Path, tmp_path: Path
) -> None:
    code, told, save_dir = in_two["train"]
    assert code == 0, told
    run("train", library, tmp_path / "one", *start_from(pretrained), *ALONE)
    assert losses(save_dir) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = (json.loads((x / "results.json").read_text()) for x in (tmp_path / "one", save_dir))
    assert two == one
    ranks = (save_dir / "checkpoints" / "step-0000000006").glob("rank-*.safetensors")
    assert len(list(ranks)) == 2


def test_a_bad_video_stops_both_processes(in_two: dict[str, tuple[int, str, Path]]) -> None:
    """Whichever of them meets it: the command ends with the same exit code and one message."""
    code, told, _ = in_two["bad video"]
    assert code == 3, told
    assert "videos of epoch 0 could not be read" in told
    assert "Traceback" not in told


# --- videos that cannot be read -------------------------------------------------------------------


def with_bad_videos(library: Path, folder: Path) -> Path:
    """Copy the dataset, with one unreadable video in each split."""
    shutil.copytree(library, folder)
    for split in ("train", "val"):
        file = folder / f"videos_{split}" / f"{split}_05.mp4"
        file.write_bytes(file.read_bytes()[:-200])
    return folder


@pytest.fixture
def damaged(library: Path, tmp_path: Path) -> Path:
    return with_bad_videos(library, tmp_path / "Kinetics-400")


def test_a_bad_video_below_the_threshold_is_replaced_and_journalled(
    damaged: Path, tmp_path: Path
) -> None:
    run("train", damaged, tmp_path / "run", "--max_bad_share", "0.5")
    journal = [
        json.loads(line)
        for line in (tmp_path / "run" / "bad_videos.jsonl").read_text().splitlines()
    ]
    bad = open_split(damaged, "train", num_classes=4).path(5)
    assert len(journal) >= 2  # once in each epoch
    assert {row["path"] for row in journal} == {bad}
    assert {row["step"] // 3 for row in journal} == {0, 1}
    assert all("train_05.mp4" in row["reason"] for row in journal)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["num_videos"], results["num_scored"]) == (8, 7)
    (failure,) = results["failures"]
    assert failure["path"].endswith("val_05.mp4")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_bad_video_above_the_threshold_stops_the_run(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    run("pretrain", damaged, tmp_path / "run", "--n_worker", workers, code=3)
    told = capsys.readouterr().err
    assert "videos of epoch 0 could not be read" in told
    assert "--max_bad_share 0.001 allows" in told
    assert "Traceback" not in told
    assert "train_05.mp4" in (tmp_path / "run" / "bad_videos.jsonl").read_text()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_data_folder_that_vanished_stops_the_run(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    """No endless search for a substitute, and one message, whoever met the failure."""
    for file in (damaged / "videos_train").iterdir():
        file.unlink()
    flags = ("--n_worker", workers, "--max_bad_share", "100")  # the share alone would not stop it
    run("pretrain", damaged, tmp_path / "run", *flags, code=3)
    told = capsys.readouterr().err
    assert "9 videos in a row cannot be read" in told
    assert "Traceback" not in told


def test_resuming_from_a_path_deletes_nothing_later(
    library: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The later checkpoints may be another run's: refused by name, and still there."""
    save_dir = shutil.copytree(pretrained, tmp_path / "run")
    early = shutil.copytree(
        save_dir / "checkpoints" / "step-0000000003", tmp_path / "step-0000000003"
    )
    before = state_of(save_dir)
    run("pretrain", library, save_dir, "--resume", str(early), code=2)
    assert "step-0000000006" in capsys.readouterr().err
    assert state_of(save_dir) == before


def test_a_killed_saves_remains_are_removed(
    library: Path, pretrained: Path, tmp_path: Path
) -> None:
    save_dir = shutil.copytree(pretrained, tmp_path / "run")
    shutil.rmtree(save_dir / "checkpoints" / "step-0000000006")
    (save_dir / "checkpoints" / ".tmp-step-0000000005").mkdir()
    run("pretrain", library, save_dir)
    assert not list((save_dir / "checkpoints").glob(".tmp*"))


def test_no_readable_validation_video_is_no_result(
    library: Path, finetuned: Path, pretrained: Path, tmp_path: Path
) -> None:
    """Neither for `evaluate` nor at the end of `train`: 0 % would look like an accuracy."""
    broken = shutil.copytree(library, tmp_path / "data" / "Kinetics-400")
    for video in (broken / "videos_val").iterdir():
        video.write_bytes(b"")
    flags = ["--checkpoint", str(finetuned), "--data_dir", str(broken), "--n_worker", "0"]
    assert run_command("evaluate", [*flags, "--output_dir", str(tmp_path / "out")]) == 3
    assert not (tmp_path / "out").exists()
    save_dir = shutil.copytree(finetuned, tmp_path / "run")
    (save_dir / "results.json").unlink()
    run("train", broken, save_dir, *own_flags(pretrained), code=3)
    assert not (save_dir / "results.json").exists()


def test_weights_named_without_pretrained_are_not_ignored(
    library: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("train", library, tmp_path / "run", "--pretrained_dir", str(pretrained), code=2)
    assert "need --pretrained" in capsys.readouterr().err


def test_weights_that_an_update_has_spoilt_are_not_saved(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The losses were finite, and no line of the log has told."""
    flags = ["--data_dir", str(library), "--save_dir", str(tmp_path / "run"), "--n_epoch", "1"]
    flags += ["--model_name", "tiny", "--input_size", "32", "--patch_size", "8", "--batch_size"]
    flags += ["24", "--accelerator", "cpu", "--num_frames", "4", "--n_worker", "0", "--lr", "9e18"]
    flags += ["--mask_ratio", "0.75", "--warmup_epochs", "0", "--weight_decay", "9e18"]
    assert run_command("pretrain", flags) == 1
    assert "weights are not finite after step 1" in capsys.readouterr().err
    assert not (tmp_path / "run/checkpoints").exists()
