"""A bit flipped on one rank."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from kinetics400.engine.agreement import Agreement
from kinetics400.engine.drift import EVERY, DriftCheck, checksum
from kinetics400.errors import Failure


def make_module(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 5)).to(dtype)


def flip(module: nn.Module, name: str, index: int, bit: int) -> None:
    parameter = module.get_parameter(name).detach()
    parameter.reshape(-1).view(torch.int32)[index] ^= torch.tensor(
        -(2**31) if bit == 31 else 2**bit, dtype=torch.int32
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equal_weights_have_equal_checksums(dtype: torch.dtype) -> None:
    assert checksum(make_module(dtype)) == checksum(make_module(dtype))


@pytest.mark.parametrize("bit", range(32))
def test_every_bit_counts(bit: int) -> None:
    module, sums = make_module(), set()
    sums.add(checksum(module))
    flip(module, "1.weight", 30, bit)
    sums.add(checksum(module))
    assert len(sums) == 2


def test_parameters_in_each_others_place_count() -> None:
    module, other = make_module(), make_module()
    with torch.no_grad():
        other[0].weight.copy_(module[1].weight.reshape(7, 5))
        other[1].weight.copy_(module[0].weight.reshape(5, 7))
    assert checksum(module) != checksum(other)


def drift(fabric: Fabric) -> list[str]:
    """Rank 1's weights change by one mantissa bit after the first comparison."""
    module = make_module()
    check = DriftCheck(Agreement(fabric), module)
    found = []
    for step in range(10, 300, 10):
        if fabric.global_rank == 1 and step == 120:
            flip(module, "0.bias", 2, 3)
        try:
            check.now_and_then(step)
        except Failure as error:
            found.append(f"{step}: {error}")
    return found


@pytest.mark.parametrize(("world_size", "who"), [(2, "the ranks have"), (3, "rank 1 has")])
def test_all_ranks_find_it_within_a_hundred_steps_more(
    world_size: int, who: str, on_ranks: Callable[..., list[Any]]
) -> None:
    assert EVERY == 100
    for found in on_ranks(drift, world_size):
        assert [one.split(":")[0] for one in found] == ["200"]
        assert f"{who} drifted: after step 200" in found[0]
