"""Fully sharded training (FSDP): a rank keeps some rows of each weight and of what goes with it.

A transformer block's weights come together before it computes, forward and backward, and part again
after; its gradients are summed to where their rows are (torch's `fully_shard`; Zhao et al. 2023,
arXiv:2304.11277). What trains is a sharded copy of the method, whose parameters are DTensors. The
method itself stays whole, in the host's memory, and is what evaluations and the final model take.

The rest of the engine does not ask which strategy it is: it hands tensors to `whole`, `gathered`,
`part_of` and `put`, which leave those of other strategies as they are.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.strategy import _BackwardSyncControl
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from kinetics400.methods.base import Method

PRECISIONS = ("32-true", "bf16-mixed")


class ShardedStrategy(DDPStrategy):
    """Fabric's launch, devices and collectives, for a method that `distribute` has sharded.

    Args:
        timeout: in which the ranks must have met.
    """

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(timeout=timeout)
        self._backward_sync_control = _EveryBackward()

    def setup_module(self, module: nn.Module) -> Any:
        return module

    def module_to_device(self, module: nn.Module) -> None:
        pass  # sharding has moved it


class _EveryBackward(_BackwardSyncControl):
    """Sums gradients after each micro-batch: put off, every rank would have to keep whole ones."""

    def no_backward_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager:
        return nullcontext()


def distribute(
    fabric: Fabric, method: Method, units: Callable[[nn.Module], Iterable[nn.Module]]
) -> Method:
    """What trains: the method itself on its device, or a copy that is sharded over all ranks.

    Args:
        fabric: launched; its strategy decides.
        method: whole, the same on all ranks.
        units: of a method, the modules whose weights come together at a time.
    """
    if not isinstance(fabric.strategy, ShardedStrategy):
        fabric.to_device(method)
        # All buffers are constants: ranks need not tell each other at every step.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            method, [name for name, _ in method.named_buffers()]
        )
        return method
    # Shards and sums are float32, and autocast casts what computes in bfloat16, as under DDP. From
    # units in float32 it would keep a bfloat16 copy each until the backward pass, so these come in
    # bfloat16. The few weights outside of them do not matter.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    is_mixed = fabric.strategy.precision.precision == "bf16-mixed"
    units_policy = replace(policy, param_dtype=torch.bfloat16) if is_mixed else policy
    # One dimension over all ranks takes their own group, with its --rank_timeout.
    mesh = init_device_mesh(fabric.device.type, (fabric.world_size,))
    sharded = copy.deepcopy(method)
    for unit in units(sharded):
        fully_shard(unit, mesh=mesh, mp_policy=units_policy)
    fully_shard(sharded, mesh=mesh, mp_policy=policy)
    return sharded


def is_sharded(module: nn.Module) -> bool:
    """Whether its parameters are spread over the ranks."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def with_parameters(groups: Iterable[Mapping[str, Any]], method: Method) -> list[dict[str, Any]]:
    """Parameter groups (`Method.param_groups`) with this method's parameters of the same names."""
    named = dict(method.named_parameters())
    return [{**group, "params": [named[name] for name in group["names"]]} for group in groups]


def compile_method(method: Method) -> None:
    """Make one graph of the method, its loss and their backward; or one of each sharded unit.

    Weights come together between units, which no graph can hold.
    """
    # The method itself comes first.
    units = [module for module in method.modules() if isinstance(module, FSDPModule)][1:]
    if not units:
        # The method itself, not what Fabric wraps around it: DDP's own forward is no whole graph.
        # Within DDP the graph is cut where gradients are exchanged, so that both overlap.
        method.compile(fullgraph=True, dynamic=False)
    # All blocks share one code, and each of another drop path rate is another graph of it.
    limit = max(torch._dynamo.config.recompile_limit, 2 * len(units))
    torch._dynamo.config.recompile_limit = limit
    for unit in units:
        unit.forward = torch.compile(unit.forward, fullgraph=True, dynamic=False)


# --- tensors --------------------------------------------------------------------------------------


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank. By all ranks together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors in the host's memory, one after the other. By all ranks together.

    Args:
        tensors: the same names on all ranks.
        keep: whether this rank wants them; otherwise it only takes part and has none.
    """
    found = {}
    for name, tensor in tensors.items():
        one = whole(tensor)
        if keep:
            found[name] = one.cpu()
    return found


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of another, and sharded as that is."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def put(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Overwrite tensors, sharded or not, by whole ones.

    Raises:
        KeyError: a target has no value.
    """
    for name, target in targets.items():
        target.copy_(part_of(values[name], target))


# --- the whole method -----------------------------------------------------------------------------


@torch.no_grad()
def collect(trained: Method, method: Method, device: torch.device) -> None:
    """Give the whole method the weights of what `distribute` made of it. By all ranks together."""
    if trained is method:
        return
    method.to(device)
    parts = dict(trained.named_parameters())
    for name, parameter in method.named_parameters():
        parameter.copy_(whole(parts[name]))


@contextmanager
def collected(trained: Method, method: Method, device: torch.device) -> Iterator[None]:
    """While the block lasts, the whole method is on the device, with the weights trained."""
    collect(trained, method, device)
    try:
        yield
    finally:
        if trained is not method:
            method.to("cpu")
