"""The plan of the scaling page: from one device's rate and a network's to many devices.

A step of n devices takes what one device computes, and what of the exchange of gradients is left
when the backward pass is over. A ring moves 2 (n - 1) / n times the gradients' bytes past every
device; it enters and leaves each machine once, so it has the machine's whole network.
"""

from dataclasses import dataclass

import torch
from measured import bench

from kinetics400.engine.optim import count_parameters
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.architectures import ARCHITECTURES
from kinetics400.models.vit import VitConfig, transformer_blocks

# Assumed: no GPU has been measured.
MATRIX_RATE = 700e12  # bf16 products of an H100 or H200, FLOP/s; the data sheet says 989e12
MFU = 0.40
BYTES_PER_GRADIENT = 4  # float32, also under autocast
NVLINK = 300e9  # bytes per second of an exchange within a machine of 8
NETWORKS = {"8 × 400 Gbit/s": 200e9, "100 Gbit/s": 10e9}  # between machines
BACKWARD = 2 / 3  # of a step's computing
STATE = 4 + 4 + 8  # bytes of a weight, its gradient and AdamW's moments, all in float32
VIDEOS, EPOCHS = 240_436, 400
PER_MACHINE = 8


@dataclass(frozen=True)
class Step:
    """Seconds."""

    compute: float
    exchange: float

    @property
    def whole(self) -> float:
        return self.compute + max(0.0, self.exchange - BACKWARD * self.compute)


def step_of(clips: int, devices: int, flops: int, parameters: int, network: str) -> Step:
    """A step of `clips` per device on some devices."""
    rate = NVLINK if devices <= PER_MACHINE else NETWORKS[network]
    moved = 2 * (devices - 1) / devices * BYTES_PER_GRADIENT * parameters
    return Step(clips * flops / (MFU * MATRIX_RATE), moved / rate)


def scaling() -> str:
    """Plans for 8, 64 and 512 devices."""
    lines = [
        "| ViT | network | GPUs | clips per GPU | computing, ms | exchange, ms | efficiency "
        "| clips/s | 400 epochs, h | GPU-hours | cores per GPU to feed it |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    per_core = _pretraining_rate()
    for size in ("base", "large"):
        flops, parameters = sizes(size)
        for network in NETWORKS:
            for devices, clips in ((8, 64), (64, 32), (512, 16)):
                step = step_of(clips, devices, flops, parameters, network)
                rate = devices * clips / step.whole
                hours = EPOCHS * VIDEOS / rate / 3600
                lines.append(
                    f"| {size} | {network if devices > PER_MACHINE else 'one machine'} | {devices} "
                    f"| {clips} | {1e3 * step.compute:.0f} | {1e3 * step.exchange:.1f} "
                    f"| {step.compute / step.whole:.0%} | {rate:,.0f} | {_hours(hours)} "
                    f"| {devices * hours:,.0f} | {rate / devices / per_core:.1f} |"
                )
    return "\n".join(dict.fromkeys(lines))


def _hours(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def exchange() -> str:
    """What meets at each step."""
    parts = []
    for size in ("small", "base", "large", "huge"):
        _, parameters = sizes(size)
        parts.append(f"{size} {BYTES_PER_GRADIENT * parameters / 1e6:,.0f} MB")
    return f"Gradients per step in pretraining, whatever the batch: {', '.join(parts)}."


def sharded_memory() -> str:
    """Bytes of weights, gradients and moments on a device, by strategy; computed."""
    lines = [
        "| ViT | parameters, M | ddp, GB | fsdp on 8, GB | fsdp on 64, GB "
        "| of these together, GB |",
        "|---|---|---|---|---|---|",
    ]
    for size in ("small", "base", "large", "huge"):
        method = _method(size)
        parameters = count_parameters(method)
        blocks = [count_parameters(block) for block in transformer_blocks(method)]
        # Outside of blocks weights and gradients are whole in float32; of blocks the one at work
        # and the next, in bfloat16, with the gradients of one, in bfloat16 and in float32.
        together = (4 + 4) * (parameters - sum(blocks)) + (2 * 2 + 2 + 4) * max(blocks)
        sharded = [STATE * parameters / devices + together for devices in (8, 64)]
        gigabytes = " | ".join(f"{x / 1e9:.2f}" for x in (STATE * parameters, *sharded, together))
        lines.append(f"| {size} | {parameters / 1e6:.0f} | {gigabytes} |")
    return "\n".join(lines)


def sizes(size: str) -> tuple[int, int]:
    """FLOPs of a clip's training, and parameters, of pretraining."""
    method = _method(size)
    return method.training_flops(), count_parameters(method)


def _method(size: str) -> VideoMAE:
    one = ARCHITECTURES[size]
    config = VitConfig(embed_dim=one.embed_dim, depth=one.depth, num_heads=one.num_heads)
    with torch.device("meta"):
        return VideoMAE(config, one.decoder)


def _pretraining_rate() -> float:
    """Clips that one core reads per second."""
    rows = bench("loader.json")["contenders"]
    (rate,) = (
        row["per_sec"] for row in rows if (row["task"], row["contender"]) == ("pretrain", "pyramid")
    )
    return rate
