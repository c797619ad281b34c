"""Damage videos as lost data does: in the bitstream, and painted on the grid of macroblocks.

B blocks, T frames, H, W pixels.
"""

from collections.abc import Callable

import av
import numpy as np
from av.error import FFmpegError
from films import Film, from_frames, scaled, to_frames

BLOCK = 16  # pixels of luma, a macroblock
LEAST, LONGEST = 10, 60  # frames that are painted

# --- in the bitstream -----------------------------------------------------------------------------


def encoded(film: Film, options: dict[str, str]) -> list[tuple[bytes, bool]]:
    """H.264 packets with their headers in them; whether each is a key frame. No B-frames."""
    context = av.CodecContext.create("libx264", "w")
    context.height, context.width = film.luma.shape[1:]
    context.pix_fmt, context.framerate = "yuv420p", 30
    params = {"x264-params": "cpu-independent=1:repeat-headers=1"}
    context.options = {"threads": "1", "bf": "0", **params, **options}
    packets = []
    for frame in [*to_frames(film), None]:
        packets += [(bytes(packet), packet.is_keyframe) for packet in context.encode(frame)]
    return packets


def decoded(packets: list[bytes], like: Film) -> Film:
    """Decode whatever can be, as players do; where no frame comes, the last one stands."""
    context = av.CodecContext.create("h264", "r")
    context.thread_count = 1
    context.options = {"flags": "output_corrupt", "flags2": "showall"}
    shown: dict[int, av.VideoFrame] = {}
    for number, data in enumerate([*packets, None]):
        if data is not None and not data:
            continue  # lost
        packet = None if data is None else av.Packet(data)
        if packet is not None:
            packet.pts = packet.dts = number
        try:
            frames = context.decode(packet)
        except FFmpegError:
            continue
        shown |= {frame.pts: frame for frame in frames if frame.pts is not None}
    last = shown[min(shown)]
    ordered = []
    for number in range(len(like)):
        last = shown.get(number, last)
        ordered.append(last)
    return from_frames(ordered)


def slices(packet: bytes) -> list[tuple[int, int]]:
    """Where the slices of a packet begin and end."""
    starts = []
    at = packet.find(b"\0\0\1")
    while at >= 0:
        starts.append(at + 3)
        at = packet.find(b"\0\0\1", at + 3)
    ends = [start - 3 for start in starts[1:]] + [len(packet)]
    return [
        (start, end)
        for start, end in zip(starts, ends, strict=True)
        if packet[start] & 31 in (1, 5) and end - start > 40
    ]


