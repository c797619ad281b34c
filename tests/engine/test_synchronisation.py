"""A step never waits for the device: the host reads numbers only when it logs."""

from collections.abc import Callable

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from kinetics400.augment.mix import Mixing
from kinetics400.augment.pipeline import training_augment
from kinetics400.augment.randaugment import parse_randaugment
from kinetics400.batch import Batch, normalize
from kinetics400.data import keys
from kinetics400.engine.log import RunLog
from kinetics400.engine.optim import build_optimizer
from kinetics400.engine.trainer import Plan, fit
from kinetics400.methods.base import Method
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.vit import DecoderConfig, VitConfig

VIT = VitConfig(embed_dim=24, depth=2, num_heads=2, image_size=16, patch_size=8, num_frames=4)
# What reads a tensor's value on the host: it would wait for a GPU.
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")


def prepared(
    kind: str,
    steps: int,
    clip_grad: float | None,
    optimizer: str = "adamw",
    accelerator: str = "cpu",
    before: Callable[[int], None] = lambda step: None,
) -> Callable[[], None]:
    """Some steps with one line of the log, after the last; `before` is called in each."""
    torch.manual_seed(0)
    method: Method = Classification(VIT, 3)
    if kind == "pretraining":
        method = VideoMAE(VIT, DecoderConfig(embed_dim=16, depth=1, num_heads=2), mask_ratio=0.5)
    groups = method.param_groups(0.05, 0.75)
    fabric = Fabric(accelerator=accelerator, devices=1)
    fabric.to_device(method)
    key = torch.stack([keys.sample_key(0, 0, slot) for slot in range(4)])
    clips = torch.zeros(4, 3, 4, 16, 16, dtype=torch.uint8)
    batch = Batch(clips, torch.arange(4) % 3, key).to(fabric.device)
    plan = Plan(
        total_steps=steps,
        steps_per_epoch=steps,
        global_batch_size=4,
        lr=lambda step: 1e-3,
        clip_grad=clip_grad,
        log_every=100,
    )
    calls = iter(range(steps))

    def augment(batch: Batch) -> Batch:
        before(next(calls))
        return batch.with_clips(normalize(batch.clips))

    def run() -> None:
        with RunLog(None, total_steps=steps) as log:
            fit(
                fabric,
                method,
                build_optimizer(optimizer, groups, betas=(0.9, 0.95), fused=True),
                [(batch, [])] * steps,
                augment=augment,
                plan=plan,
                log=log,
            )

    return run


def reads_of(kind: str, steps: int, clip_grad: float | None, optimizer: str = "adamw") -> int:
    run = prepared(kind, steps, clip_grad, optimizer)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return sum(event.name in READS and not in_the_kernel(event) for event in seen.events())


def in_the_kernel(event: FunctionEvent) -> bool:
    """On a CPU fused AdamW reads its step counters, which are on a GPU where the kernel is."""
    parent = event.cpu_parent
    return parent is not None and ("_fused_adamw_" in parent.name or in_the_kernel(parent))


@pytest.mark.parametrize("clip_grad", [None, 1.0])
@pytest.mark.parametrize("kind", ["pretraining", "finetuning"])
def test_a_step_reads_nothing(kind: str, clip_grad: float | None) -> None:
    """(The log's line at the end reads whole tensors, which is not counted.)"""
    assert reads_of(kind, 9, clip_grad) == 0


def test_the_count_would_notice() -> None:
    """Lion has no fused kernel: the host asks after every step whether it counts."""
    few, many = (reads_of("finetuning", steps, None, "lion") for steps in (3, 9))
    assert many >= few + 6


class Copies(TorchFunctionMode):
    """Collects copies from the host to the device that wait for it; meta stands in for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.device.type == "meta":
            made = func in (torch.tensor, torch.as_tensor)
            moved = func is Tensor.to and args[0].device.type == "cpu"
            if made or (moved and not (kwargs or {}).get("non_blocking")):
                self.found.append(func.__name__)
        return result


@pytest.mark.parametrize("kind", ["pretraining", "finetuning"])
def test_nothing_is_copied_to_the_device_by_a_waiting_host(kind: str) -> None:
    """Augmentation, masks, forward and backward."""
    with torch.device("meta"):
        method: Method = Classification(VIT, 3)
        if kind == "pretraining":
            method = VideoMAE(
                VIT, DecoderConfig(embed_dim=16, depth=1, num_heads=2), norm_pix_loss=False
            )
    key = torch.stack([keys.sample_key(0, 0, slot) for slot in range(64)])
    clips = torch.zeros(64, 3, 4, 16, 16, dtype=torch.uint8)
    batch = Batch(clips, torch.arange(64) % 3, key).to("meta")
    augment = training_augment(
        flip_probability=0.5,
        randaugment=parse_randaugment("rand-m7-n4-mstd0.5-inc1"),
        erase_probability=0.5,
        mixing=Mixing(num_classes=3),
    )
    with Copies() as copies:
        augmented = augment(batch)
        method(augmented, method.draw(augmented.keys))["loss"].backward()
    assert copies.found == []


@pytest.mark.parametrize(
    "copy", [lambda: torch.tensor(1.0, device="meta"), lambda: torch.ones(2).to("meta")]
)
def test_a_waiting_copy_would_be_noticed(copy: Callable[[], Tensor]) -> None:
    with Copies() as copies:
        copy()
        torch.ones(2).to("meta", non_blocking=True)
    assert len(copies.found) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("clip_grad", [None, 1.0])
@pytest.mark.parametrize("kind", ["pretraining", "finetuning"])
def test_a_step_on_a_gpu_never_waits(kind: str, clip_grad: float | None) -> None:
    """From the third step on, which finds memory and kernels, to the line at the end."""
    modes = {2: "error", 8: "default"}

    def before(step: int) -> None:
        torch.cuda.set_sync_debug_mode(modes.get(step, torch.cuda.get_sync_debug_mode()))

    try:
        prepared(kind, 9, clip_grad, accelerator="cuda", before=before)()
    finally:
        torch.cuda.set_sync_debug_mode("default")
