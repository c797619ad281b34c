import hashlib

import pytest

from kinetics400.data.shards import NotOurs, Shard, parse_shard, slurm_shard
from kinetics400.errors import InputError


def slurm(number: int, least: int, most: int, count: int, step: int | None = 1) -> dict[str, str]:
    values = {"ID": number, "MIN": least, "MAX": most, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{k}": str(v) for k, v in values.items() if v is not None}


def test_every_video_belongs_to_exactly_one_share_of_about_equal_size() -> None:
    names = [f"-{i:05x}_é {i}.mp4" for i in range(4000)]
    for count in (1, 3, 64):
        shards = [Shard(i, count) for i in range(1, count + 1)]
        held = [sum(shard.holds("train", name) for name in names) for shard in shards]
        assert all(sum(s.holds("train", name) for s in shards) == 1 for name in names[:200])
        assert sum(held) == 4000
        mean = 4000 / count
        assert max(abs(n - mean) for n in held) < 5 * mean**0.5  # five standard deviations


def test_a_share_never_changes() -> None:
    """Shards of different releases and machines must agree."""
    remainder = int(hashlib.sha256(b"val/v.mp4").hexdigest()[:16], 16) % 7
    assert [i for i in range(1, 8) if Shard(i, 7).holds("val", "v.mp4")] == [remainder + 1]
    splits = [[Shard(1, 2).holds(s, f"{i}.mp4") for i in range(20)] for s in ("train", "val")]
    assert splits[0] != splits[1]


def test_names_that_are_no_text_have_a_share() -> None:
    name = b"\xff.mp4".decode("utf-8", "surrogateescape")
    assert sum(Shard(i, 3).holds("train", name) for i in (1, 2, 3)) == 1


def test_what_to_leave_out() -> None:
    names = [("train", f"{i}.mp4") for i in range(40)]
    shard = Shard(2, 2)
    left_out = {video for video in names if video in NotOurs({names[0], names[1]}, shard)}
    assert left_out == {names[0], names[1], *(v for v in names if Shard(1, 2).holds(*v))}
    assert 2 < len(left_out) < 40


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "4", "a/b", "-1/4", "1/4 ", "1/4/2", ""])
def test_wrong_shards_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="--shard 3/8"):
        parse_shard(text)


def test_shards_are_read() -> None:
    assert parse_shard("3/8") == Shard(3, 8) and str(Shard(3, 8)) == "3/8"
    assert (parse_shard("1/1"), parse_shard("8/8")) == (Shard(1, 1), Shard(8, 8))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (slurm(1, 1, 8, 8), Shard(1, 8)),
        (slurm(7, 0, 7, 8), Shard(8, 8)),
        (slurm(13, 10, 16, 3, step=3), Shard(2, 3)),
        (slurm(5, 5, 8, 4, step=None), Shard(1, 4)),  # older versions do not say the step
        (slurm(3, 3, 3, 1), None),  # one task repeated alone finishes what is left
    ],
)
def test_share_of_a_slurm_task(environment: dict[str, str], expected: Shard | None) -> None:
    assert slurm_shard(environment) == expected


@pytest.mark.parametrize(
    "environment", [slurm(5, 1, 9, 4), slurm(2, 1, 7, 4, step=2), slurm(3, 3, 9, 2)]
)
def test_uneven_slurm_arrays_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(InputError, match="--shard i/n"):
        slurm_shard(environment)
