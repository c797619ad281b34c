"""From flags to a plan: check them, resolve defaults, count steps, name what is missing."""

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from kinetics400.config.common import DeviceFlags, ModelFlags
from kinetics400.config.defaults import Published
from kinetics400.config.finetuning import TrainConfig
from kinetics400.config.parse import flatten
from kinetics400.config.pretraining import PretrainConfig
from kinetics400.data.annotations import VideoTable
from kinetics400.data.library import PUBLISHED_COUNTS, open_split
from kinetics400.data.shared_memory import clip_bytes, needed_bytes, shortage
from kinetics400.engine.optim import count_parameters
from kinetics400.engine.schedule import warmup_cosine
from kinetics400.engine.sharding import PRECISIONS
from kinetics400.errors import InputError, MissingInput
from kinetics400.methods.base import Method
from kinetics400.models.architectures import ARCHITECTURES, model_size
from kinetics400.models.vit import VitConfig

RunConfig = PretrainConfig | TrainConfig

# Flags that a resumed run may change: they do not touch what is learned, or the resolved schedule
# and the list's digest stand for them.
MAY_CHANGE = {
    *("n_epoch", "batch_size", "accumulate"),
    *("lr", "base_lr", "min_lr", "warmup_lr", "warmup_epochs"),
    *("n_device", "n_node", "accelerator", "strategy"),
    *("n_worker", "max_bad_share", "decode_timeout"),
    *("data_dir", "train_list", "val_list", "pretrained_dir", "label_names"),
    *("views", "merge", "eval_frequency", "save_dir", "save_frequency", "save_minutes"),
    *("keep_every", "log_every", "rank_timeout", "compile", "activation_checkpointing"),
    *("resume", "recipe", "dry_run"),
}

# The types in which clips may reach the model, the default first (README, "Precision").
PRECISION_DTYPES = {
    "32-true": ("float32",),
    "bf16-mixed": ("bfloat16", "float32"),
    "16-mixed": ("float16", "float32"),
    "bf16-true": ("bfloat16",),
    "16-true": ("float16",),
}


class Problems:
    """Collects everything that is wrong with the input, to say it at once."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def add(self, text: str) -> None:
        self._texts.append(text)

    def require(self, condition: bool, text: str) -> None:
        if not condition:
            self.add(text)

    def catch(self, build: Callable[[], Any]) -> Any:
        """Call `build`; a ValueError becomes a problem and the result None."""
        try:
            return build()
        except ValueError as error:
            self.add(str(error))
            return None

    def raise_any(self) -> None:
        """Raise.

        Raises:
            InputError: something was wrong.
        """
        if self._texts:
            raise InputError("\n  ".join(self._texts))


# --- checking -------------------------------------------------------------------------------------


def check_shared(config: RunConfig, problems: Problems) -> None:
    """Check the flags that both commands have, each by itself."""
    optimization, device, data = config.optimization, config.device, config.data
    counts: dict[str, tuple[float | None, float]] = {
        "n_epoch": (optimization.n_epoch, 1),
        "batch_size": (optimization.batch_size, 1),
        "accumulate": (optimization.accumulate, 1),
        "n_device": (device.n_device, 1),
        "n_node": (device.n_node, 1),
        "n_worker": (data.n_worker, 0),
        "num_sample": (data.num_sample, 1),
        "log_every": (config.run.log_every, 1),
        "save_frequency": (config.saving.save_frequency, 1),
        "lr": (optimization.lr, 0),
        "base_lr": (optimization.base_lr, 0),
        "min_lr": (optimization.min_lr, 0),
        "warmup_lr": (optimization.warmup_lr, 0),
        "warmup_epochs": (optimization.warmup_epochs, 0),
        "weight_decay": (optimization.weight_decay, 0),
        "max_bad_share": (data.max_bad_share, 0),
        "save_minutes": (config.saving.save_minutes, 0),
        "keep_every": (config.saving.keep_every, 1),
        "seed": (config.run.seed, 0),
    }
    for name, (value, least) in counts.items():
        problems.require(
            value is None or (least <= value < 2**63 and math.isfinite(value)),
            f"--{name} {value} must be at least {least}, and finite",
        )
    for name, seconds in (
        ("decode_timeout", data.decode_timeout),
        ("rank_timeout", device.rank_timeout),
    ):
        problems.require(
            0 < seconds < math.inf, f"--{name} {seconds} must be a positive number of seconds"
        )
    clip_grad = optimization.clip_grad
    problems.require(
        clip_grad is None or 0 < clip_grad < math.inf, f"--clip_grad {clip_grad} must be positive"
    )
    check_dtype(device, problems)
    check_strategy(device, problems)


def check_dtype(device: DeviceFlags, problems: Problems) -> None:
    """Check that the input's type goes with the precision."""
    allowed = PRECISION_DTYPES[device.precision]
    problems.require(
        device.dtype is None or device.dtype in allowed,
        f"--dtype {device.dtype} contradicts --precision {device.precision}, which takes "
        f"{' or '.join(allowed)}",
    )


