"""What ranks tell each other."""

from collections.abc import Callable
from typing import Any

from lightning.fabric import Fabric

from kinetics400.engine.agreement import Agreement


def talk(fabric: Fabric) -> tuple[Any, ...]:
    agreement = Agreement(fabric)
    rank = fabric.global_rank
    facts = {"lr": 0.1, "seed": 3 if rank == 1 else 0, "videos": f"digest {rank == 2}"}
    more = {"extra": 1} if rank == 2 else {}
    return (
        agreement.largest([rank, -rank]),
        agreement.any(rank == 2),
        agreement.any(False),
        agreement.gather([rank, 2**62 + rank]),
        agreement.disagreements(facts),
        agreement.disagreements({"lr": 0.1, "nan": float("nan")}),
        agreement.disagreements({"lr": 0.1} | more),
    )


def test_three_ranks_agree(on_ranks: Callable[..., list[Any]]) -> None:
    for largest, some, none, gathered, unlike, alike, other_names in on_ranks(talk, 3):
        assert largest == [2, 0] and some and not none
        assert gathered == [[0, 2**62], [1, 2**62 + 1], [2, 2**62 + 2]]
        assert unlike == ["seed (rank 1)", "videos (rank 2)"]
        assert alike == []
        assert len(other_names) == 1 and "same version" in other_names[0]


def test_one_process_agrees_with_itself() -> None:
    agreement = Agreement(Fabric(accelerator="cpu", devices=1))
    assert agreement.gather([5, 6]) == [[5, 6]] and agreement.disagreements({"a": 1}) == []
