"""The average of the weights against timm's and against arithmetic."""

import pytest
import torch
from timm.utils import ModelEma
from torch import nn

from kinetics400.engine.average import WeightAverage


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


def walk(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def test_it_is_timms_average() -> None:
    model = module()
    ours, theirs = WeightAverage(model, 0.9), ModelEma(model, decay=0.9)
    for step in range(5):
        walk(model, step)
        ours.update()
        theirs.update(model)
    for name, value in theirs.ema.state_dict().items():
        torch.testing.assert_close(ours.state()[name], value)


def test_a_slow_average_moves_in_16_bits_too() -> None:
    """In bfloat16 itself a ten-thousandth of a difference would be rounded away."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    average = WeightAverage(model, 0.9999)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(100):
        average.update()
    assert average.state()["weight"].item() == pytest.approx(2 - 0.9999**100, rel=1e-5)


def test_training_goes_on_from_the_weights_not_the_average() -> None:
    model = module()
    average = WeightAverage(model, 0.5)
    walk(model, 0)
    average.update()
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), average.applied():
        assert all(torch.equal(p, average.state()[name]) for name, p in model.named_parameters())
        assert not torch.equal(model[0].weight, trained["0.weight"])  # type: ignore[index]
        raise ZeroDivisionError
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    average.apply()
    assert all(torch.equal(p, average.state()[name]) for name, p in model.named_parameters())


def test_a_missing_average_is_named() -> None:
    average = WeightAverage(module(), 0.5)
    state = average.state()
    del state["1.bias"]
    with pytest.raises(KeyError, match=r"1\.bias"):
        average.load_state(state)
