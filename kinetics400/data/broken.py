"""Find spans of torn pictures that decode without an error. No torch.

Where data was lost, a lenient decoder shows torn blocks until the next key frame; encoded again,
such a video has no fault but its pictures. They change at once where the damage begins, and back
where it is healed. Of every pair of such changes a small network judges whether the pictures
between them are torn, as those before and after are not.

S sampled pictures, F frames, K frames looked at, H, W pixels.
"""

from itertools import combinations, pairwise

import av
import numpy as np

from kinetics400.data.foreign import farness, halved
from kinetics400.data.texture import Scaler, texture, thumbnail
from kinetics400.data.torn import network

STEP = 4  # frames from one picture whose texture is described to the next
WINDOW = 600  # frames that are looked at together; longer videos in windows that overlap by half
MOST_CHANGES = 10  # of a window, at which a span may begin or end
SHORTEST, LONGEST = 6, 300  # frames of a span
MARGIN = 4  # frames before and after a span, at least
BEFORE, AFTER = -2, 1  # frames from a change to the pictures that stand for its two sides
APART, MOST_LOOKS = 16, 3  # frames between the pictures looked at between two changes; how many
SHARE = 0.25  # of a picture that is torn, in a broken frame
THRESHOLD = 1.5  # mean logit of the SHARE that looks most torn, from which a span is named
UNLIKELY = -1.0  # a pair whose middle picture has less is not looked at further
GAIN = 1.0  # a picture's logits count up to here when pairs are compared: the surest is too short
# The ends of a span that is named are where LARGE parts of the picture may be torn and are FAR grey
# levels from all that the pictures on its SIDES, in frames from the changes, hold nearby.
FINE, LARGE, MAYBE, FAR = 2, 0.15, -1.0, 15.0
SIDES = (-1, -5, -9), (0, 4, 8)

Planes = tuple[np.ndarray, np.ndarray]  # luma (H, W), chroma (2, H/2, W/2)


