"""The videos of `make broken-proof`: what counts as damage that can be seen, and where it lies."""

from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def take(broken_frames: dict[str, ModuleType]) -> object:
    return broken_frames["films"].draw_film(np.random.default_rng(8), 110)


def test_late_and_shifted_pictures_are_not_visible_damage(
    broken_frames: dict[str, ModuleType], take: object
) -> None:
    film, visible_span = take, broken_frames["truth"].visible_span
    film = broken_frames["films"].Film(film.luma.copy(), film.chroma)
    squares = np.random.default_rng(0).integers(0, 2, (22, 29)) * 120 + 60
    film.luma[:] = squares.repeat(12, 0).repeat(12, 1)[:256, :340]  # of a contrast that tells
    late, foreign = film.copy(), film.copy()
    late.luma[40:70] = np.roll(film.luma[36:66], (12, -12), (1, 2))
    noise = np.random.default_rng(1).integers(0, 256, (8, 22), dtype=np.uint8)
    foreign.luma[40:70, 128:] = noise.repeat(16, 0).repeat(16, 1)[:, :340]
    assert visible_span(late, film, 40, 70) is None
    assert visible_span(foreign, film, 40, 70) == (40, 69)
    assert visible_span(foreign, film, 40, 46) is None  # six frames are too few


def test_painted_damage_ends_where_it_says(
    broken_frames: dict[str, ModuleType], take: object
) -> None:
    painted, first, heal = broken_frames["damage"].paint(
        np.random.default_rng(4), take, "wrong residuals"
    )
    differs = np.flatnonzero((painted.luma != take.luma).any((1, 2)))
    assert (differs[0], differs[-1]) == (first, heal - 1)


def test_a_damaged_bitstream_is_whole_from_the_next_key_frame_on(
    broken_frames: dict[str, ModuleType], take: object
) -> None:
    broken, first, heal = broken_frames["damage"].damage_packets(
        np.random.default_rng(2), take, "overwritten"
    )
    apart = np.abs(broken.luma.astype(int) - take.luma).mean((1, 2))
    assert len(broken) == len(take)
    assert apart[first:heal].max() > 2 * max(apart[:first].max(), apart[heal:].max())


def test_a_case_names_its_span_and_is_judged_by_overlap(
    broken_frames: dict[str, ModuleType], take: object
) -> None:
    cases = list(broken_frames["sets"].damaged_cases("a take", take, ["wrong residuals"]))
    again = list(broken_frames["sets"].damaged_cases("a take", take, ["wrong residuals"]))
    assert cases == again
    (case,) = cases
    rows = broken_frames["measure"].judge([case])
    assert [(row["kind"], row["damaged"]) for row in rows] == [(case.kind, True)]
    overlap = broken_frames["measure"].overlap
    assert overlap((10, 19), (15, 24)) == pytest.approx(1 / 3)
    assert overlap((10, 19), (20, 24)) == 0
