"""Edits that whole videos have: cuts, inserts, titles, fades, flashes. None of them is damage."""

from collections.abc import Callable

import numpy as np
from films import Film, joined, lettering, scaled


def _span(rng: np.random.Generator, film: Film, least: int = 8, most: int = 60) -> tuple[int, int]:
    n_frames = min(int(rng.integers(least, most + 1)), len(film) - 45)
    first = int(rng.integers(20, len(film) - n_frames - 18))
    return first, first + n_frames


def plain(rng: np.random.Generator, film: Film, other: Film) -> Film:
    """Nothing is done."""
    return film


def hard_cut(rng: np.random.Generator, film: Film, other: Film) -> Film:
    """One take, then another."""
    first, last = _span(rng, film)
    return joined(film[:first], other[: len(film) - last])


def there_and_back(rng: np.random.Generator, film: Film, other: Film) -> Film:
    """A→B→A, the first take going on meanwhile or not."""
    first, last = _span(rng, film)
    back = last if rng.random() < 0.5 else first
    return joined(film[:first], other[: last - first], film[back:])


def photograph(rng: np.random.Generator, film: Film, other: Film) -> Film:
    """A still picture between two parts."""
    first, last = _span(rng, film, 12)
    return joined(film[:first], other[[0] * (last - first)], film[last:])


def title(rng: np.random.Generator, film: Film, other: Film) -> Film:
    """A card with lettering between two parts."""
    first, last = _span(rng, film, 12)
    card = np.full((*film.luma.shape[1:], 3), rng.integers(0, 256), np.uint8)
    lettering(rng, card[40:-40, 30:-30], np.array([rng.integers(0, 256)] * 3))
    out = film.copy()
    out.luma[first:last] = card[..., 0]
    out.chroma[first:last] = rng.integers(90, 160, (2, 1, 1))
    return out


