"""Two ranks with a part of the model each, against one that has all of it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.precision import MixedPrecision, Precision
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from kinetics400.batch import Batch, normalize
from kinetics400.engine.average import WeightAverage
from kinetics400.engine.drift import DriftCheck
from kinetics400.engine.optim import (
    blank_state,
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    set_lr,
)
from kinetics400.engine.retention import checkpoint_bytes
from kinetics400.engine.sharding import (
    ShardedStrategy,
    collect,
    collected,
    compile_method,
    distribute,
    gathered,
    put,
    whole,
    with_parameters,
)
from kinetics400.engine.updates import Updates, gradient_norm, require_finite_weights
from kinetics400.errors import Failure
from kinetics400.methods.base import Method
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.vit import DecoderConfig, VitConfig, transformer_blocks

VIT = VitConfig(embed_dim=24, depth=3, num_heads=2, image_size=16, patch_size=8, num_frames=4)
DEEP = replace(VIT, depth=10, drop_path_rate=0.2)  # more graphs than torch makes unasked
DECODER = DecoderConfig(embed_dim=18, depth=1, num_heads=2)
LAST = "decoder.head.weight"
CPU = torch.device("cpu")
# What reads a tensor's value on the host: it would wait for a GPU.
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
WAYS = (  # precision, optimizer, largest norm
    ("32-true", "adamw", None),
    ("32-true", "lion", 0.1),
    ("bf16-mixed", "adamw", 0.1),
)


class Trained:
    """A method with its optimizer and average, trained like the loop does."""

    def __init__(
        self,
        rank: Any,
        *,
        sharded: bool = True,
        precision: str = "32-true",
        optimizer: str = "adamw",
        vit: VitConfig = VIT,
    ) -> None:
        torch.manual_seed(0)
        self.method: Method = VideoMAE(vit, DECODER, mask_ratio=0.5)
        strategy = ShardedStrategy(timedelta(seconds=60)) if sharded else SimpleNamespace()
        strategy.precision = (
            MixedPrecision("bf16-mixed", "cpu") if precision == "bf16-mixed" else Precision()
        )
        self.fabric: Any = SimpleNamespace(
            global_rank=rank.global_rank,
            world_size=rank.world_size if sharded else 1,
            device=CPU,
            strategy=strategy,
            to_device=lambda module: module,
        )
        self.model = distribute(self.fabric, self.method, transformer_blocks)
        groups = with_parameters(self.method.param_groups(0.05, 0.75), self.model)
        self.optimizer = build_optimizer(optimizer, groups, betas=(0.9, 0.95), fused=True)
        set_lr(self.optimizer, 1e-2)
        self.average = WeightAverage(self.model, 0.5)
        self.updates = Updates(self.fabric, self.optimizer, str)
        self.norms: list[Tensor] = []

    def backward(self, step: int, slots: range) -> Tensor:
        """Of the mean over some of a step's eight clips."""
        draw = torch.Generator().manual_seed(step)
        clips = torch.randint(0, 256, (8, 3, 4, 16, 16), dtype=torch.uint8, generator=draw)[slots]
        keys = torch.arange(8 * step, 8 * step + 8)[slots]
        batch = Batch(normalize(clips), keys, keys)
        with self.fabric.strategy.precision.forward_context():
            loss = self.model(batch, self.model.draw(keys))["loss"]
        loss.backward()
        return loss.detach()

    def update(self, step: int, loss: Tensor, max_norm: float | None = None) -> None:
        norm = gradient_norm(self.model)
        if max_norm is not None:
            clipped = nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)
            assert torch.equal(whole(clipped), norm)
        self.norms.append(norm)
        self.updates.apply(step, self.optimizer.step, loss, norm)
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()

    def state(self) -> dict[str, Tensor]:
        """Weights, moments and averages, whole, on every rank."""
        parts = {
            **{f"weight {name}": value for name, value in self.model.state_dict().items()},
            **{f"moment {name}": value for name, value in optimizer_state(self.optimizer).items()},
            **{f"average {name}": value for name, value in self.average.state().items()},
        }
        return {name: value.clone() for name, value in gathered(parts, keep=True).items()}


