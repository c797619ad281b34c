"""Flags that pretraining and finetuning share, one frozen dataclass per concern.

The docstring under a field is its help text. A default of None is resolved by `defaults.py` from
the model's size or from other flags; `--dry_run` shows the resolved schedule.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kinetics400.data.watch import DECODE_TIMEOUT

# x264's, from fast and large to slow and small.
Preset = Literal[
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
]


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Model."""

    model_name: str = "MCG-NJU/videomae-base"
    """Architecture, by its Hugging Face name: MCG-NJU/videomae-{small,base,large,huge}, their
    -finetuned-kinetics names, or `tiny`."""
    input_size: int = 224
    """Side of the square input, pixels; a multiple of patch_size."""
    num_frames: int = 16
    """Frames of a clip; a multiple of tubelet_size."""
    patch_size: int = 16
    """Side of a patch, pixels."""
    tubelet_size: int = 2
    """Frames of a token."""


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Data."""

    data_dir: Path = Path("data")
    """The preprocessed folder Kinetics-400, or the folder that contains it."""
    train_list: Path | None = None
    """Another list of training videos, lines of `<file> <label>`; names without a leading / start
    from videos_train."""
    val_list: Path | None = None
    """Another list of validation videos; names without a leading / start from videos_val. (Not
    used by pretraining, whose plan only counts them.)"""
    n_worker: int = 8
    """Processes per device that decode videos; 0 decodes in the training process, where nothing
    guards against videos that hang or crash the decoder."""
    num_sample: int = 1
    """Clips of each video, decoded once, each cut and augmented its own way (repeated
    augmentation): a step takes batch_size x num_sample clips per device. Learning rates do not
    count it."""
    max_bad_share: float = 0.001
    """Stop (exit code 3) when more than this share of an epoch's videos cannot be read; below it
    others stand in for them."""
    decode_timeout: float = DECODE_TIMEOUT
    """Seconds after which a worker counts as hung over a video: the run stops with exit code 75,
    and continues without the video when the command is repeated."""
    exact_frames: bool = False
    """Take exactly the frames of the published rules, and decode all others on the way. Default:
    frames on the grid of the store's layers, which are decoded by themselves
    (docs/data.md, "Layers")."""


@dataclass(frozen=True, kw_only=True)
class ClipFlags:
    """Clips."""

    sampling_rate: int = 4
    """A clip takes one of this many frames of the video."""
    target_fps: float | None = None
    """Count sampling_rate in frames of a video at this rate, so that clips of slow and fast videos
    last equally long. Default: in the video's own frames, as VideoMAE does."""


@dataclass(frozen=True, kw_only=True)
class LabelledClipFlags(ClipFlags):
    """Clips."""

    sampling: Literal["dense", "sparse"] = "dense"
    """dense: num_frames frames, sampling_rate apart. sparse: one frame of each of num_frames equal
    parts of the video (TSN; Something-Something v2)."""


@dataclass(frozen=True, kw_only=True)
class OptimizationFlags:
    """Optimization."""

    n_epoch: int | None = None
    """Passes over the training list. Default: as published for the model's size."""
    batch_size: int = 32
    """Clips per device and micro-batch."""
    accumulate: int = 1
    """Micro-batches per step: the global batch is batch_size x n_device x n_node x accumulate."""
    lr: float | None = None
    """Largest learning rate, absolute. The alternative to base_lr."""
    base_lr: float | None = None
    """Largest learning rate per 256 clips of the global batch. Default: as published for the
    model's size. Of lr and base_lr the later source (recipe, command line) wins."""
    min_lr: float | None = None
    """Where the cosine ends, absolute. Default: as published, scaled with the global batch."""
    warmup_lr: float = 0.0
    """Where the warm-up starts, absolute. VideoMAE's recipes start from 0."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up. Default: as published."""
    weight_decay: float = 0.05
    """Of the optimizer, decoupled; not applied to vectors and tokens."""
    clip_grad: float | None = None
    """Largest norm of the gradient. Default: not clipped, as published."""


@dataclass(frozen=True, kw_only=True)
class DeviceFlags:
    """Devices."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """What to train on; auto takes CUDA where there is any."""
    n_device: int = 1
    """Number of GPUs of a machine, or of processes on a CPU."""
    n_node: int = 1
    """Number of machines with n_device devices each; torchrun starts the processes on each
    (docs/scaling.md)."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"] = "32-true"
    """Lightning Fabric's precision: type of the weights, or `mixed` for autocast."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type in which clips reach the model. Default: the precision's own."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several devices train together. ddp: each holds the whole model. fsdp: each holds a part
    of weights, gradients and moments, for models that do not fit otherwise (docs/scaling.md). auto
    is ddp where there are several."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile model and loss into one graph (torch.compile), which takes a minute or two at the
    start and makes steps faster. auto does so on CUDA."""
    activation_checkpointing: Literal["none", "blocks"] = "none"
    """What is computed again in the backward pass and not kept in memory: blocks leaves room for
    larger batches and models, and steps take about a third longer."""
    rank_timeout: float = 600.0
    """Seconds after which a process that does not answer the others counts as lost, and the run
    ends."""


@dataclass(frozen=True, kw_only=True)
class SavingFlags:
    """Saving."""

    # A ViT-B takes seconds to save and hours to repeat (Young's rule gives 10 to 20 minutes).
    save_minutes: float = 10.0
    """Minutes between checkpoints within an epoch; 0 for none. A signal to stop saves as well."""
    keep_every: int | None = None
    """Epochs between checkpoints that stay for good, beside the two newest and the best."""


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Run."""

    seed: int = 0
    """Of every random number. The same seed gives the same run."""
    deterministic: bool = False
    """Take only algorithms that give the same bits every time, on a GPU, too; they may be slower. A
    CPU needs none of it."""
    resume: str = "auto"
    """auto continues what save_dir holds; never refuses a save_dir that is not empty; or the path
    of a checkpoint folder."""
    log_every: int = 10
    """Steps between two lines of the log; each epoch ends with one as well."""
    recipe: Path | None = None
    """YAML file of flags, read before the command line's."""
    dry_run: bool = False
    """Build everything but the data workers, print the plan as JSON, write nothing."""