def flip(rng: np.random.Generator, packet: bytes) -> bytes:
    """Flip a few bits behind the headers of its slices."""
    data = bytearray(packet)
    for start, end in slices(packet):
        for _ in range(int(rng.integers(1, 8))):
            data[int(rng.integers(start + 16, end))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def overwrite(rng: np.random.Generator, packet: bytes) -> bytes:
    """Put noise over a part of each slice, as a block of a disk that belongs to another file."""
    data = bytearray(packet)
    for start, end in slices(packet):
        first = int(rng.integers(start + 16, start + 16 + (end - start - 16) // 2 + 1))
        data[first:end] = rng.integers(1, 256, end - first, dtype=np.uint8).tobytes()
    return bytes(data)


def cut(rng: np.random.Generator, packet: bytes) -> bytes:
    """Lose the end of a packet."""
    spans = slices(packet)
    if not spans:
        return b""
    start, end = spans[int(rng.integers(len(spans)))]
    return packet[: int(rng.integers(start + 16, start + 16 + (end - start - 16) // 2 + 1))]


def lose(rng: np.random.Generator, packet: bytes) -> bytes:
    """Lose the packet."""
    return b""


IN_PACKETS: dict[str, Callable[[np.random.Generator, bytes], bytes]] = {
    "bits flipped": flip,
    "overwritten": overwrite,
    "packets cut": cut,
    "key frame lost": lose,
}


def damage_packets(rng: np.random.Generator, film: Film, kind: str) -> tuple[Film, int, int]:
    """Encode, damage some packets before a key frame, decode.

    Returns: the film, the first damaged frame and the frame that heals it.
    """
    keyint = int(rng.integers(len(film) // 5, (len(film) - 6) // 2))
    options = {
        "preset": "veryfast",
        "crf": str(rng.integers(18, 30)),
        "g": str(keyint),
        "keyint_min": str(keyint),
        "sc_threshold": "0",
        "slices": str(rng.choice([1, 1, 1, 4])),
    }
    packets = encoded(film, options)
    keys = [number for number, (_, is_key) in enumerate(packets) if is_key]
    at = int(rng.integers(2, len(keys)))  # the one that heals
    begin, heal = keys[at - 1], keys[at]
    if kind == "key frame lost":
        first, share = begin, rng.uniform(0, 0.6)
    elif rng.random() < 0.6:  # from the key frame on
        first, share = begin, rng.uniform(0, 1)
    else:
        first, share = int(rng.integers(max(begin, heal - 60) + 3, heal - 12)), rng.uniform(0.3, 1)
    data = [packet for packet, _ in packets]
    for number in range(first, heal):
        if number == first or rng.random() < share:
            data[number] = IN_PACKETS[kind](rng, data[number])
    return decoded(data, film), first, heal


# --- painted --------------------------------------------------------------------------------------

Planes = tuple[np.ndarray, np.ndarray]  # luma (H, W), chroma (2, H/2, W/2)


def smear(rng: np.random.Generator, planes: Planes, hit: np.ndarray, films: Film) -> None:
    """Copy the rows above downwards, or the columns on the left across."""
    luma, chroma = planes
    rows = np.flatnonzero(hit.any(1))
    down = rng.random() < 0.8
    for plane, size in ((luma, BLOCK), (chroma[0], BLOCK // 2), (chroma[1], BLOCK // 2)):
        mask = hit.repeat(size, 0).repeat(size, 1)[: plane.shape[0], : plane.shape[1]]
        if down:
            source = plane[max(rows[0] * size - 1, 0)]
            picture = np.broadcast_to(source, plane.shape)
        else:
            picture = np.broadcast_to(plane[:, :1], plane.shape)
        plane[mask] = picture[mask]


def displace(rng: np.random.Generator, planes: Planes, hit: np.ndarray, films: Film) -> None:
    """Take blocks from other places and times."""
    size = BLOCK if rng.random() < 0.6 else BLOCK // 2
    reach = int(rng.integers(40, 200))
    luma, chroma = planes
    height, width = luma.shape
    other = int(rng.integers(len(films)))
    old = (luma.copy(), chroma.copy())
    far = (films.luma[other], films.chroma[other])
    changes = rng.uniform(0.1, 0.6)  # how often the vector changes from block to block
    down, across, source = 0, 0, old
    for row, column in np.argwhere(hit.repeat(BLOCK // size, 0).repeat(BLOCK // size, 1)):
        top, left = row * size, column * size
        if top >= height or left >= width:
            continue
        if not (down or across) or rng.random() < changes:
            source = far if rng.random() < 0.3 else old
            down, across = rng.integers(-reach, reach + 1, 2) // 2 * 2
        h, w = min(size, height - top), min(size, width - left)
        y, x = np.clip(top + down, 0, height - h), np.clip(left + across, 0, width - w)
        luma[top : top + h, left : left + w] = source[0][y : y + h, x : x + w]
        y, x, top, left, h, w = y // 2, x // 2, top // 2, left // 2, h // 2, w // 2
        chroma[:, top : top + h, left : left + w] = source[1][:, y : y + h, x : x + w]


def disturb(rng: np.random.Generator, planes: Planes, hit: np.ndarray, films: Film) -> None:
    """Add wrong residuals: shifts of the mean, and single waves of the transform."""
    strength = rng.uniform(15, 50)
    waves = np.cos(np.pi * np.outer(np.arange(3), np.arange(BLOCK) + 0.5) / BLOCK)
    luma, chroma = planes
    for row, column in np.argwhere(hit):
        top, left = row * BLOCK, column * BLOCK
        block = luma[top : top + BLOCK, left : left + BLOCK]
        if not block.size:
            continue
        weights = rng.standard_normal((3, 3)) * strength * (rng.random((3, 3)) < 0.35)
        weights[0, 0] = rng.standard_normal() * strength
        added = waves.T @ weights @ waves
        block[:] = (block + added[: block.shape[0], : block.shape[1]]).clip(0, 255)
        part = chroma[:, top // 2 : top // 2 + 8, left // 2 : left // 2 + 8]
        part[:] = (part + rng.standard_normal((2, 1, 1)) * strength / 3).clip(0, 255)


PAINT: dict[str, list[Callable[[np.random.Generator, Planes, np.ndarray, Film], None]]] = {
    "streaks": [smear],
    "displaced blocks": [displace],
    "wrong residuals": [disturb],
    "streaks, then blocks": [smear, displace, disturb],
}


def region(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Macroblocks in the order of the bitstream, from somewhere to somewhere: (rows, columns)."""
    rows, columns = shape
    hit = np.zeros(rows * columns, bool)
    share = rng.uniform(0.35, 1.0)
    first = 0 if share > 0.9 else int(rng.uniform(0, 1 - share) * hit.size)
    if rng.random() < 0.6:
        first = int((1 - share) * hit.size)  # until the end of the picture
    hit[first : first + int(share * hit.size)] = True
    return hit.reshape(shape) & (rng.random(shape) < rng.choice([1.0, 0.85]))


def paint(rng: np.random.Generator, film: Film, kind: str) -> tuple[Film, int, int]:
    """Paint a span of a film; on a picture of up to twice the size, so that the grid varies.

    Returns: the film, the first damaged frame and the frame that heals it.
    """
    n_frames = min(int(rng.integers(LEAST, LONGEST + 1)), len(film) - 40)
    first = int(rng.integers(20, len(film) - n_frames - 18))
    heal = first + n_frames
    height = film.luma.shape[1]
    big_height = int(rng.choice([height, height, height * 3 // 2 // 4 * 4, height * 2]))
    clean = film[first - 1 : heal]
    if big_height != height:
        clean = scaled(clean, big_height)
    painted = _evolve(rng, clean, PAINT[kind])
    if big_height != height:
        painted = scaled(painted, height)
    whole = film.copy()
    width = min(whole.luma.shape[2], painted.luma.shape[2])
    whole.luma[first:heal, :, :width] = painted.luma[:, :, :width]
    whole.chroma[first:heal, :, :, : width // 2] = painted.chroma[:, :, :, : width // 2]
    return whole, first, heal


def _evolve(rng: np.random.Generator, clean: Film, tools: list) -> Film:
    """The painted frames; the first of `clean` is the last whole one."""
    height, width = clean.luma.shape[1:]
    hit = region(rng, (-(-height // BLOCK), -(-width // BLOCK)))
    way = str(rng.choice(["frozen", "all frozen", "drifting", "residuals", "renewed"]))
    growing = int(rng.integers(1, 6))  # frames in which damage is added
    drift = rng.integers(-3, 4, 2) * 2
    mask = hit.repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width]
    small = mask[::2, ::2]
    luma, chroma = clean.luma[1].copy(), clean.chroma[1].copy()
    out = Film(np.empty_like(clean.luma[1:]), np.empty_like(clean.chroma[1:]))
    for number in range(len(out)):
        now = Film(clean.luma[number : number + 2], clean.chroma[number : number + 2])
        if number and way == "drifting":
            luma = np.roll(luma, drift, (0, 1))
            chroma = np.roll(chroma, drift // 2, (1, 2))
        elif number and way == "residuals":
            luma = (luma + now.luma[1].astype(int) - now.luma[0]).clip(0, 255).astype(np.uint8)
            change = chroma + now.chroma[1].astype(int) - now.chroma[0]
            chroma = change.clip(0, 255).astype(np.uint8)
        if number == 0:
            for tool in tools[:1] if growing > 1 else tools:
                tool(rng, (luma, chroma), hit, clean)
        elif number < growing:
            for tool in tools[1:] or tools:
                tool(rng, (luma, chroma), hit & (rng.random(hit.shape) < 0.4), clean)
        elif way == "renewed" and number % 3 == 0:
            part = hit & (rng.random(hit.shape) < 0.1)
            if part.any():
                tools[-1](rng, (luma, chroma), part, clean)
        if way != "all frozen":
            luma = np.where(mask, luma, now.luma[1])
            chroma = np.where(small, chroma, now.chroma[1])
        out.luma[number], out.chroma[number] = luma, chroma
    return out
