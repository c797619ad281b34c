"""What a run tells: before it starts, and on the card of its model."""

import os
import sys

from kinetics400 import __version__
from kinetics400.commands.plan import Run, RunConfig, Schedule, is_compiled, lacks_compiler
from kinetics400.data.manifest import count_originals
from kinetics400.engine.log import RunLog
from kinetics400.engine.optim import count_parameters


def say(text: str) -> None:
    """Tell the user, once, without touching standard output, which may carry a plan."""
    # The launcher starts the other ranks with their number set, before there is a Fabric to ask.
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        print(text, file=sys.stderr, flush=True)


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
        f"x {device.n_device} device(s) "
        + (f"on each of {device.n_node} machines " if device.n_node > 1 else "")
        + f"x {flags.accumulate} micro-batch(es); "
        f"{run.optimizer}, precision {device.precision}"
        + (", compiled" if is_compiled(device) else "")
        + (", not compiled: no C compiler here" if lacks_compiler(device) else "")
    )
    log.say(
        f"learning rate {schedule.start_lr:.3g} to {schedule.peak_lr:.3g} "
        f"({schedule.peak_lr * 256 / schedule.global_batch_size:.3g} per 256 videos) in "
        f"{schedule.warmup_steps} steps, then down to {schedule.final_lr:.3g}"
    )
    if start_step:
        log.say(f"continuing after step {start_step} of {schedule.total_steps}")


def clips_per_step(config: RunConfig, schedule: Schedule) -> int:
    """Clips that a step takes: those of the global batch, each video as often as it is repeated."""
    return schedule.global_batch_size * config.data.num_sample


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
