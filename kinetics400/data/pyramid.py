"""The temporal pyramid: an H.264 MP4 from which a frame rate's half or quarter is read by itself.

A group of `keyframe_interval` frames is coded as

    I0  b1 B2 b3  P4  b5 B6 b7  P8  …  P28  B29 b30 P31

P frames refer to the P or I frame four before, B to its two neighbours in P, b to its neighbours in
P and B; nothing else. So every fourth frame needs only I and P (layer 4), every second one I, P and
B (layer 2). The last frame of a closed group is always P, which leaves an irregular tail. Packets
stand in decoding order: I0 P4 B2 b1 b3 P8 B6 b5 b7 …; frames are numbered as they are shown.
"""

import math
import re
from collections.abc import Iterable
from functools import cache

# Frames between two P frames; also the widest grid.
P_INTERVAL = 4
LAYERS = (4, 2, 1)

_MARK_START = "kinetics400 temporal pyramid, keyframe interval "
_MARK = re.compile(_MARK_START + r"(\d+)")
HEAD_BYTES = 1 << 20  # a pyramid's header comes first and is far shorter


def mark(keyframe_interval: int) -> str:
    """The comment in a file's metadata that says what it is."""
    return f"{_MARK_START}{keyframe_interval}"


def marked_interval(comment: str) -> int | None:
    """The keyframe interval in a file's comment; None if it is no pyramid's.

    >>> marked_interval(mark(32))
    32
    """
    match = _MARK.fullmatch(comment)
    interval = int(match[1]) if match else 0
    return interval if interval and interval % P_INTERVAL == 0 else None


def is_marked(path: str) -> bool:
    """Whether a file's first bytes hold the mark; safe on files that nobody has verified."""
    try:
        with open(path, "rb") as file:
            return _MARK_START.encode() in file.read(HEAD_BYTES)
    except OSError:
        return False


def encoder_options(crf: int, preset: str, keyframe_interval: int) -> dict[str, str]:
    """Options of libx264 (FFmpeg's names) that write the pyramid, the same bytes every time.

    `strict` keeps P frames from referring to B. Decoding is made cheap: no deblocking, no CABAC, no
    weighted prediction (`fastdecode`). One thread, and no code that differs between CPUs: with
    AVX-512 the macroblock tree gave another file at almost every call (measured).
    """
    return {
        "preset": preset,
        "crf": str(crf),
        "tune": "fastdecode",
        "threads": "1",
        "flags": "+bitexact+cgop",
        "x264-params": (
            f"keyint={keyframe_interval}:min-keyint={keyframe_interval}:scenecut=0:"
            "bframes=3:b-adapt=0:b-pyramid=strict:cpu-independent=1"
        ),
    }


@cache
def decoding_order(group_length: int) -> tuple[int, ...]:
    """Numbers of a group's frames in the order of their packets.

    >>> decoding_order(8)
    (0, 4, 2, 1, 3, 7, 5, 6)
    """
    order = [0]
    for before in range(0, group_length - 1, P_INTERVAL):
        p = min(before + P_INTERVAL, group_length - 1)
        between = list(range(before + 1, p))
        order.append(p)
        if len(between) > 1:  # the B in the middle comes first: (2 of 1 2 3), (1 of 1 2)
            order.append(between.pop((len(between) - 1) // 2))
        order += between
    return tuple(order)


def common_grid(stride: int) -> int:
    """The widest grid that a clip with this stride keeps to from a start on it.

    >>> [common_grid(stride) for stride in (1, 2, 3, 4, 6, 8)]
    [1, 2, 1, 4, 2, 4]
    """
    return next(layer for layer in LAYERS if stride % layer == 0)


def near_grid(spacing: float) -> int:
    """The widest grid no coarser than the frames of a clip are apart.

    >>> [near_grid(spacing) for spacing in (1, 2, 3, 64 / 15, 8)]
    [1, 2, 2, 4, 4]
    """
    return next((layer for layer in LAYERS if layer <= spacing), 1)


def layer_of(frames: Iterable[int]) -> int:
    """The widest layer that holds all these frames."""
    return common_grid(math.gcd(*frames))


@cache
def is_needed(frame: int, group_length: int, layer: int) -> bool:
    """Whether a layer's decoder must see the packet of a group's frame.

    At layer 4 it must see the header of B as well, although it does not decode it: B counts in
    the numbering of reference frames.

    >>> [frame for frame in range(8) if is_needed(frame, 8, 4)]
    [0, 2, 4]
    >>> [frame for frame in range(8) if is_needed(frame, 8, 2)]
    [0, 2, 4, 5, 6, 7]
    """
    tail_start = (group_length - 1) // P_INTERVAL * P_INTERVAL
    if layer == 1 or frame <= tail_start:
        return frame % min(layer, 2) == 0
    # In a tail of three, b6 lies between B5 and P7; in one of two, P6 stands alone.
    tail = group_length - 1 - tail_start
    return layer == 2 and (tail == 3 or frame % 2 == 0)