def check_strategy(device: DeviceFlags, problems: Problems) -> None:
    """Check that what is to be sharded can be."""
    if device.strategy != "fsdp":
        return
    problems.require(
        num_ranks(device) > 1,
        "--strategy fsdp spreads the model over several devices, and --n_device 1 is one: give "
        "more, or leave --strategy out",
    )
    problems.require(
        device.precision in PRECISIONS,
        f"--strategy fsdp takes --precision {' or '.join(PRECISIONS)}, not {device.precision}: "
        "shards are float32, and each rank would scale float16's gradients by itself. Give one of "
        "these, or --strategy ddp",
    )


def vit_config(flags: ModelFlags, drop_path_rate: float = 0.0) -> VitConfig:
    """Sizes of the encoder that the flags ask for.

    Raises:
        ValueError: the model is unknown or the sizes do not fit each other.
    """
    size = ARCHITECTURES[model_size(flags.model_name)]
    for name, part in (("input_size", "patch_size"), ("num_frames", "tubelet_size")):
        whole, divisor = getattr(flags, name), getattr(flags, part)
        if min(whole, divisor) < 1 or whole % divisor:
            raise InputError(f"--{name} {whole} is not a positive multiple of --{part} {divisor}")
    return VitConfig(
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=size.num_heads,
        image_size=flags.input_size,
        patch_size=flags.patch_size,
        num_frames=flags.num_frames,
        tubelet_size=flags.tubelet_size,
        drop_path_rate=drop_path_rate,
    )


def input_dtype(device: DeviceFlags) -> torch.dtype:
    """Type in which clips reach the model."""
    return getattr(torch, device.dtype or PRECISION_DTYPES[device.precision][0])


# --- planning -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A run in numbers, every default resolved."""

    global_batch_size: int
    n_epoch: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    start_lr: float
    peak_lr: float
    final_lr: float

    def lr(self, step: int) -> float:
        return warmup_cosine(
            step,
            start=self.start_lr,
            peak=self.peak_lr,
            final=self.final_lr,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps,
        )