def held(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of memory behind this rank's parts."""
    parts = [
        value.to_local() if isinstance(value, DTensor) else value for value in tensors.values()
    ]
    return sum(part.untyped_storage().nbytes() for part in parts)


def share_of(rank: Any) -> range:
    """The clips of a step that are a rank's."""
    return range(4 * rank.global_rank, 4 * rank.global_rank + 4)


def noting(real: Callable[..., Any], seen: set[str]) -> Callable[..., Any]:
    """The same function, which writes down the type of what it is given."""

    def call(*args: Any, **named: Any) -> Any:
        seen.add(str((named["input"] if "input" in named else args[1]).dtype))
        return real(*args, **named)

    return call


def train(rank: Any, precision: str, optimizer: str, max_norm: float | None) -> dict[str, Any]:
    """Four steps of two ranks with four clips each, and of one with all eight."""
    ours, theirs = (
        Trained(rank, sharded=sharded, precision=precision, optimizer=optimizer)
        for sharded in (True, False)
    )
    exchanged: dict[str, set[str]] = {"all_gather": set(), "reduce_scatter": set()}
    for kind, seen in exchanged.items():
        for ending in ("_single", "_into_tensor", "_tensor"):  # torch has given them new names
            if real := getattr(torch.distributed, kind + ending, None):
                setattr(torch.distributed, kind + ending, noting(real, seen))
    for step in range(4):
        ours.update(step, ours.backward(step, share_of(rank)), max_norm)
        theirs.update(step, theirs.backward(step, range(8)), max_norm)
    group = ours.model.get_parameter(LAST).device_mesh.get_group()
    return {
        "exchanged": [sorted(seen) for seen in exchanged.values()],
        "has own group": group is not torch.distributed.group.WORLD,
        "norms": torch.stack(ours.norms),
        "expected norms": torch.stack(theirs.norms),
        "state": ours.state(),
        "expected state": theirs.state(),
    }


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def of_kind(kind: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, moments or averages of a state, by their own names."""
    return {n.removeprefix(kind): v for n, v in state.items() if n.startswith(kind)}


def look(rank: Any) -> dict[str, Any]:
    """What a rank holds, skips, loads, collects and refuses, after two steps."""
    one, other = Trained(rank), Trained(rank)
    one.update(0, one.backward(0, share_of(rank)))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        one.update(1, one.backward(1, share_of(rank)), 0.1)
    found: dict[str, Any] = {"reads": sum(map(is_read, seen.events()))}
    before = one.state()

    loss = one.backward(2, share_of(rank))
    one.update(2, loss * (math.nan if rank.global_rank == 1 else 1.0))
    loss = one.backward(3, share_of(rank))
    spoil(one.model.get_parameter(LAST).grad, rank)
    one.update(3, loss)
    after = one.state()
    found["skipped"] = [
        same(of_kind(kind, before), of_kind(kind, after)) for kind in ("weight ", "moment ")
    ]

    put(other.model.state_dict(), of_kind("weight ", before))
    other.average.load_state(of_kind("average ", before))
    load_optimizer_state(other.optimizer, of_kind("moment ", before))
    found["loaded"] = same(other.state(), before)
    blank = blank_state(other.optimizer)
    found["blank"] = {n: list(v.shape) for n, v in blank.items()} == {
        n: list(v.shape) for n, v in of_kind("moment ", before).items()
    }
    found["held"] = [
        held(dict(other.model.named_parameters())),
        held({n: v for n, v in optimizer_state(other.optimizer).items() if v.dim()}) / 2,
        held(other.average.state()),
    ]
    found["all"] = sum(parameter.nbytes for parameter in other.method.parameters())
    found["checkpoint"] = [
        checkpoint_bytes(model, one.optimizer, has_average=True)
        for model in (other.model, other.method)
    ]
    found["gathered"] = len(gathered(one.model.state_dict(), keep=rank.global_rank == 0))

    average = of_kind("average ", before)
    with other.average.applied(), collected(other.model, other.method, CPU):
        found["evaluated"] = same(dict(other.method.named_parameters()), average)
    collect(other.model, other.method, CPU)
    found["left"] = same(dict(other.method.named_parameters()), of_kind("weight ", before))

    DriftCheck(agreement_of_nobody(), other.model).now(7)
    spoil(other.model.get_parameter(LAST), rank)
    try:
        require_finite_weights(other.model, 7)
    except Failure as failure:
        found["spoilt"] = str(failure)
    return found


def is_read(event: FunctionEvent) -> bool:
    """Whether the host reads a tensor, other than fused AdamW its counters, which a GPU keeps."""
    parent = event.cpu_parent
    in_the_kernel = False
    while parent is not None:
        in_the_kernel |= "_fused_adamw_" in parent.name
        parent = parent.cpu_parent
    return event.name in READS and not in_the_kernel


@torch.no_grad()
def spoil(tensor: Any, rank: Any) -> None:
    """Put a NaN into rank 1's part."""
    if rank.global_rank == 1:
        tensor.to_local()[0, 0] = math.nan


def agreement_of_nobody() -> Any:
    """Nothing may be compared through it."""
    return SimpleNamespace()


def compile_quickly(rank: Any) -> dict[str, Any]:
    """Steps as they are, and in graphs that are run operation by operation."""
    real, made = torch.compile, []

    def noted(function: Any, **options: Any) -> Any:
        made.append(options)
        return real(function, **options, backend="aot_eager")

    torch.compile = noted
    plain, compiled = (Trained(rank, precision="bf16-mixed", vit=DEEP) for _ in range(2))
    torch._dynamo.config.recompile_limit = 8  # torch's own, which importing timm.optim raises
    compile_method(compiled.model)
    for one in (plain, compiled):
        torch.manual_seed(1)
        for step in range(2):
            one.update(step, one.backward(step, share_of(rank)))
    return {"norms": [torch.stack(one.norms) for one in (plain, compiled)], "made": made}


def everything(rank: Any) -> dict[str, Any]:
    """All of it at once, as starting ranks takes longest."""
    return {**{str(way): train(rank, *way) for way in WAYS}, **look(rank)}


@pytest.fixture(scope="module")
def looked(on_ranks: Callable[..., list[Any]]) -> list[dict[str, Any]]:
    """What is found, by rank."""
    return on_ranks(everything)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_two_ranks_train_as_one_with_the_whole_model(
    looked: list[dict[str, Any]], way: tuple[str, str, float | None]
) -> None:
    precision, optimizer, max_norm = way
    tolerance = {"rtol": 0.02, "atol": 2e-3} if precision == "bf16-mixed" else {}
    for found in (one[str(way)] for one in looked):
        torch.testing.assert_close(found["norms"], found["expected norms"], **tolerance)
        assert found["norms"].unique().numel() == 4
        float32, bfloat16 = "torch.float32", "torch.bfloat16"
        weights = [bfloat16, float32] if precision == "bf16-mixed" else [float32]
        assert found["exchanged"] == [weights, [float32]]
        assert not found["has own group"]  # it would wait longer than --rank_timeout
        if max_norm is not None:
            assert found["norms"].min() > max_norm
        if precision == "32-true" and optimizer == "adamw":
            torch.testing.assert_close(
                found["state"], found["expected state"], rtol=1e-3, atol=1e-5
            )


def test_a_step_reads_nothing_on_the_host(looked: list[dict[str, Any]]) -> None:
    assert [found["reads"] for found in looked] == [0, 0]


def test_a_rank_holds_its_part_of_weights_moments_and_averages(
    looked: list[dict[str, Any]],
) -> None:
    for found in looked:
        # Halves, and the whole of what has one row (the mask token) on the first.
        assert found["held"] == pytest.approx([found["all"] / 2] * 3, rel=0.01)


def test_one_ranks_bad_loss_or_gradient_changes_no_part(looked: list[dict[str, Any]]) -> None:
    assert [found["skipped"] for found in looked] == [[True, True]] * 2


def test_whole_tensors_come_back_from_parts_and_part_again(looked: list[dict[str, Any]]) -> None:
    assert all(found["loaded"] and found["blank"] for found in looked)


def test_a_checkpoint_takes_the_room_of_a_whole_one(looked: list[dict[str, Any]]) -> None:
    assert all(len(set(found["checkpoint"])) == 1 for found in looked)


def test_only_who_asks_keeps_whole_tensors(looked: list[dict[str, Any]]) -> None:
    assert looked[0]["gathered"] > 30 and looked[1]["gathered"] == 0


def test_evaluations_have_the_average_and_the_model_the_weights(
    looked: list[dict[str, Any]],
) -> None:
    assert all(found["evaluated"] and found["left"] for found in looked)


def test_a_spoilt_part_stops_all_ranks(looked: list[dict[str, Any]]) -> None:
    assert all("not finite after step 7" in found["spoilt"] for found in looked)


@pytest.mark.campaign  # the compiler takes its time
def test_sharded_blocks_are_compiled_each_by_itself(on_ranks: Callable[..., list[Any]]) -> None:
    for found in on_ranks(compile_quickly, world_size=1):
        torch.testing.assert_close(*found["norms"])
        assert len(found["made"]) == DEEP.depth + DECODER.depth
        assert all(options["fullgraph"] and not options["dynamic"] for options in found["made"])
