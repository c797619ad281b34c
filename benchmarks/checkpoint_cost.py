"""What checkpoints of ViT-B pretraining cost: seconds and bytes of one, and their share of a run.

python benchmarks/checkpoint_cost.py benchmarks/results/checkpoint_cost.json
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from lightning.fabric import Fabric

from kinetics400.config.common import SavingFlags
from kinetics400.engine.agreement import Agreement
from kinetics400.engine.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from kinetics400.engine.optim import build_optimizer
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.architectures import ARCHITECTURES
from kinetics400.models.vit import VitConfig

REPEATS = 5


def measure() -> dict[str, object]:
    """Save and load REPEATS times."""
    size = ARCHITECTURES["base"]
    vit = VitConfig(embed_dim=size.embed_dim, depth=size.depth, num_heads=size.num_heads)
    method = VideoMAE(vit, size.decoder)
    groups = method.param_groups(0.05, 1.0)
    optimizer = build_optimizer("adamw", groups, betas=(0.9, 0.95), fused=True)
    for parameter in method.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()  # there are moments now
    fabric = Fabric(accelerator="cpu", devices=1)
    saving, loading = [], []
    with tempfile.TemporaryDirectory(prefix="kinetics400-cost-", dir=".") as folder:
        for step in range(1, REPEATS + 1):
            started = time.perf_counter()
            save_checkpoint(
                fabric,
                Path(folder),
                step=step,
                method=method,
                optimizer=optimizer,
                agreed={},
                agreement=Agreement(fabric),
            )
            saving.append(time.perf_counter() - started)
            started = time.perf_counter()
            found, _ = find_checkpoint(Path(folder))
            assert found is not None
            load_checkpoint(fabric, found, method=method, optimizer=optimizer)
            loading.append(time.perf_counter() - started)
        n_bytes = sum(file.stat().st_size for file in found.folder.iterdir())
    minutes = SavingFlags().save_minutes
    seconds = statistics.median(saving)
    return {
        "benchmark": "checkpoint-cost",
        "model": "VideoMAE ViT-B, pretraining, AdamW",
        "n_parameters": sum(parameter.numel() for parameter in method.parameters()),
        "bytes": n_bytes,
        "save_seconds": saving,
        "load_seconds": loading,
        "save_minutes": minutes,
        "share": seconds / (60 * minutes),
    }


if __name__ == "__main__":
    result = measure()
    Path(sys.argv[1]).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
