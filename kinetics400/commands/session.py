"""What a run does, pretraining or finetuning: launch, train, leave a model."""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from kinetics400 import __version__
from kinetics400.augment.pipeline import Augment
from kinetics400.commands.bad_videos import BadVideos, format_bad_videos
from kinetics400.commands.guard import VideoGuard
from kinetics400.commands.plan import Run, RunConfig, Schedule, accelerator
from kinetics400.config.common import DeviceFlags
from kinetics400.config.finetuning import TrainConfig
from kinetics400.config.parse import to_recipe
from kinetics400.data import keys
from kinetics400.data.dataset import ClipDataset
from kinetics400.data.loader import Layout, on_device, train_loader
from kinetics400.data.manifest import count_originals
from kinetics400.data.storage import write_atomic
from kinetics400.engine.average import WeightAverage
from kinetics400.engine.checkpoint import (
    Checkpoint,
    check_agreement,
    find_checkpoint,
    load_checkpoint,
    read_checkpoint,
    refuse_later,
    remove_unfinished,
    save_checkpoint,
)
from kinetics400.engine.log import RunLog
from kinetics400.engine.optim import build_optimizer, count_parameters
from kinetics400.engine.trainer import Plan, fit
from kinetics400.errors import InputError
from kinetics400.methods.base import Method


def meta_device(config: RunConfig) -> AbstractContextManager[Any]:
    """Where to build the model: a dry run needs its shapes only."""
    return torch.device("meta") if config.run.dry_run else nullcontext()


def open_run(run: Run) -> Checkpoint | None:
    """The checkpoint to continue from, according to `--resume`.

    Raises:
        InputError: `never` and the folder is not empty, a path and the folder holds later
            checkpoints, or the checkpoint is damaged, absent or of a run with other settings.
    """
    save_dir, resume = run.config.saving.save_dir, run.config.run.resume
    if save_dir.exists() and not save_dir.is_dir():
        raise InputError(f"--save_dir {save_dir} is not a folder")
    if resume == "never":
        if save_dir.exists() and any(save_dir.iterdir()):
            raise InputError(f"--resume never: {save_dir} is not empty; choose another --save_dir")
        return None
    if resume == "auto":
        checkpoint = find_checkpoint(save_dir / "checkpoints")
    elif (Path(resume) / "manifest.json").is_file():
        checkpoint = read_checkpoint(Path(resume))
        refuse_later(save_dir / "checkpoints", checkpoint.step)
    else:
        raise InputError(
            f"--resume {resume} is not a complete checkpoint (nor auto or never): give "
            "<save_dir>/checkpoints/step-..."
        )
    if checkpoint is not None:
        check_agreement(checkpoint, run.agreed())
    return checkpoint


def launch(device: DeviceFlags) -> Fabric:
    """Start the processes and pick the devices."""
    strategy: DDPStrategy | str = "auto"
    if device.n_device > 1:
        strategy = DDPStrategy(gradient_as_bucket_view=True)
    fabric = Fabric(
        accelerator=accelerator(device),
        devices=device.n_device,
        strategy=strategy,
        precision=device.precision,
    )
    fabric.launch()
    return fabric


def mention_originals(run: Run) -> None:
    """Say how many training videos cost more than they need to, and are read without protection."""
    assert run.train_videos is not None
    count = count_originals(run.config.data.data_dir, "train", run.train_videos)
    if count:
        say(
            f"{count:,} of {len(run.train_videos):,} training videos are not known to be temporal "
            "pyramids: they are decoded in the loader as they are, many times slower and without "
            "isolation. 'python -m data.preprocess' stores them (docs/data.md)"
        )


