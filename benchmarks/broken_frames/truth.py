"""Which frames show damage that can be seen: content unlike any whole picture nearby.

T frames, H, W pixels.
"""

import numpy as np
from films import Film

CELL = 8  # pixels at half the size: a macroblock
REACH = 8  # pixels at half the size to either side
FAR = 18.0  # mean grey levels from the nearest match
SHARE = 0.25  # of the picture's cells
LEAST = 8  # frames
GAP = 3  # frames between two parts of a span


def half(luma: np.ndarray) -> np.ndarray:
    """Half the size, by means of four pixels: (H, W) to (H/2, W/2) float32."""
    wide = luma[: luma.shape[0] // 2 * 2, : luma.shape[1] // 2 * 2].astype(np.float32)
    return (wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]) / 4


def foreign_share(picture: np.ndarray, references: list[np.ndarray]) -> float:
    """Share of the cells that no reference holds within REACH. All (H, W), half size."""
    rows, columns = picture.shape[0] // CELL, picture.shape[1] // CELL
    picture = picture[: rows * CELL, : columns * CELL]
    best = np.full((rows, columns), np.inf)
    for reference in references:
        padded = np.pad(reference, REACH, mode="edge")
        for down in range(0, 2 * REACH + 1, 2):
            for across in range(0, 2 * REACH + 1, 2):
                moved = padded[down : down + rows * CELL, across : across + columns * CELL]
                apart = np.abs(picture - moved)
                apart = np.add.reduceat(apart, np.arange(0, rows * CELL, CELL), 0)
                apart = np.add.reduceat(apart, np.arange(0, columns * CELL, CELL), 1)
                np.minimum(best, apart, out=best)
    return float((best / CELL**2 >= FAR).mean())


def visible_span(damaged: Film, clean: Film, first: int, heal: int) -> tuple[int, int] | None:
    """First and last frame of visible damage between two frames; None: it is none, or short.

    A frame counts when SHARE of its cells lie FAR from every place within REACH of the same clean
    frame, of those 4 and 8 frames before, and of the last and the next undamaged one.
    """
    heal = min(heal, len(damaged))
    step = 2
    seen = []
    near = [half(clean.luma[number]) for number in {max(first - 1, 0), min(heal, len(clean) - 1)}]
    # A look at two frames first: most damage cannot be seen, and this takes a while.
    looks = {(first + heal) // 2, heal - 2}
    if not any(foreign_share(half(damaged.luma[n]), [half(clean.luma[n])]) >= SHARE for n in looks):
        return None
    for number in range(first, heal, step):
        references = [half(clean.luma[max(number - back, 0)]) for back in (0, 4, 8)]
        seen.append(foreign_share(half(damaged.luma[number]), references + near) >= SHARE)
    spans: list[tuple[int, int]] = []
    for at in np.flatnonzero(seen) * step + first:
        if spans and at - spans[-1][1] <= GAP + step:
            spans[-1] = (spans[-1][0], at + step - 1)
        else:
            spans.append((at, at + step - 1))
    if not spans:
        return None
    start, end = max(spans, key=lambda span: span[1] - span[0])
    return (int(start), int(min(end, heal - 1))) if end - start + 1 >= LEAST else None
