"""Find still pictures between two jumps, which is how frames look that were lost. No torch.

Where data is missing, a lenient decoder shows a frozen, torn picture until the next key frame; a
video that was encoded again after that has no fault but its pictures. An inserted title or
photograph looks the same to this measure, so what it finds is to be looked at.
"""

from collections.abc import Sequence
from statistics import median

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

SIDE = 64  # pixels, of the small grey pictures that are compared
STILL = 1.0  # mean change in grey levels from frame to frame; below, nothing moves
JUMP = 12.0  # likewise; from here on another picture
LEAST = 12  # frames
AROUND = 12  # frames on either side, in which something has to move


class ChangeMeter:
    """Measures how much each frame changes from the one before."""

    def __init__(self) -> None:
        self.changes: list[float] = []
        self._reformatter = VideoReformatter()  # one for all frames, one thread: half the time
        self._before: np.ndarray | None = None

    def add(self, frame: av.VideoFrame) -> None:
        small = self._reformatter.reformat(
            frame, SIDE, SIDE, "gray", interpolation=Interpolation.AREA, threads=1
        )
        picture = small.to_ndarray().astype(np.int16)
        before = picture if self._before is None else self._before
        self.changes.append(float(np.abs(picture - before).mean()))
        self._before = picture


def still_spans(changes: Sequence[float]) -> list[tuple[int, int]]:
    """First and last frames of still pictures between two jumps in a video that moves.

    Args:
        changes: mean change in grey levels of each frame from the one before, 0 for the first.

    >>> still_spans([0.0, *[5.0] * 20, 30.0, *[0.1] * 15, 40.0, *[5.0] * 20])
    [(21, 36)]
    """
    spans = []
    start = 0
    for number, change in enumerate([*changes[1:], np.inf], 1):
        if change < STILL:
            continue
        last = number - 1
        before, after = changes[max(start - AROUND, 1) : start], changes[number + 1 :][:AROUND]
        if (
            last - start + 1 >= LEAST
            and number < len(changes)
            and min(changes[start], change) >= JUMP
            and all(part and median(part) >= STILL for part in (before, after))
        ):
            spans.append((start, last))
        start = number
    return spans
