"""`kinetics400 demo`: the whole job on an embedded dataset, on the CPU, through the real commands.

Generate, preprocess, pretrain, finetune, evaluate, show. Three more numbers tell whether the model
has learned motion: the same finetuning from scratch, the finetuned model on frames in random order
and on one frame repeated.
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from kinetics400.commands import preprocess, pretrain, report, train
from kinetics400.commands.clips import test_sampler
from kinetics400.commands.evaluate import parse_views, score
from kinetics400.commands.evaluation_subject import load_classifier
from kinetics400.commands.telling import say
from kinetics400.config.common import LabelledClipFlags
from kinetics400.config.demo import DemoConfig
from kinetics400.config.parse import parse
from kinetics400.data import keys, synthetic
from kinetics400.data.library import ARCHIVE_NAME, open_split
from kinetics400.data.motion import MOTION_CLASSES
from kinetics400.data.storage import write_atomic
from kinetics400.engine.evaluation import Evaluation, ViewTransform
from kinetics400.engine.log import read_metrics
from kinetics400.errors import Failure, InputError

VIEWS = "5x3"
# Sized for two cores: 128 tokens of 8x8 pixels and 2 frames.
MODEL = ["--model_name", "tiny", "--input_size", "32", "--patch_size", "8"]
PRETRAINING = [
    *("--mask_ratio", "0.75", "--lr", "1e-3", "--warmup_epochs", "2", "--batch_size", "32"),
]
# Motion classes come in mirrored pairs, so no flip; and the rest of the augmentation is made for
# three hundred times as many steps.
FINETUNING = [
    *("--lr", "5e-4", "--warmup_epochs", "2", "--batch_size", "16", "--layer_decay", "1"),
    *("--drop_path_rate", "0", "--head_init_scale", "1", "--flip", "0", "--crop_scale", "0.8", "1"),
    *("--auto_augment", "none", "--reprob", "0", "--mixup", "0", "--cutmix", "0"),
    *("--views", VIEWS, "--eval_frequency", "4"),
]
MARKER = ".kinetics400-demo"


def main(argv: Sequence[str]) -> int:
    """Run the command; 1 when a threshold is missed, see kinetics400.__main__ for the others."""
    config = parse(
        DemoConfig,
        argv,
        prog="kinetics400 demo",
        description="The whole job on an embedded dataset, on the CPU, in minutes.",
    )
    started = time.monotonic()
    # The decoding workers fill the second core. More threads than free cores spin at every
    # operation of this small model: up to ten times slower.
    torch.set_num_threads(1)
    work_dir, results_dir = config.folder.work_dir, config.folder.results_dir
    prepare_folder(work_dir)
    run_stages(config)
    results = collect(config)
    results["seconds"] = round(time.monotonic() - started, 1)
    write_showcase(work_dir, results_dir, results)
    missed = missed_thresholds(results)
    say(report.demo_table(results))
    say(f"the outcome lies in {results_dir}")
    if missed:
        raise Failure("the demo missed what it must show:\n  " + "\n  ".join(missed))
    return 0


def prepare_folder(work_dir: Path) -> None:
    """Make the working folder, empty; only a folder that an earlier demo made is emptied.

    Raises:
        InputError: it holds something else.
    """
    if work_dir.exists() and any(work_dir.iterdir()) and not (work_dir / MARKER).exists():
        raise InputError(f"--work_dir {work_dir} is not empty and not a demo's: choose another")
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    (work_dir / MARKER).touch()


def run_stages(config: DemoConfig) -> None:
    """Generate the dataset and run the three promised commands on it, and a run from scratch."""
    work_dir, size = config.folder.work_dir, config.size
    data_dir = work_dir / "data"
    data_dir.mkdir()
    n_classes = len(MOTION_CLASSES)
    n_videos = n_classes * (size.n_train_per_class + size.n_val_per_class)
    say(f"1/5 drawing {n_videos} videos of {n_classes} motion classes")
    synthetic.write_archive(
        data_dir / ARCHIVE_NAME,
        n_train_per_class=size.n_train_per_class,
        n_val_per_class=size.n_val_per_class,
        seed=size.seed,
        n_worker=size.n_worker,
    )
    write_atomic(work_dir / "motion_classes.txt", "\n".join(MOTION_CLASSES) + "\n")
    say("2/5 preprocessing")
    # 1/1: all of it, also in a task of a SLURM array.
    flags = ["--n_worker", str(size.n_worker), "--shard", "1/1"]
    preprocess.main(["--data_dir", str(data_dir), *flags])

    def shared(name: str, n_epoch: int) -> list[str]:
        return [
            *MODEL,
            *("--data_dir", str(data_dir), "--save_dir", str(work_dir / name)),
            *("--n_epoch", str(n_epoch), "--save_frequency", str(n_epoch)),
            *("--n_worker", str(size.n_worker), "--accelerator", "cpu", "--log_every", "5"),
            *("--seed", str(size.seed)),
        ]

    say("3/5 pretraining")
    pretrain.main([*shared("pretrained", size.pretrain_epochs), *PRETRAINING])
    finetuning = [
        *FINETUNING,
        *("--num_classes", str(n_classes)),
        *("--label_names", str(work_dir / "motion_classes.txt")),
    ]
    pretrained_dir = str(work_dir / "pretrained")
    say("4/5 finetuning the pretrained model")
    train.main(
        [
            *shared("finetuned", size.finetune_epochs),
            *finetuning,
            *("--pretrained", "--pretrained_dir", pretrained_dir),
        ]
    )
    say("5/5 the same finetuning from scratch")
    train.main([*shared("scratch", size.finetune_epochs), *finetuning])


def collect(config: DemoConfig) -> dict[str, Any]:
    """Gather the runs' numbers and test the finetuned model without order and without motion."""
    work_dir = config.folder.work_dir
    losses = [row for row in read_metrics(work_dir / "pretrained/metrics.jsonl") if "loss" in row]
    last_epoch = max(row["epoch"] for row in losses) - 1

    def mean(rows: list[dict[str, Any]]) -> float:
        """Mean over steps: a row stands for those since the row before."""
        before = [0, *(row["step"] for row in losses)]
        steps = [row["step"] - before[losses.index(row)] for row in rows]
        return sum(n * row["loss"] for n, row in zip(steps, rows, strict=True)) / sum(steps)

    def accuracies(result: Evaluation | dict[str, Any]) -> dict[str, float]:
        if isinstance(result, Evaluation):
            result = {"top1_acc": result.top1_acc, "top5_acc": result.top5_acc}
        return {name: round(result[name], 2) for name in ("top1_acc", "top5_acc")}

    def of_run(name: str) -> dict[str, float]:
        text = (work_dir / name / "results.json").read_text(encoding="utf-8")
        return accuracies(json.loads(text))

    segments, crops = parse_views(VIEWS)
    n_classes = len(MOTION_CLASSES)
    return {
        "pretrain_loss_first_epoch": round(mean([r for r in losses if r["epoch"] <= 1]), 4),
        "pretrain_loss_last_epoch": round(mean([r for r in losses if r["epoch"] > last_epoch]), 4),
        "n_classes": n_classes,
        "n_train_videos": len(open_split(work_dir / "data", "train", num_classes=n_classes)),
        "n_val_videos": len(open_split(work_dir / "data", "val", num_classes=n_classes)),
        "n_views": segments * crops,
        "finetuned": of_run("finetuned"),
        "scratch": of_run("scratch"),
        "shuffled_frames": accuracies(ablate(config, shuffle_frames)),
        "repeated_frame": accuracies(ablate(config, repeat_frame)),
    }


