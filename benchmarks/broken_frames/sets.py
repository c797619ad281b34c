"""Sets of whole and of damaged videos, from seeds. No torch."""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from damage import BLOCK, IN_PACKETS, PAINT, damage_packets, paint
from edits import EDITS
from films import Film, draw_film, encode, read, scaled
from truth import visible_span

N_FRAMES, N_OTHER = 110, 70
TRIES = 5  # of damaging the bitstream so that it can be seen


@dataclass(frozen=True)
class Case:
    """One video file."""

    name: str
    kind: str
    source: str
    video: bytes
    span: tuple[int, int] | None
    """First and last frame of visible damage; None in a whole video."""


def finish(rng: np.random.Generator, film: Film, *, coarse: bool = False) -> bytes:
    """Encode as a dataset's videos are."""
    crf = rng.integers(32, 40) if coarse else rng.integers(18, 29)
    options = {"crf": str(crf), "preset": "veryfast", "g": "250"}
    buffer = io.BytesIO()
    encode(film, buffer, options)
    return buffer.getvalue()


def whole_cases(source: str, film: Film, other: Film, kinds: list[str]) -> Iterator[Case]:
    """Whole videos, edited as `kinds` say."""
    for kind in kinds:
        rng = np.random.default_rng(zlib.crc32(f"{source} {kind}".encode()))
        coarse = bool(rng.random() < 0.1)
        video = finish(rng, EDITS[kind](rng, film, other), coarse=coarse)
        yield Case(f"{source} {kind}", kind, source, video, None)


def damaged_cases(source: str, film: Film, kinds: list[str]) -> Iterator[Case]:
    """Damaged videos in which the damage can be seen."""
    for kind in kinds:
        rng = np.random.default_rng(zlib.crc32(f"{source} {kind}".encode()))
        in_packets = kind in IN_PACKETS
        for _ in range(TRIES if in_packets else 1):
            if in_packets:
                height = film.luma.shape[1]
                big = bool(rng.random() < 0.3)
                broken, first, heal = damage_packets(
                    rng, scaled(film, height * 3 // 2 // 4 * 4) if big else film, kind
                )
                if big:
                    broken = fit(scaled(broken, height), film.luma.shape[2])
            else:
                broken, first, heal = paint(rng, film, kind)
            span = visible_span(broken, film, first, heal)
            if span is not None:
                yield Case(f"{source} {kind}", kind, source, finish(rng, broken), span)
                break


def fit(film: Film, width: int) -> Film:
    """Cut or repeat columns up to a width."""
    columns = np.minimum(np.arange(width), film.luma.shape[2] - 1)
    halves = np.minimum(np.arange(width // 2), film.chroma.shape[3] - 1)
    return Film(film.luma[:, :, columns], film.chroma[..., halves])


def generated(seed: int, number: int) -> Iterator[Case]:
    """All cases of one drawn source."""
    rng = np.random.default_rng((seed, number))
    film, other = draw_film(rng, N_FRAMES), draw_film(rng, N_OTHER)
    yield from cases_of(f"made {seed}-{number}", film, other)


def filmed(path: str, other_path: str) -> Iterator[Case]:
    """All cases of the first frames of a video file; none where it is too short or too small."""
    film = read(path, most=N_FRAMES)
    other = read(other_path, most=N_OTHER, size=film.luma.shape[1:])
    if len(film) == N_FRAMES and len(other) == N_OTHER and film.luma.shape[1] >= BLOCK * 8:
        yield from cases_of(path, film, other)


def cases_of(source: str, film: Film, other: Film) -> Iterator[Case]:
    """A whole video for each edit, and a damaged one for each kind of damage that can be seen."""
    yield from whole_cases(source, film, other, list(EDITS))
    yield from damaged_cases(source, film, [*PAINT, *IN_PACKETS])