class BrokenMeter:
    """Collects the spans that look broken, while a video is decoded."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, int, int]] = []
        self._scaler = Scaler()
        self._start = 0  # number of the window's first frame
        self._pictures: list[Planes] = []
        self._thumbs: list[np.ndarray] = []  # (H/4, W/4) uint8
        self._textures: list[np.ndarray] = []  # of every STEP-th frame, (C, rows, columns)

    def add(self, frame: av.VideoFrame) -> None:
        planes = self._scaler.planes(frame)
        if planes is None:
            return
        if len(self._pictures) == WINDOW:
            self._judge()
            self._start += WINDOW // 2
            del self._pictures[: WINDOW // 2], self._thumbs[: WINDOW // 2]
            del self._textures[: WINDOW // 2 // STEP]
        if len(self._pictures) % STEP == 0:
            self._textures.append(texture(*planes))
        self._thumbs.append(thumbnail(planes[0]))
        self._pictures.append((planes[0].copy(), np.stack(planes[1:])))

    def finish(self) -> list[tuple[int, int]]:
        """First and last frames of the spans, sorted; call it once, after the last frame."""
        self._judge()
        named: list[tuple[int, int]] = []
        for _, first, last in sorted(self._spans, reverse=True):
            if all(last < other[0] or first > other[1] for other in named):
                named.append((first, last))
        return sorted(named)

    def _judge(self) -> None:
        changes = sudden_changes(np.array(self._textures), np.array(self._thumbs))
        found = torn_span(self._pictures, changes)
        if found is not None and found[0] >= THRESHOLD:
            score, first, last = found
            self._spans.append((score, first + self._start, last + self._start))


def sudden_changes(textures: np.ndarray, thumbs: np.ndarray) -> list[int]:
    """The frames at which texture changes most, sorted; of a few that are close, one.

    Args:
        textures: (S, C, rows, columns), of every STEP-th frame.
        thumbs: (F, H/4, W/4).
    """
    if len(textures) < 4:
        return []
    samples = textures.reshape(len(textures), -1)
    wide = thumbs.astype(np.int16)
    moves = np.zeros(len(thumbs))
    moves[1:] = np.abs(wide[1:] - wide[:-1]).mean((1, 2))
    single = np.zeros(len(samples))
    single[1:] = np.abs(samples[1:] - samples[:-1]).mean(1)
    double = np.zeros(len(samples))  # between the means of two samples on either side
    sums = np.concatenate([np.zeros_like(samples[:1]), np.cumsum(samples, 0)])
    at = np.arange(2, len(samples) - 1)
    double[at] = np.abs(sums[at + 2] - 2 * sums[at] + sums[at - 2]).mean(1) / 2
    frames: list[int] = []
    for sample in np.argsort(-double, kind="stable").tolist():
        if double[sample] <= 0 or len(frames) == MOST_CHANGES:
            break
        near = np.arange(max(sample - 1, 1), min(sample + 2, len(single)))
        end = int(near[single[near].argmax()]) * STEP
        first = max(end - STEP + 1, 1)
        frame = first + int(moves[first : end + 1].argmax())
        if all(abs(frame - other) > 2 for other in frames):
            frames.append(frame)
    return sorted(frames)


def torn_span(pictures: list[Planes], changes: list[int]) -> tuple[float, int, int] | None:
    """How torn the most torn span between two changes is; first and last frame of a torn one."""
    pairs = [
        (first, heal)
        for first, heal in combinations(changes, 2)
        if SHORTEST <= heal - first <= LONGEST
        and first >= MARGIN
        and heal <= len(pictures) - MARGIN
    ]
    if not pairs:
        return None
    looks = _Looks(pictures)
    frames, weights = _between(changes)
    score, most, chosen = -np.inf, -np.inf, pairs[0]
    for pair in pairs:
        inside = np.flatnonzero((pair[0] <= frames) & (frames < pair[1]))
        middle = inside[len(inside) // 2]
        if _top(looks.logits(pair, frames[[middle]]), SHARE)[0] < UNLIKELY:
            continue
        logits, weight = _top(looks.logits(pair, frames[inside]), SHARE), weights[inside]
        score = max(score, float(np.average(logits, weights=weight)))
        gathered = float((np.minimum(logits, GAIN) * weight).sum())
        if gathered > most:
            most, chosen = gathered, pair
    if most == -np.inf:
        return None
    return (score, *(_visible(looks, chosen) if score >= THRESHOLD else (chosen[0], chosen[1] - 1)))


def _visible(looks: "_Looks", pair: tuple[int, int]) -> tuple[int, int]:
    """First and last frame between two changes in which the damage, that may grow, is large."""
    first, heal = pair
    around = [first + number for number in SIDES[0]] + [heal + number for number in SIDES[1]]
    sides = [looks.halved(number) for number in around]
    frames = np.arange(first, heal, FINE)
    far = np.stack([farness(looks.halved(number), sides) for number in frames.tolist()])
    torn = (looks.logits(pair, frames) > MAYBE) & (far.reshape(len(far), -1) >= FAR)
    large = np.flatnonzero(torn.mean(1) >= LARGE)
    if not len(large):
        return first, heal - 1
    ends = int(frames[large[0]]), int(frames[large[-1]]) + FINE - 1
    return ends[0], min(ends[1], heal - 1)


def _between(changes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Frames to look at between neighbouring changes, and how many frames each stands for."""
    frames, weights = [], []
    for first, heal in pairwise(changes):
        number = min(max(round((heal - first) / APART), 1), MOST_LOOKS)
        step = (heal - first) / number
        frames += [int(first + step * (place + 0.5)) for place in range(number)]
        weights += [step] * number
    return np.array(frames), np.array(weights)


def _top(logits: np.ndarray, share: float) -> np.ndarray:
    """Mean of the largest logits of each picture: (K, cells) to (K,)."""
    number = max(int(logits.shape[1] * share), 1)
    return np.sort(logits, 1)[:, -number:].mean(1)


class _Looks:
    """Encodes each picture once."""

    def __init__(self, pictures: list[Planes]) -> None:
        self._pictures = pictures
        self._codes: dict[int, np.ndarray] = {}

    def logits(self, pair: tuple[int, int], frames: np.ndarray) -> np.ndarray:
        """How torn frames look, held against both sides of a pair of changes: (K, cells)."""
        before = self._code(pair[0] + BEFORE)
        after = self._code(pair[1] + AFTER)
        found = [network().logits(before, self._code(at), after) for at in frames.tolist()]
        return np.stack(found).reshape(len(found), -1)

    def halved(self, frame: int) -> np.ndarray:
        """Luma of the nearest frame there is, at half the size."""
        return halved(self._pictures[min(max(frame, 0), len(self._pictures) - 1)][0])

    def _code(self, frame: int) -> np.ndarray:
        if frame not in self._codes:
            self._codes[frame] = network().encode(*self._pictures[frame])
        return self._codes[frame]
