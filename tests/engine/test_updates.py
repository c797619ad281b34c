"""Updates that are skipped on all ranks. The loop's own tests see them skipped on one."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from kinetics400.engine.optim import build_optimizer
from kinetics400.engine.updates import Updates, gradient_norm, require_finite_weights
from kinetics400.errors import Failure


def update_with_one_bad_loss(fabric: Fabric) -> tuple[list[torch.Tensor], list[bool], list[str]]:
    """Rank 1's second loss is infinite; every gradient is finite."""
    parameter = nn.Parameter(torch.ones(3))
    groups = [{"params": [parameter], "names": ["p"], "lr_scale": 1.0}]
    optimizer = build_optimizer("adamw", groups, betas=(0.9, 0.95), fused=True)
    optimizer.param_groups[0]["lr"] = 0.1
    updates = Updates(fabric, optimizer, lambda step: f"slots of {step}")
    states, counted, told = [], [], []
    for step in range(3):
        parameter.grad = torch.full((3,), 1.0 + step)
        loss = torch.tensor(math.inf if (fabric.global_rank, step) == (1, 1) else 1.0)
        norm = gradient_norm(nn.ParameterList([parameter]))
        counted.append(bool(updates.apply(step, optimizer.step, loss, norm)))
        states.append(parameter.detach().clone())
    updates.read(told.append)
    return states, counted, told


def test_one_ranks_bad_loss_skips_the_step_on_all(on_ranks: Callable[..., list[Any]]) -> None:
    for states, counted, told in on_ranks(update_with_one_bad_loss):
        assert counted == [True, False, True]
        assert torch.equal(states[0], states[1]) and not torch.equal(states[1], states[2])
        (line,) = told
        assert "step 2 (slots of 1)" in line


@pytest.mark.parametrize("name", ["adamw", "lion"])
@pytest.mark.parametrize("fused", [True, False])
def test_moments_stay_as_they_are(name: str, fused: bool) -> None:
    parameter = nn.Parameter(torch.ones(3))
    groups = [{"params": [parameter], "names": ["p"], "lr_scale": 1.0}]
    optimizer = build_optimizer(name, groups, betas=(0.9, 0.95), fused=fused)
    optimizer.param_groups[0] |= {"lr": 0.1, "weight_decay": 0.1}
    updates = Updates(Fabric(accelerator="cpu", devices=1), optimizer, str)

    def step(number: int, gradient: float) -> list[torch.Tensor]:
        parameter.grad = torch.full((3,), gradient)
        norm = gradient_norm(nn.ParameterList([parameter]))
        updates.apply(number, optimizer.step, torch.tensor(1.0), norm)
        values = (parameter, *optimizer.state[parameter].values())
        return [torch.as_tensor(value).detach().clone() for value in values]

    before = step(0, 1.0)
    assert all(map(torch.equal, step(1, math.nan), before))
    assert not torch.equal(step(2, 1.0)[0], before[0])


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    module = nn.Linear(4, 4)
    require_finite_weights(module, 7)
    with torch.no_grad():
        module.weight[2, 3] = value
    with pytest.raises(Failure, match="not finite after step 7"):
        require_finite_weights(module, 7)
