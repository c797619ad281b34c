"""Ranks for tests: threads of control in processes of their own, joined by gloo."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric


def _as_rank(rank: int, world_size: int, folder: Path, act: Callable[[Fabric], Any]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world_size
    )
    fabric: Any = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        strategy=SimpleNamespace(precision=None),
    )
    torch.save(act(fabric), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """Call a function of the test's module on several ranks; what it returns, by rank."""

    def run(act: Callable[[Fabric], Any], world_size: int = 2) -> list[Any]:
        folder = tmp_path_factory.mktemp("ranks")
        torch.multiprocessing.spawn(_as_rank, (world_size, folder, act), nprocs=world_size)
        return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]

    return run
