"""Randomness as a pure function of keys: (seed, epoch, slot, repeat) to random numbers.

Nothing here has state. A key is a 64-bit integer that names a sample; `bits(key, stream)` are its
random numbers for one purpose (`stream`: "clip", "crop", "mask" ...). The same numbers come out in
any worker, on any device, in any order, so resuming is skipping to a slot.

The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable
Pseudorandom Number Generators, OOPSLA 2014), here on torch's int64 with wrap-around arithmetic. For
a single key there is the same on Python's integers: a dozen tensor operations on one number cost as
much as decoding a frame.
"""

import zlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that torch holds."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shifted(x: Tensor, count: int) -> Tensor:
    """Logical shift to the right (torch's on int64 is arithmetic); new memory."""
    return (x >> count).bitwise_and_((1 << (64 - count)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = _shifted(x, 30).bitwise_xor_(x).mul_(_signed(_MULTIPLIER_1))
    x = _shifted(x, 27).bitwise_xor_(x).mul_(_signed(_MULTIPLIER_2))
    return _shifted(x, 31).bitwise_xor_(x)


def combine(*parts: int | Tensor) -> Tensor:
    """Fold integers (or int64 tensors that broadcast) into one key."""
    key = torch.zeros((), dtype=torch.int64)
    for part in parts:
        # A single number of the host's and a tensor of a device's meet there without a copy.
        key = key ^ (part if isinstance(part, Tensor) else _signed(part))
        key = _mix(key + _signed(_GOLDEN))
    return key


def _mix_one(x: int) -> int:
    """`_mix` of one unsigned 64-bit integer."""
    x = ((x ^ (x >> 30)) * _MULTIPLIER_1) & _MASK
    x = ((x ^ (x >> 27)) * _MULTIPLIER_2) & _MASK
    return x ^ (x >> 31)


def _combine_one(*parts: int) -> int:
    key = 0
    for part in parts:
        key = _mix_one(((key ^ (part & _MASK)) + _GOLDEN) & _MASK)
    return key


def sample_key(seed: int, epoch: int, slot: int, repeat: int = 0) -> Tensor:
    """The key of one sample: a scalar int64 tensor."""
    return torch.tensor(_signed(_combine_one(seed, epoch, slot, repeat)))


def bits(keys: Tensor, stream: str, n: int, *, skip: int = 0) -> Tensor:
    """`n` random 64-bit integers per key.

    Args:
        keys: int64 of any shape.
        stream: what the numbers are for; different streams are independent.
        n: how many per key.
        skip: how many to leave out before them.

    Returns:
        int64 of shape (*keys.shape, n), on the keys' device.
    """
    start = combine(keys, zlib.crc32(stream.encode()))
    counter = torch.arange(skip + 1, skip + n + 1, device=keys.device) * _signed(_GOLDEN)
    return _mix(start.unsqueeze(-1) + counter)


def uniform(keys: Tensor, stream: str, n: int) -> Tensor:
    """`n` numbers per key, uniform in [0, 1), float64 of shape (*keys.shape, n)."""
    return _shifted(bits(keys, stream, n), 11).double() * 2.0**-53


def draws(key: Tensor, stream: str, n: int) -> list[float]:
    """`uniform` of one key, as Python floats."""
    start = _combine_one(int(key), zlib.crc32(stream.encode()))
    mixed = (_mix_one((start + i * _GOLDEN) & _MASK) for i in range(1, n + 1))
    return [(bits >> 11) * 2.0**-53 for bits in mixed]


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """The order of an epoch: a permutation of range(n), int64."""
    return bits(combine(seed, epoch), "permutation", n).argsort(stable=True)
