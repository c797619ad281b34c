"""Random numbers from keys: the published generator, independence, uniformity, permutations."""

import itertools
import math
import zlib

import pytest
import torch
from torch import Tensor

from kinetics400.data import keys

WORD = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15
# First outputs of SplitMix64 for two seeds, as printed by the authors' C program.
PUBLISHED = {
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F],
    1234567: [6457827717110365317, 3203168211198807973, 9817491932198370423],
}


def unsigned(values: Tensor) -> list[int]:
    return [value % WORD for value in values.flatten().tolist()]


def splitmix(state: int) -> int:
    """One step of SplitMix64 in Python's unbounded integers."""
    z = (state + GOLDEN) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def slow_key(*parts: int) -> int:
    key = 0
    for part in parts:
        key = splitmix(key ^ (part % WORD))
    return key


def slow_bits(key: int, stream: str, n: int) -> list[int]:
    start = slow_key(key, zlib.crc32(stream.encode()))
    return [splitmix((start + i * GOLDEN) % WORD) for i in range(n)]


# --- the generator --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", PUBLISHED)
def test_mixing_is_splitmix64(seed: int) -> None:
    states = [(seed + i * GOLDEN) % WORD for i in range(3)]
    assert [splitmix(state) for state in states] == PUBLISHED[seed]
    assert [unsigned(keys.combine(state))[0] for state in states] == PUBLISHED[seed]


@pytest.mark.parametrize("parts", [(0,), (1, 2), (-1, 5), (2**63, 2**64 - 1, 7), (2**40, 0, 0, 3)])
def test_combine_equals_python_integers(parts: tuple[int, ...]) -> None:
    assert unsigned(keys.combine(*parts)) == [slow_key(*parts)]


def test_bits_equal_python_integers() -> None:
    samples = keys.combine(7, torch.arange(5))
    drawn = keys.bits(samples, "crop", 9)
    assert drawn.shape == (5, 9) and drawn.dtype == torch.int64
    expected = [slow_bits(slow_key(7, i), "crop", 9) for i in range(5)]
    assert [unsigned(row) for row in drawn] == expected


def test_uniform_is_the_upper_53_bits() -> None:
    sample = keys.sample_key(1, 2, 3)
    drawn = keys.uniform(sample, "clip", 50)
    assert drawn.dtype == torch.float64 and drawn.shape == (50,)
    expected = [(value >> 11) / 2**53 for value in slow_bits(slow_key(1, 2, 3, 0), "clip", 50)]
    assert drawn.tolist() == expected


def test_keys_of_a_tensor_are_the_keys_of_its_elements() -> None:
    slots = torch.arange(12).reshape(3, 4)
    together = keys.combine(5, 1, slots, 0)
    assert together.shape == (3, 4)
    for i, j in itertools.product(range(3), range(4)):
        assert together[i, j] == keys.sample_key(5, 1, int(slots[i, j]))
    assert torch.equal(keys.bits(together, "mask", 6)[2, 1], keys.bits(together[2, 1], "mask", 6))


def test_more_numbers_continue_fewer() -> None:
    sample = keys.sample_key(0, 0, 0)
    assert torch.equal(keys.bits(sample, "x", 20)[:7], keys.bits(sample, "x", 7))


def test_numbers_left_out_are_the_first() -> None:
    some = torch.tensor([3, -8])
    assert torch.equal(keys.bits(some, "clip", 5, skip=3), keys.bits(some, "clip", 8)[:, 3:])


def test_nothing_has_state() -> None:
    sample = keys.sample_key(1, 1, 1)
    first = keys.uniform(sample, "clip", 3)
    before = torch.get_rng_state()
    torch.manual_seed(5)
    keys.permutation(0, 0, 10)
    torch.set_rng_state(before)
    assert torch.equal(keys.uniform(sample, "clip", 3), first)
    assert torch.equal(torch.get_rng_state(), before)


# --- independence ---------------------------------------------------------------------------------


def test_every_seed_epoch_slot_and_repeat_has_its_own_key() -> None:
    found = {
        keys.sample_key(*parts).item()
        for parts in itertools.product(range(5), range(5), range(40), range(3))
    }
    assert len(found) == 5 * 5 * 40 * 3
    many = keys.combine(0, 0, torch.arange(300_000), 0)
    assert len(many.unique()) == 300_000


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack((a, b)))[0, 1].item()


def test_streams_epochs_seeds_slots_and_positions_are_uncorrelated() -> None:
    n = 40_000
    slots = torch.arange(n)

    def drawn(seed: int = 0, epoch: int = 0, stream: str = "clip") -> Tensor:
        return keys.uniform(keys.combine(seed, epoch, slots, 0), stream, 2)

    first = drawn()[:, 0]
    others = {
        "stream": drawn(stream="crop")[:, 0],
        "epoch": drawn(epoch=1)[:, 0],
        "seed": drawn(seed=1)[:, 0],
        "slot": first.roll(1),
        "position": drawn()[:, 1],
    }
    for name, other in others.items():
        assert abs(correlation(first, other)) < 5 / math.sqrt(n), name
        assert not torch.equal(first, other), name


def test_uniform_is_uniform() -> None:
    n = 100_000
    samples = keys.combine(3, 1, torch.arange(n), 0)
    drawn = keys.uniform(samples, "clip", 1)[:, 0].sort().values
    assert drawn[0] >= 0 and drawn[-1] < 1
    steps = torch.arange(n, dtype=torch.float64) / n
    distance = max((drawn - steps).max().item(), (steps + 1 / n - drawn).max().item())
    assert distance < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, 0.1 %


def test_every_bit_is_set_half_of_the_time() -> None:
    n = 40_000
    drawn = keys.bits(keys.combine(0, torch.arange(n)), "mask", 1)
    for bit in range(64):
        share = ((drawn >> bit) & 1).double().mean().item()
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(n), bit


# --- permutations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation_holds_every_index_once(n: int) -> None:
    order = keys.permutation(0, 3, n)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(n))


def test_permutation_is_that_of_its_seed_and_epoch() -> None:
    order = keys.permutation(1, 2, 100)
    assert torch.equal(keys.permutation(1, 2, 100), order)
    for other in ((1, 3), (2, 2), (2, 1)):
        assert not torch.equal(keys.permutation(*other, 100), order)


def test_every_permutation_is_equally_likely() -> None:
    draws = 12_000
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(draws):
        order = tuple(keys.permutation(0, epoch, 4).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    expected = draws / 24
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert statistic < 23 + 5 * math.sqrt(2 * 23)  # chi-square, 23 degrees of freedom


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize(("epoch", "slot"), [(0, 0), (7, 240_435), (3, 2**40)])
def test_one_key_draws_what_the_tensors_draw(seed: int, epoch: int, slot: int) -> None:
    key = keys.sample_key(seed, epoch, slot, 2)
    assert key == keys.combine(seed, epoch, slot, 2) and key.dtype == torch.int64
    for stream, n in (("clip", 1), ("crop", 40)):
        assert keys.draws(key, stream, n) == keys.uniform(key, stream, n).tolist()


@pytest.mark.parametrize("shape", [(), (5,)])
def test_numbers_are_made_where_the_keys_are(shape: tuple[int, ...]) -> None:
    """Nothing is read back: the meta device has nothing to read."""
    on_device = torch.zeros(shape, dtype=torch.int64, device="meta")
    drawn = keys.uniform(on_device, "clip", 4)
    assert drawn.device.type == "meta" and drawn.shape == (*shape, 4)
