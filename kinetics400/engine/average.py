"""Exponential moving average of the weights (EMA): evaluated and kept, never trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kinetics400.engine.sharding import put


class WeightAverage:
    """Averages of a module's parameters, in float32 whatever theirs is.

    After each step an average a of a parameter p becomes `decay * a + (1 - decay) * p`, and it
    starts from the initial p, as in timm's ModelEma (VideoMAE run_class_finetuning.py).

    Args:
        module: whose parameters; on its device.
        decay: in (0, 1); 0.9999 remembers about ten thousand steps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._parameters = dict(module.named_parameters())
        self._decay = decay
        self._averages = {
            name: parameter.detach().float().clone() for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are."""
        torch._foreach_lerp_(
            list(self._averages.values()),
            [parameter.detach().float() for parameter in self._parameters.values()],
            1 - self._decay,
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While the block lasts, the module has the averages."""
        trained = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.apply()
        try:
            yield
        finally:
            self._copy(trained)

    def apply(self) -> None:
        """Replace the module's parameters by their averages, for good."""
        self._copy(self._averages)

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(self._averages)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put averages back, whole ones.

        Raises:
            KeyError: a parameter has none.
        """
        put(self._averages, state)

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
