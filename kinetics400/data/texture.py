"""Find where the pictures of a video change suddenly: in texture, as torn blocks do. No torch.

Lines are taken in pairs two pixels apart, along rows and along columns: a step that is at the same
place in both is an edge along an axis, sharp as only a block's border is; and two lines that are
equal, while each varies, are a picture copied downwards or across.

S sampled pictures, C channels, H, W pixels; regions are ROWS × COLUMNS parts of the picture.
"""

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

SIDE = 256  # pixels: a larger short side is scaled down to it
LARGEST, LEAST = 320, 128  # pixels of short side: not yet scaled down; still looked at
SPACING = 8  # pixels between pairs of lines
ROWS, COLUMNS = 8, 10
THIN = 4  # pixels to one of a thumbnail
EDGE, CHROMA_EDGE = 10, 4  # grey levels
CHANNELS = ("activity", "direction", "steps", "edges", "copied down", "copied across", "chroma")
PLANAR = ("yuv420p", "yuvj420p")


class Scaler:
    """Brings frames to 4:2:0 and, where they are larger than LARGEST, to SIDE."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None  # width, height; of the first frame, scaled

    def planes(self, frame: av.VideoFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Luma and two of chroma, their sides multiples of 16 and of 8; None: too small."""
        if self._size is None:
            self._size = frame.width, frame.height
            if min(self._size) > LARGEST:
                scale = SIDE / min(self._size)
                width, height = (round(side * scale / 4) * 4 for side in self._size)
                self._size = width, height
        if min(self._size) < LEAST:
            return None
        if frame.format.name not in PLANAR or (frame.width, frame.height) != self._size:
            frame = self._reformatter.reformat(
                frame, *self._size, "yuv420p", interpolation=Interpolation.AREA, threads=1
            )
        return _plane(frame, 0), _plane(frame, 1), _plane(frame, 2)


def _plane(frame: av.VideoFrame, number: int) -> np.ndarray:
    """A plane (H, W), cut to whole macroblocks."""
    plane = frame.planes[number]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    multiple = 16 if number == 0 else 8
    height, width = (side // multiple * multiple for side in (plane.height, plane.width))
    return rows[:height, :width]


def thumbnail(luma: np.ndarray) -> np.ndarray:
    """A quarter of the size (H, W), by two pixels of what is there for each."""
    one = luma[::THIN, ::THIN].astype(np.uint16)
    two = luma[THIN // 2 :: THIN, THIN // 2 :: THIN]
    return ((one + two) >> 1).astype(np.uint8)


def _apart(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return np.maximum(one, two) - np.minimum(one, two)


def _steps(change: np.ndarray, least: int) -> np.ndarray:
    """Where a line jumps by more than `least`, and twice as far as on either side."""
    half = change >> 1
    jumps = change > least
    jumps[:, 1:] &= half[:, 1:] >= change[:, :-1]
    jumps[:, :-1] &= half[:, :-1] >= change[:, 1:]
    return jumps


def _sums(maps: list[np.ndarray], parts: tuple[int, int]) -> np.ndarray:
    """Sums over parts (rows, columns) of maps of lines, all of one shape: (maps, rows, columns)."""
    lines, length = maps[0].shape
    stacked = np.concatenate([values.view(np.uint8) for values in maps])  # one call is cheaper
    first = np.arange(parts[0]) * lines // parts[0]
    starts = (np.arange(len(maps))[:, None] * lines + first).ravel()
    along = np.add.reduceat(stacked, np.arange(parts[1]) * length // parts[1], 1, dtype=np.uint16)
    return np.add.reduceat(along, starts, 0).reshape(len(maps), *parts)


def _lines(*planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the second lines of the pairs, those of several planes below one another."""
    one, two = (np.concatenate([plane[at::SPACING] for plane in planes]) for at in (0, 2))
    return one, two


def _luma_sums(plane: np.ndarray, parts: tuple[int, int]) -> np.ndarray:
    """Changes along the rows, steps, edges across them, and what is copied downwards."""
    one, two = _lines(plane)
    change = _apart(one[:, 1:], one[:, :-1])
    steps = _steps(change, EDGE)
    edges = steps & _steps(_apart(two[:, 1:], two[:, :-1]), EDGE)
    copied = (_apart(one, two)[:, 1:] <= 1) & (change > 3)
    return _sums([change, steps, edges, copied], parts)


def _chroma_sums(planes: tuple[np.ndarray, ...], parts: tuple[int, int]) -> np.ndarray:
    """Edges across the rows, of all planes together."""
    one, two = (
        _steps(_apart(lines[:, 1:], lines[:, :-1]), CHROMA_EDGE) for lines in _lines(*planes)
    )
    return _sums(np.split(one & two, len(planes)), parts).sum(0)


def texture(luma: np.ndarray, *chroma: np.ndarray) -> np.ndarray:
    """(C, ROWS, COLUMNS) float32, in the order of CHANNELS."""
    here, turned = (ROWS, COLUMNS), (COLUMNS, ROWS)
    change, steps, edges, down = _luma_sums(luma, here).astype(np.float32)
    columns = _luma_sums(luma.T, turned).swapaxes(1, 2).astype(np.float32)
    change_y, steps_y, edges_y, across = columns
    colour = _chroma_sums(chroma, here) + _chroma_sums(tuple(p.T for p in chroma), turned).T
    ratio = (change + 50) / (change_y + 50)
    found = (change + change_y + 100, ratio, steps + steps_y + 1.5, edges + edges_y + 0.5)
    return np.log(np.stack([*found, down + 2, across + 2, colour + 0.5])).astype(np.float32)