def ablate(config: DemoConfig, transform: ViewTransform) -> Evaluation:
    """Test the finetuned model on changed frames, otherwise as at the end of finetuning."""
    work_dir = config.folder.work_dir
    method = load_classifier(work_dir / "finetuned")
    return score(
        Fabric(accelerator="cpu", devices=1),
        method,
        open_split(work_dir / "data", "val", num_classes=method.num_classes),
        views=parse_views(VIEWS),
        segment_frames=test_sampler(LabelledClipFlags(), method.encoder.config.num_frames),
        clips_per_forward=32,
        num_workers=config.size.n_worker,
        merge="prob",
        transform=transform,
    )


def shuffle_frames(views: Tensor, index: int) -> Tensor:
    """Put the frames of each view (V, C, T, H, W) into a random order."""
    order = keys.bits(keys.combine(index, torch.arange(len(views))), "shuffle", views.shape[2])
    picked = order.argsort(dim=1)[:, None, :, None, None]
    return views.gather(2, picked.expand_as(views))


def repeat_frame(views: Tensor, index: int) -> Tensor:
    """Show the middle frame of each view (V, C, T, H, W) all the time."""
    middle = views.shape[2] // 2
    return views[:, :, middle : middle + 1].expand_as(views).contiguous()


def missed_thresholds(results: dict[str, Any]) -> list[str]:
    """What the demo promises and did not show."""
    top1 = {
        name: results[name]["top1_acc"]
        for name in ("finetuned", "shuffled_frames", "repeated_frame")
    }
    first, last = results["pretrain_loss_first_epoch"], results["pretrain_loss_last_epoch"]
    chance = 100 / results["n_classes"]
    promises = {
        f"pretraining loss fell from {first:.3f} to {last:.3f}, not by 20 %": last <= 0.8 * first,
        f"finetuned top-1 is {top1['finetuned']} %, not 80 %": top1["finetuned"] >= 80,
        f"frames in random order cost {top1['finetuned'] - top1['shuffled_frames']:.1f} points, "
        "not 30": top1["finetuned"] - top1["shuffled_frames"] >= 30,
        f"one repeated frame gives {top1['repeated_frame']} %, more than twice chance "
        f"({chance:.1f} %)": top1["repeated_frame"] <= 2 * chance,
    }
    return [text for text, kept in promises.items() if not kept]


def write_showcase(work_dir: Path, results_dir: Path, results: dict[str, Any]) -> None:
    """Copy what tells of the runs, draw the losses, write the page."""
    results_dir.mkdir(parents=True, exist_ok=True)
    for name in ("pretrained", "finetuned", "scratch"):
        (results_dir / name).mkdir(exist_ok=True)
        for file in ("config.yaml", "metrics.jsonl"):
            shutil.copyfile(work_dir / name / file, results_dir / name / file)
    report.plot_losses(
        {name: results_dir / name / "metrics.jsonl" for name in ("pretrained",)},
        {name: results_dir / name / "metrics.jsonl" for name in ("finetuned", "scratch")},
        results_dir / "loss_curve.png",
    )
    write_atomic(results_dir / "results.json", json.dumps(results, indent=2) + "\n")
    write_atomic(results_dir / "README.md", report.demo_page(results))