def make_schedule(config: RunConfig, published: Published, num_videos: int) -> Schedule:
    """Resolve the learning rate and the number of steps.

    Rates per 256 clips are multiplied by the global batch / 256, and so is the published end of
    the cosine (run_mae_pretraining.py:193-195, run_class_finetuning.py:406).

    Raises:
        InputError: the videos do not fill one global batch, or the warm-up outlasts the run.
    """
    flags = config.optimization
    batch = flags.batch_size * flags.accumulate * num_ranks(config.device)
    steps_per_epoch = num_videos // batch
    if steps_per_epoch == 0:
        raise InputError(
            f"{num_videos} training videos do not fill one global batch of {batch} "
            "(--batch_size x --n_device x --n_node x --accumulate): lower --batch_size"
        )
    base_lr = published.base_lr if flags.base_lr is None else flags.base_lr
    n_epoch = flags.n_epoch or published.n_epoch
    warmup = published.warmup_epochs if flags.warmup_epochs is None else flags.warmup_epochs
    if warmup >= n_epoch:
        raise InputError(
            f"the warm-up of {warmup:g} epochs is not shorter than --n_epoch {n_epoch}: set "
            "--warmup_epochs"
        )
    return Schedule(
        global_batch_size=batch,
        n_epoch=n_epoch,
        steps_per_epoch=steps_per_epoch,
        total_steps=n_epoch * steps_per_epoch,
        warmup_steps=round(warmup * steps_per_epoch),
        start_lr=flags.warmup_lr,
        peak_lr=base_lr * batch / 256 if flags.lr is None else flags.lr,
        final_lr=published.min_base_lr * batch / 256 if flags.min_lr is None else flags.min_lr,
    )


def open_table(
    config: RunConfig, split: str, list_path: Path | None, num_classes: int, missing: list[str]
) -> VideoTable | None:
    """Open a split's list; what is not on disk goes to `missing`.

    Raises:
        InputError: a list that is there has bad lines.
    """
    try:
        return open_split(config.data.data_dir, split, list_path=list_path, num_classes=num_classes)
    except MissingInput as error:
        missing.append(
            f"data: {error} (The plan assumes Kinetics-400's {PUBLISHED_COUNTS['train']:,} / "
            f"{PUBLISHED_COUNTS['val']:,} videos.)"
        )
        return None


def accelerator(flag: str) -> str:
    """Where to compute, of `--accelerator`: `auto` is CUDA where there is any, else the CPU."""
    if flag == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return flag


def is_compiled(device: DeviceFlags) -> bool:
    """Whether `--compile` asks for it: `auto` does on CUDA where there is a C compiler."""
    if device.compile == "auto":
        return accelerator(device.accelerator) == "cuda" and has_compiler()
    return device.compile == "on"


def lacks_compiler(device: DeviceFlags) -> bool:
    """Whether `--compile auto` would compile, were there a C compiler."""
    on_gpu = accelerator(device.accelerator) == "cuda"
    return device.compile == "auto" and on_gpu and not has_compiler()


def has_compiler() -> bool:
    """Whether torch.compile finds the compiler that it needs for its launchers, or for a CPU."""
    named = [os.environ.get("CC"), os.environ.get("CXX")]
    return any(shutil.which(one) for one in (*named, "gcc", "cc", "clang", "g++") if one)


def num_ranks(device: DeviceFlags) -> int:
    """Processes that train together, on all machines."""
    return device.n_device * device.n_node


def strategy(device: DeviceFlags) -> str:
    """How they do, of `--strategy`."""
    return "ddp" if device.strategy == "auto" and num_ranks(device) > 1 else device.strategy


def missing_devices(device: DeviceFlags) -> list[str]:
    """What of the devices asked for this machine lacks.

    On a CPU a device is a process; `auto` takes no more of them than there are cores.
    """
    gpus = torch.cuda.device_count()
    on_gpu = accelerator(device.accelerator) == "cuda"
    if on_gpu:
        have, kind = gpus, "CUDA device(s)"
    elif device.accelerator == "auto":
        have, kind = os.cpu_count() or 1, "CPU core(s) and no CUDA device"
    else:
        have, kind = device.n_device, "processes"
    missing = []
    if device.n_device > have:
        missing.append(
            f"devices: --n_device {device.n_device} asked for, this machine has {have} {kind}"
        )
    if device.precision.startswith("16-") and not on_gpu:
        # Fabric would quietly take bfloat16 instead.
        missing.append(f"devices: --precision {device.precision} needs a CUDA device")
    if device.compile == "on" and not has_compiler():
        missing.append("devices: --compile on needs a C compiler (gcc) on this machine")
    return missing


