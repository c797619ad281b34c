"""AdamW: its update, its rates per group, and its state on the way to disk and back."""

import math

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from kinetics400.batch import Batch, normalize
from kinetics400.engine.optim import (
    build_adamw,
    build_optimizer,
    count_parameters,
    load_optimizer_state,
    optimizer_state,
    set_lr,
)
from kinetics400.methods.classification import Classification
from kinetics400.models.vit import VitConfig

ENCODER = VitConfig(
    embed_dim=12, depth=2, num_heads=2, image_size=8, patch_size=4, num_frames=2, tubelet_size=2
)
both = pytest.mark.parametrize("fused", [False, True])


def classifier(fused: bool, name: str = "adamw") -> tuple[Classification, Optimizer]:
    torch.manual_seed(0)
    method = Classification(ENCODER, 3, head_init_scale=1.0)
    groups = method.param_groups(0.05, 0.75)
    return method, build_optimizer(name, groups, betas=(0.9, 0.999), fused=fused)


def train(method: Classification, optimizer: Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        shape = (4, 3, 2, 8, 8)
        clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.arange(4) % 3
        set_lr(optimizer, 1e-2)
        loss = method(Batch(normalize(clips), labels, labels), {})["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@both
def test_update_is_adam_with_decoupled_decay(fused: bool) -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    group = {"params": [weight], "names": ["w"], "weight_decay": 0.1, "lr_scale": 0.5}
    optimizer = build_adamw([group], betas=(0.9, 0.95), eps=1e-3, fused=fused)
    values, first, second = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for step, gradient in enumerate([[0.3, -1.0], [-0.2, 0.5], [4.0, 0.0]], start=1):
        set_lr(optimizer, 0.2)
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        for i, g in enumerate(gradient):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.95 * second[i] + 0.05 * g * g
            root = math.sqrt(second[i] / (1 - 0.95**step)) + 1e-3
            values[i] -= 0.1 * 0.1 * values[i] + 0.1 * first[i] / (1 - 0.9**step) / root
        assert weight.tolist()[0] == pytest.approx(values, rel=1e-5)


def test_lion_is_the_sign_of_two_averages() -> None:
    """Algorithm 2 of the paper, written out."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    group = {"params": [weight], "names": ["w"], "weight_decay": 0.1, "lr_scale": 0.5}
    optimizer = build_optimizer("lion", [group], betas=(0.9, 0.95), fused=True)
    values, momentum = [1.0, -2.0], [0.0, 0.0]
    for gradient in ([0.3, -1.0], [-0.2, 0.5], [4.0, 9.0]):
        set_lr(optimizer, 0.2)
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        for i, g in enumerate(gradient):
            direction = math.copysign(1, 0.9 * momentum[i] + 0.1 * g)
            values[i] -= 0.1 * (direction + 0.1 * values[i])
            momentum[i] = 0.95 * momentum[i] + 0.05 * g
        assert weight.tolist()[0] == pytest.approx(values, rel=1e-5)


def test_rate_of_a_group_is_the_scheduled_one_times_its_scale() -> None:
    _, optimizer = classifier(fused=False)
    for rate in (3e-4, 0.0, 1e-3):  # set anew each time, not multiplied up
        set_lr(optimizer, rate)
        rates = [group["lr"] for group in optimizer.param_groups]
        scales = [0.75**3, 0.75**3, 0.75**2, 0.75**2, 0.75, 0.75, 1.0, 1.0]
        assert rates == pytest.approx([rate * scale for scale in scales])


@both
def test_state_has_every_moment_under_its_parameters_name(fused: bool) -> None:
    method, optimizer = classifier(fused)
    assert optimizer_state(optimizer) == {}
    train(method, optimizer, range(2))
    state = optimizer_state(optimizer)
    names = [name for name, _ in method.named_parameters()]
    moments = ("step", "exp_avg", "exp_avg_sq")
    assert sorted(state) == sorted(f"{name}.{moment}" for name in names for moment in moments)
    assert {state[f"{name}.step"].item() for name in names} == {2.0}
    assert all(state[f"{n}.exp_avg"].shape == p.shape for n, p in method.named_parameters())


@pytest.mark.parametrize(("fused", "name"), [(False, "adamw"), (True, "adamw"), (False, "lion")])
def test_training_continues_bit_for_bit_from_a_saved_state(fused: bool, name: str) -> None:
    method, optimizer = classifier(fused, name)
    train(method, optimizer, range(3))
    weights = {key: value.clone() for key, value in method.state_dict().items()}
    saved = save({k: v.contiguous().clone() for k, v in optimizer_state(optimizer).items()})
    expected = train(method, optimizer, range(3, 7))

    method, optimizer = classifier(fused, name)
    method.load_state_dict(weights)
    load_optimizer_state(optimizer, load(saved))
    assert train(method, optimizer, range(3, 7)) == expected

    method, optimizer = classifier(fused)  # the moments matter, not the weights alone
    method.load_state_dict(weights)
    assert train(method, optimizer, range(3, 7)) != expected


def test_missing_moment_is_named() -> None:
    method, optimizer = classifier(fused=False)
    train(method, optimizer, range(1))
    state: dict[str, Tensor] = optimizer_state(optimizer)
    del state["head.weight.exp_avg"]
    with pytest.raises(KeyError, match=r"head\.weight\.exp_avg"):
        load_optimizer_state(optimizer, state)


def test_only_trainable_values_are_counted() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5))
    module[0].requires_grad_(False)
    assert count_parameters(module) == 20 + 10
