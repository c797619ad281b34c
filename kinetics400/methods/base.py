"""The contract of a method: what is learned from a batch of clips."""

from typing import Any

from torch import Tensor, nn

from kinetics400.batch import Batch


class Method(nn.Module):
    """A learning task around an encoder. Adding one is a file here and a line in its command.

    The one training loop (`engine.trainer.fit`) calls, per micro-batch,
    `forward(batch, draw(batch.keys))` and minimises "loss".

    Attributes:
        encoder: what finetuning, probing and export load.
    """

    encoder: nn.Module

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """Draw masks and the like from the samples' keys alone, as tensors of fixed shape.

        Outside the compiled graph. Nothing by default.
        """
        return {}

    def forward(self, batch: Batch, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return "loss" and further scalars to log. Compiles with `fullgraph=True`."""
        raise NotImplementedError

    def predict(self, clips: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised clips (B, C, T, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} predicts no classes")

    def training_flops(self) -> int:
        """Model FLOPs of a clip's forward and backward (`models.flops`)."""
        raise NotImplementedError(f"{type(self).__name__} does not count its FLOPs")

    def layer_id(self, name: str) -> int:
        """Depth of a parameter, for layer-wise learning rates: 0 is nearest to the pixels."""
        return 0

    def param_groups(self, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
        """Group the parameters by depth and weight decay.

        No decay for vectors and tokens (VideoMAE optim_factory.py). A group's `lr_scale` is
        `layer_decay` to the power of its distance from the last layer; it multiplies the schedule
        at every step.

        Returns:
            Groups with `params`, `names`, `weight_decay` and `lr_scale`, shallow ones first.
        """
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        last = max(self.layer_id(name) for name, _ in named)
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in named:
            layer = self.layer_id(name)
            decays = parameter.dim() > 1 and not name.endswith("_token")
            group = groups.setdefault(
                (layer, decays),
                {
                    "params": [],
                    "names": [],
                    "weight_decay": weight_decay if decays else 0.0,
                    "lr_scale": layer_decay ** (last - layer),
                },
            )
            group["params"].append(parameter)
            group["names"].append(name)
        return [groups[key] for key in sorted(groups)]

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step with the share of training done. Nothing by default."""