def banner(rng: np.random.Generator, film: Film, other: Film) -> Film:
    """A board with lettering over a part of the picture, for a while."""
    first, last = _span(rng, film, 12)
    height, width = film.luma.shape[1:]
    board = np.full((height, width, 3), rng.integers(0, 256), np.uint8)
    lettering(rng, board, np.array([rng.integers(0, 256)] * 3))
    top = int(rng.integers(height // 2, height * 4 // 5)) // 2 * 2
    out = film.copy()
    out.luma[first:last, top:] = board[top:, :, 0]
    out.chroma[first:last, :, top // 2 :] = rng.integers(90, 160, (2, 1, 1))
    return out


def flash(rng: np.random.Generator, film: Film, other: Film) -> Film:
    """A few frames are much brighter."""
    out = film.copy()
    for first in rng.integers(10, len(film) - 10, int(rng.integers(1, 5))):
        span = slice(first, first + int(rng.integers(1, 5)))
        gain = rng.uniform(1.5, 3)
        out.luma[span] = (film.luma[span] * gain + 20).clip(0, 255)
    return out


def fade(rng: np.random.Generator, film: Film, other: Film) -> Film:
    """Through black into another take and back, or dissolved."""
    first, last = _span(rng, film, 30)
    n_frames = last - first
    out = film.copy()
    weight = (np.minimum(np.arange(n_frames), np.arange(n_frames)[::-1]) / 10).clip(0, 1)
    black = rng.random() < 0.5
    for plane, own, foreign in (
        (out.luma, film.luma, other.luma),
        (out.chroma, film.chroma, other.chroma),
    ):
        target = (16 if plane is out.luma else 128) if black else foreign[:n_frames].astype(float)
        w = weight.reshape(-1, *[1] * (plane.ndim - 1))
        plane[first:last] = (own[first:last] * (1 - w) + target * w).clip(0, 255)
    return out


def freeze(rng: np.random.Generator, film: Film, other: Film) -> Film:
    """It stands still and jumps on, as a stream that was paused."""
    first, last = _span(rng, film)
    return joined(film[:first], film[[first] * (last - first)], film[last:])


def jump_cuts(rng: np.random.Generator, film: Film, other: Film) -> Film:
    """Parts are left out."""
    numbers = np.arange(len(film))
    for _ in range(3):
        at = int(rng.integers(5, len(numbers) - 30))
        numbers = np.delete(numbers, slice(at, at + int(rng.integers(5, 25))))
    return film[numbers.tolist()]


def closer(rng: np.random.Generator, film: Film, other: Film) -> Film:
    """The same take from nearer for a while: cut in, cut back."""
    first, last = _span(rng, film)
    height, width = film.luma.shape[1:]
    part = film[first:last]
    factor = rng.uniform(1.25, 2)
    near = scaled(part, round(height * factor / 4) * 4)
    top = (near.luma.shape[1] - height) // 4 * 2
    left = (near.luma.shape[2] - width) // 4 * 2
    near = Film(
        near.luma[:, top : top + height, left : left + width],
        near.chroma[:, :, top // 2 : (top + height) // 2, left // 2 : (left + width) // 2],
    )
    return joined(film[:first], near, film[last:])


def whip(rng: np.random.Generator, film: Film, other: Film) -> Film:
    """The camera swings away and back within a second, blurring what it passes."""
    first, last = _span(rng, film, 16, 40)
    out = film.copy()
    n_frames = last - first
    far = rng.uniform(0.25, 0.95) * film.luma.shape[2]
    shift = (np.sin(np.linspace(0, np.pi, n_frames)) * far).astype(int)
    for number, across in enumerate(shift):
        step = abs(int(across - shift[max(number - 1, 0)])) + 1
        wide = np.concatenate([film.luma[first + number], other.luma[number]], 1).astype(float)
        wide = sum(np.roll(wide, -offset, 1) for offset in range(0, step, 2)) / len(
            range(0, step, 2)
        )
        out.luma[first + number] = wide[:, across : across + film.luma.shape[2]]
        colours = np.concatenate([film.chroma[first + number], other.chroma[number]], 2)
        half = int(across) // 2
        out.chroma[first + number] = colours[..., half : half + film.chroma.shape[3]]
    return out


def passing(rng: np.random.Generator, film: Film, other: Film) -> Film:
    """Somebody walks through the picture, close to the camera."""
    first, last = _span(rng, film, 12, 40)
    out = film.copy()
    height, width = film.luma.shape[1:]
    rows = np.arange(height)[:, None]
    bend = 25 * np.sin(rows / rng.uniform(20, 60))
    breadth = rng.uniform(0.4, 1.2) * width
    for number in range(first, last):
        left = -breadth + (width + breadth) * (number - first) / (last - first)
        columns = np.arange(width)[None] + bend
        inside = (columns > left) & (columns < left + breadth)
        out.luma[number] = np.where(inside, other.luma[number - first], film.luma[number])
        small = inside[::2, ::2]
        out.chroma[number] = np.where(small, other.chroma[number - first], film.chroma[number])
    return out


def split_screen(rng: np.random.Generator, film: Film, other: Film) -> Film:
    """Another take in a half or a corner of the picture, for a while."""
    first, last = _span(rng, film, 15)
    height, width = film.luma.shape[1:]
    out = film.copy()
    left = width // 4 * 2
    top = int(rng.choice([0, height // 4 * 2]))
    out.luma[first:last, top:, left:] = other.luma[: last - first, top:, left:]
    out.chroma[first:last, :, top // 2 :, left // 2 :] = other.chroma[
        : last - first, :, top // 2 :, left // 2 :
    ]
    return out


EDITS: dict[str, Callable[[np.random.Generator, Film, Film], Film]] = {
    "none": plain,
    "cut": hard_cut,
    "cut there and back": there_and_back,
    "photograph": photograph,
    "title card": title,
    "banner": banner,
    "flashes": flash,
    "fade or dissolve": fade,
    "freeze": freeze,
    "jump cuts": jump_cuts,
    "closer and back": closer,
    "whip pan": whip,
    "somebody passes": passing,
    "split screen": split_screen,
}