def missing_memory(config: RunConfig, num_views: int = 0) -> list[str]:
    """What of the shared memory that the loader's workers need this machine lacks.

    Args:
        config: the flags.
        num_views: views of a video in the test at the end, which are handed over together.
    """
    data, model = config.data, config.model
    clips = config.optimization.batch_size * data.num_sample
    need = needed_bytes(
        clips_per_batch=max(clips, num_views),
        bytes_per_clip=clip_bytes(model.num_frames, model.input_size),
        num_workers=data.n_worker,
        num_loaders=config.device.n_device,
    )
    short = shortage(need)
    return [] if short is None else [short]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a run is made of, before anything is launched.

    Attributes:
        config: the flags.
        method: on the meta device in a dry run.
        groups: parameter groups.
        betas: of the optimizer.
        schedule: see there.
        train_videos: None when the data is not on disk.
        val_videos: likewise.
        tokens_visible: that the encoder sees.
        optimizer: its name, for `build_optimizer`.
        ema_decay: of the average of the weights that is kept; None keeps the weights themselves.
        missing: what a real run would need and this machine lacks.
    """

    config: RunConfig
    method: Method
    groups: list[dict[str, Any]]
    betas: tuple[float, float]
    schedule: Schedule
    train_videos: VideoTable | None
    val_videos: VideoTable | None
    tokens_visible: int
    tokens_total: int
    optimizer: str = "adamw"
    ema_decay: float | None = None
    missing: list[str] = field(default_factory=list)

    def refuse_what_is_missing(self) -> None:
        """Stop before anything is written.

        Raises:
            InputError: names what is missing.
        """
        if self.missing:
            raise InputError("this run cannot start:\n  " + "\n  ".join(self.missing))

    def agreed(self) -> dict[str, Any]:
        """What a resumed run must share with its beginning."""
        assert self.train_videos is not None
        flags = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in flatten(self.config).items()
            if name not in MAY_CHANGE
        }
        return {**flags, **asdict(self.schedule), "videos": self.train_videos.digest()}


def plan_as_json(run: Run) -> str:
    """The plan that `--dry_run` prints."""
    config, schedule = run.config, run.schedule

    def count(table: VideoTable | None, split: str) -> int | None:
        if table is not None:
            return len(table)
        # Pretraining needs no validation list: without one beside its data, nothing is assumed.
        assumed = any(text.startswith("data:") for text in run.missing)
        return PUBLISHED_COUNTS[split] if assumed else None

    plan = {
        "model": config.model.model_name,
        "n_parameters": count_parameters(run.method),
        "global_batch_size": schedule.global_batch_size,
        "num_sample": config.data.num_sample,
        "n_epoch": schedule.n_epoch,
        "steps_per_epoch": schedule.steps_per_epoch,
        "total_steps": schedule.total_steps,
        "optimizer": run.optimizer,
        "start_lr": schedule.start_lr,
        "peak_lr": schedule.peak_lr,
        "final_lr": schedule.final_lr,
        "warmup_steps": schedule.warmup_steps,
        "param_groups": len(run.groups),
        "tokens_visible": run.tokens_visible,
        "tokens_total": run.tokens_total,
        "training_gflops_per_clip": run.method.training_flops() / 1e9,
        "precision": config.device.precision,
        "dtype": str(input_dtype(config.device)).removeprefix("torch."),
        "strategy": strategy(config.device),
        "compile": is_compiled(config.device),
        "activation_checkpointing": config.device.activation_checkpointing,
        "n_device": config.device.n_device,
        "n_node": config.device.n_node,
        "train_videos": count(run.train_videos, "train"),
        "val_videos": count(run.val_videos, "val"),
        "missing": run.missing,
    }
    return json.dumps(plan, indent=2)
