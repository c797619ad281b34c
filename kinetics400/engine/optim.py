"""AdamW or Lion over a method's parameter groups, and their state by parameter name."""

from typing import Any

import torch
from timm.optim import Lion
from torch import nn
from torch.optim import AdamW, Optimizer

from kinetics400.engine.sharding import part_of

MOMENTS: dict[type[Optimizer], tuple[str, ...]] = {
    AdamW: ("step", "exp_avg", "exp_avg_sq"),
    Lion: ("exp_avg",),
}


def build_optimizer(
    name: str, groups: list[dict[str, Any]], *, betas: tuple[float, float], fused: bool
) -> Optimizer:
    """Make the optimizer. The learning rate is set at every step (`set_lr`).

    Args:
        name: "adamw", or "lion" (Chen et al. 2023, arXiv:2302.06675; timm's).
        groups: what `Method.param_groups` gave.
        betas: decays of the moments; Lion's are of its update and of its momentum.
        fused: one kernel for all parameters; Lion has none.
    """
    if name == "lion":
        return Lion(groups, lr=0.0, betas=betas)
    return build_adamw(groups, betas=betas, fused=fused)


def build_adamw(
    groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float = 1e-8, fused: bool
) -> Optimizer:
    """Make AdamW.

    Args:
        groups: what `Method.param_groups` gave.
        betas: decays of the moments.
        eps: added to the root of the second moment.
        fused: one kernel for all parameters.
    """
    return AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=fused)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give each group the scheduled rate times its `lr_scale`, as published at every step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def optimizer_state(optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """The moments, as one flat mapping `<parameter name>.<moment>`."""
    return {
        f"{name}.{moment}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def blank_state(optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """What `optimizer_state` will give after a step, without values (on "meta")."""
    return {
        f"{name}.{moment}": torch.empty_like(parameter, device="meta")
        if moment != "step"
        else torch.empty((), device="meta")
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for moment in MOMENTS[type(optimizer)]
    }


def load_optimizer_state(optimizer: Optimizer, state: dict[str, torch.Tensor]) -> None:
    """Put the moments back, whole ones.

    Raises:
        KeyError: a parameter has none.
    """
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            optimizer.state[parameter] = {
                moment: part_of(state[f"{name}.{moment}"], parameter)
                if moment != "step"
                # Step counters live on the CPU unless the fused kernel keeps them by its side.
                else state[f"{name}.{moment}"].to(parameter.device if group["fused"] else "cpu")
                for moment in MOMENTS[type(optimizer)]
            }


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