def train(
    run: Run,
    dataset: ClipDataset,
    *,
    guard: VideoGuard,
    augment: Augment,
    checkpoint: Checkpoint | None,
    evaluate: Callable[[Fabric, Method], Mapping[str, float]] | None = None,
) -> Fabric:
    """Launch, train to the end (or find it done), and return with the method trained.

    With an average of the weights (`run.ema_decay`) that is what is evaluated and what is left.

    Raises:
        DataError: too many videos cannot be read.
        Stopped: a video has hung or crashed its decoder.
    """
    config, schedule, method = run.config, run.schedule, run.method
    flags = config.optimization
    fabric = launch(config.device)
    save_dir = config.saving.save_dir
    start_step = checkpoint.step if checkpoint is not None else 0
    if fabric.is_global_zero:
        save_dir.mkdir(parents=True, exist_ok=True)
        remove_unfinished(save_dir / "checkpoints")
        write_atomic(save_dir / "config.yaml", to_recipe(config))
        mention_originals(run)
    fabric.barrier()
    fabric.to_device(method)
    # All buffers are constants: ranks need not tell each other at every step.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        method, [name for name, _ in method.named_buffers()]
    )
    # The fused kernel unscales fp16 gradients itself, and then they cannot be clipped before.
    fused = not (config.device.precision == "16-mixed" and flags.clip_grad is not None)
    optimizer = build_optimizer(run.optimizer, run.groups, betas=run.betas, fused=fused)
    average = None if run.ema_decay is None else WeightAverage(method, run.ema_decay)
    # Dropout and drop path differ between ranks; what belongs to a sample comes from its key.
    torch.manual_seed(keys.combine(config.run.seed, fabric.global_rank).item())
    if checkpoint is not None:
        load_checkpoint(fabric, checkpoint, method=method, optimizer=optimizer, average=average)
    layout = Layout(
        batch_size=flags.batch_size,
        accumulate=flags.accumulate,
        world_size=fabric.world_size,
        rank=fabric.global_rank,
    )
    loader = train_loader(
        dataset,
        layout,
        start_step=start_step,
        total_steps=schedule.total_steps,
        num_workers=config.data.n_worker,
        pin_memory=fabric.device.type == "cuda",
    )

    def scored(step: int) -> Mapping[str, float]:
        assert evaluate is not None
        with nullcontext() if average is None else average.applied():
            return evaluate(fabric, method)

    log_dir = save_dir if fabric.is_global_zero else None
    with (
        RunLog(
            log_dir, total_steps=schedule.total_steps, start_step=start_step, title=save_dir.name
        ) as log,
        guard.watching(loader, dataset, "train") as batches,
    ):
        describe(log, run, start_step)
        fit(
            fabric,
            method,
            optimizer,
            on_device(batches, fabric.device),
            augment=augment,
            plan=_plan(config, schedule),
            log=log,
            start_step=start_step,
            save=partial(_save, fabric, run, optimizer, average),
            evaluate=None if evaluate is None else scored,
            bad_videos=BadVideos(fabric, run, log),
            average=average,
        )
    if average is not None:
        average.apply()
    fabric.barrier()
    if fabric.is_global_zero and (told := format_bad_videos(run)):
        say(told)
    return fabric


def _plan(config: RunConfig, schedule: Schedule) -> Plan:
    return Plan(
        total_steps=schedule.total_steps,
        steps_per_epoch=schedule.steps_per_epoch,
        clips_per_step=clips_per_step(config, schedule),
        lr=schedule.lr,
        accumulate=config.optimization.accumulate,
        clip_grad=config.optimization.clip_grad,
        log_every=config.run.log_every,
        save_every=config.saving.save_frequency,
        eval_every=config.evaluation.eval_frequency if isinstance(config, TrainConfig) else 1,
    )


def clips_per_step(config: RunConfig, schedule: Schedule) -> int:
    """Clips that a step takes: those of the global batch, each video as often as it is repeated."""
    return schedule.global_batch_size * config.data.num_sample


def _save(
    fabric: Fabric,
    run: Run,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    step: int,
) -> None:
    save_checkpoint(
        fabric,
        run.config.saving.save_dir / "checkpoints",
        step=step,
        method=run.method,
        optimizer=optimizer,
        agreed=run.agreed(),
        average=average,
    )


def describe(log: RunLog, run: Run, start_step: int) -> None:
    """Say in plain words what is about to run."""
    schedule, device, flags = run.schedule, run.config.device, run.config.optimization
    assert run.train_videos is not None
    log.say(
        f"{run.config.model.model_name}: {count_parameters(run.method) / 1e6:.1f} M parameters, "
        f"{len(run.train_videos):,} training videos, {schedule.n_epoch} epochs of "
        f"{schedule.steps_per_epoch} steps, {clips_per_step(run.config, schedule)} clips per step"
        + (f" ({repeats} of each video)" if (repeats := run.config.data.num_sample) > 1 else "")
    )
    log.say(
        f"global batch {schedule.global_batch_size} = {flags.batch_size} per device "
        f"x {device.n_device} device(s) x {flags.accumulate} micro-batch(es); "
        f"{run.optimizer}, precision {device.precision}"
    )
    log.say(
        f"learning rate {schedule.start_lr:.3g} to {schedule.peak_lr:.3g} "
        f"({schedule.peak_lr * 256 / schedule.global_batch_size:.3g} per 256 videos) in "
        f"{schedule.warmup_steps} steps, then down to {schedule.final_lr:.3g}"
    )
    if start_step:
        log.say(f"continuing after step {start_step} of {schedule.total_steps}")


def model_card(title: str, run: Run, outcome: str) -> str:
    """README.md of a model folder."""
    schedule = run.schedule
    rows = {
        "architecture": run.config.model.model_name,
        "parameters": f"{count_parameters(run.method):,}",
        "training videos": f"{len(run.train_videos or ()):,}",
        "epochs": schedule.n_epoch,
        "clips per step": clips_per_step(run.config, schedule),
        "largest learning rate": f"{schedule.peak_lr:.3g}",
        "precision": run.config.device.precision,
        "seed": run.config.run.seed,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"# {title}\n\nTrained with kinetics400 {__version__}; every flag is in `config.yaml` of "
        f"the run directory.\n\n{outcome}\n\n| | |\n|---|---|\n{table}\n\n"
        "Input: RGB frames, ImageNet mean and standard deviation (`preprocessor_config.json`).\n"
    )


def say(text: str) -> None:
    """Tell the user, once, without touching standard output, which may carry a plan."""
    # The launcher starts the other ranks with their number set, before there is a Fabric to ask.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)
