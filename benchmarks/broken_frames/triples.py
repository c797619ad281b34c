"""What the network learns from: a picture between two others, and which parts of it are torn.

H, W pixels; films of LENGTH frames are damaged or edited, encoded again, and cut.
"""

import io
from collections.abc import Iterator

import numpy as np
from damage import IN_PACKETS, PAINT, damage_packets, paint
from edits import EDITS
from films import Film, draw_film, encode, read, scaled
from footage import Footage
from sets import fit

from kinetics400.data.foreign import farness, halved

LENGTH, OTHER = 80, 70  # frames of a film, and of the one inserted by edits
AROUND = 10  # frames before and after damage, that are encoded with it
SIZES = ((240, 320), (256, 340), (240, 424), (256, 456), (192, 256))
CROP = (192, 256)
TORN, WHOLE = 12.0, 4.0  # grey levels from every place nearby: from here on torn; below it whole
UNKNOWN = 255
LOOKS = (0.15, 0.4, 0.65, 0.9)  # of damage

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Luma (3, H, W) before, inside and after, chroma (3, 2, H/2, W/2), labels (H/16, W/16)."""


def draw(rng: np.random.Generator, footage: Footage) -> Iterator[Triple]:
    """Triples from one film, half of them damaged; none where the damage cannot be seen."""
    size = SIZES[int(rng.integers(len(SIZES)))]
    made = rng.random() < 0.3
    film, other = (
        fit(scaled(draw_film(rng, n_frames), size[0]), size[1])
        if made
        else footage.take(rng, n_frames, size)
        for n_frames in (LENGTH, OTHER)
    )
    for recoded, numbers, labels in (
        damaged(rng, film) if rng.random() < 0.5 else edited(rng, film, other)
    ):
        top, left = (
            int(rng.integers(0, (side - part) // 16 + 1)) * 16
            for side, part in zip(recoded.luma.shape[1:], CROP, strict=True)
        )
        bottom, right = top + CROP[0], left + CROP[1]
        part = recoded[list(numbers)]
        yield (
            part.luma[:, top:bottom, left:right],
            part.chroma[:, :, top // 2 : bottom // 2, left // 2 : right // 2],
            labels[top // 16 : bottom // 16, left // 16 : right // 16],
        )


def damaged(
    rng: np.random.Generator, film: Film
) -> Iterator[tuple[Film, tuple[int, int, int], np.ndarray]]:
    """Damage between whole pictures; and pictures that are whole, or have no whole one before."""
    kinds = [*PAINT, *list(IN_PACKETS) * 3]
    kind = kinds[int(rng.integers(len(kinds)))]
    height, width = film.luma.shape[1:]
    if kind in PAINT:
        broken, first, heal = paint(rng, film, kind)
    else:
        big = scaled(film, round(height * rng.choice([0.75, 1, 1, 1, 1.25, 1.5]) / 4) * 4)
        broken, first, heal = damage_packets(rng, big, kind)
        broken = fit(scaled(broken, height), width)
    start, end = max(first - AROUND, 0), min(heal + AROUND, LENGTH)
    sides = [_half(film, max(first - 1, 0)), _half(film, min(heal, LENGTH - 1))]
    labels = {}
    for number in sorted({int(first + (heal - first) * part) for part in LOOKS}):
        near = [_half(film, max(number - back, 0)) for back in (0, 4, 8)]
        far = farness(_half(broken, number), sides + near)
        labels[number] = np.where(far >= TORN, 1, np.where(far < WHOLE, 0, UNKNOWN))
    if max((label == 1).mean() for label in labels.values()) < 0.2:
        return
    recoded = _recoded(rng, broken[start:end])
    whole = np.zeros_like(labels[min(labels)])
    for number, label in labels.items():
        before = max(first - 1 - int(rng.integers(4)), start) - start
        after = min(heal + int(rng.integers(5)), end - 1) - start
        yield recoded, (before, number - start, after), label
    yield recoded, (before, after, after), whole
    yield recoded, (min(labels) - start, after, after), whole


def edited(
    rng: np.random.Generator, film: Film, other: Film
) -> Iterator[tuple[Film, tuple[int, int, int], np.ndarray]]:
    """Pictures between large changes of an edited film: nothing is torn."""
    edits = list(EDITS.values())
    recoded = _recoded(rng, edits[int(rng.integers(len(edits)))](rng, film, other))
    small = recoded.luma[:, ::4, ::4].astype(np.int16)
    changes = np.abs(small[1:] - small[:-1]).mean((1, 2))
    ends = sorted(int(at) + 1 for at in np.argsort(-changes)[:5])
    pairs = [
        (first, heal)
        for first in ends
        for heal in ends
        if heal - first >= 6 and first >= 4 and heal <= len(recoded) - 4
    ]
    labels = np.zeros([side // 16 for side in recoded.luma.shape[1:]], int)
    for at in rng.permutation(len(pairs))[:4]:
        first, heal = pairs[at]
        inside = int(rng.integers(first + 1, heal - 1))
        yield (
            recoded,
            (first - 1 - int(rng.integers(3)), inside, heal + int(rng.integers(3))),
            labels,
        )


def _half(film: Film, number: int) -> np.ndarray:
    height, width = (side // 16 * 16 for side in film.luma.shape[1:])
    return halved(film.luma[number, :height, :width])


def _recoded(rng: np.random.Generator, film: Film) -> Film:
    crf = rng.integers(30, 40) if rng.random() < 0.15 else rng.integers(18, 29)
    buffer = io.BytesIO()
    encode(film, buffer, {"crf": str(crf), "preset": "veryfast", "g": "250"})
    buffer.seek(0)
    return read(buffer, most=len(film), size=film.luma.shape[1:])
