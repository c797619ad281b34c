"""Videos in which one textured object moves over a static background; the class is how it moves.

Everything that a single frame shows (position, size, shape, colours, background) is drawn before
the class is looked at and has the same distribution in every class, so only the order of the
frames tells the class.

T frames, H, W pixels; lengths without a unit are fractions of the frame's short side.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from kinetics400.errors import InputError

MOTION_CLASSES: tuple[str, ...] = (
    "moving right",
    "moving left",
    "moving up",
    "moving down",
    "moving up and right",
    "moving down and left",
    "moving up and left",
    "moving down and right",
    "growing",
    "shrinking",
)

# (x, y) of the translations, y pointing down as in the image, in the order of MOTION_CLASSES.
DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, 1), (-1, -1), (1, 1))
N_TRANSLATION = len(DIRECTIONS)


FRAME_RATES = (Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30))
# Width : height and its share: landscape mostly, as on YouTube.
ASPECT_RATIOS = ((16, 9, 0.5), (4, 3, 0.28), (1, 1, 0.07), (3, 4, 0.05), (9, 16, 0.10))
SHORT_SIDES = (64, 72, 80)  # pixels
SECONDS = (2.75, 4.0)  # at least 66 frames at 24 fps: a 16 x 4 clip fits
SHORT_SECONDS = (1.2, 2.1)  # 28 to 63 frames: a 16 x 4 clip does not fit
DIAMETERS = (0.25, 0.55)  # of the disc of equal area
SPEEDS = (0.3, 0.5)  # short sides, or sweeps through DIAMETERS, per second
SHAPES = ("disc", "square", "triangle")
# The object is the brighter one, whatever its class: a tiny model with minutes to train need not
# also learn to be blind to the sign of the contrast.
OBJECT_LUMA = (195, 215)
BACKGROUND_LUMA = (75, 105)


@dataclass(frozen=True)
class Texture:
    """A sum of plane waves in three colours, evaluated at any coordinates."""

    base: np.ndarray  # (3,) of 0-255
    colours: np.ndarray  # (K, 3) amplitudes
    waves: np.ndarray  # (K, 2) cycles per unit length along x and y
    phases: np.ndarray  # (K,) radians

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return float32 colours, (..., 3), at the coordinates x and y, each (...)."""
        cycles = x[..., None] * self.waves[:, 0] + y[..., None] * self.waves[:, 1]
        return self.base + np.sin(2 * np.pi * cycles + self.phases) @ self.colours


@dataclass(frozen=True)
class Scene:
    """All that is drawn at random for one video. Two labels with one key differ in motion only."""

    label: int
    width: int  # pixels
    height: int  # pixels
    fps: Fraction
    n_frames: int
    start: tuple[float, float]  # centre of the object at time 0
    speed: float  # per second, in the units of SPEEDS
    phase: float  # 0 to 1: place in the range of sizes at time 0
    shape: str
    angle: float  # of the object, radians
    flicker: tuple[float, float, float]  # amplitude, frequency in Hz, phase in radians
    background: Texture
    foreground: Texture


def draw_texture(
    rng: np.random.Generator, luma: float, contrast: float, wavelength: float, detail: float
) -> Texture:
    """Draw a texture: one long wave that carries the contrast, and shorter, weaker ones.

    The long wave is nearly a straight ramp across the frame, brighter on one side, so a masked
    autoencoder can tell a hidden patch from any visible one. With waves of 0.4 to 1.2 sides alone,
    a tiny one was still at a loss of 0.99 after a minute; with the ramp it reached 0.70.
    """
    n_wave = 4
    tint = rng.uniform(-30, 30, 3)
    direction = rng.uniform(0, 2 * np.pi, n_wave)
    length = wavelength * np.append(1.0, rng.uniform(0.1, 0.3, n_wave - 1))
    strength = np.append(contrast * rng.uniform(0.8, 1.2), detail * rng.uniform(0.3, 1, n_wave - 1))
    colours = strength[:, None] * rng.uniform(0.6, 1.0, (n_wave, 3))
    colours[1:] *= rng.choice((-1, 1), (n_wave - 1, 3))
    phases = np.append(rng.uniform(-0.2, 0.2), rng.uniform(0, 2 * np.pi, n_wave - 1))
    return Texture(
        base=(luma + tint - tint.mean()).astype(np.float32),
        colours=colours.astype(np.float32),
        waves=(np.stack([np.cos(direction), np.sin(direction)], 1) / length[:, None]).astype(
            np.float32
        ),
        phases=phases.astype(np.float32),
    )


def draw_scene(label: int, key: tuple[int, ...], *, short: bool = False) -> Scene:
    """Draw one video's scene from a key, a tuple of non-negative integers such as (seed, index).

    Nothing here but the stored label depends on the label.
    """
    if not 0 <= label < len(MOTION_CLASSES):
        raise InputError(f"label must be 0 to {len(MOTION_CLASSES) - 1}, not {label}")
    rng = np.random.default_rng(key)
    *ratio, _ = ASPECT_RATIOS[rng.choice(len(ASPECT_RATIOS), p=[s for *_, s in ASPECT_RATIOS])]
    side = int(rng.choice(SHORT_SIDES))
    width, height = (2 * round(side * n / min(ratio) / 2) for n in ratio)
    fps = FRAME_RATES[rng.integers(len(FRAME_RATES))]
    seconds = rng.uniform(*(SHORT_SECONDS if short else SECONDS))
    return Scene(
        label=label,
        width=width,
        height=height,
        fps=fps,
        n_frames=int(seconds * fps),
        start=(rng.uniform(), rng.uniform()),
        speed=rng.uniform(*SPEEDS),
        phase=rng.uniform(),
        shape=SHAPES[rng.integers(len(SHAPES))],
        angle=rng.uniform(0, 2 * np.pi),
        flicker=(rng.uniform(0, 0.03), rng.uniform(0.2, 1.0), rng.uniform(0, 2 * np.pi)),
        background=draw_texture(rng, rng.uniform(*BACKGROUND_LUMA), 60, 4.0, 8),
        foreground=draw_texture(rng, rng.uniform(*OBJECT_LUMA), 35, 4.0, 6),
    )


def trajectory(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return the object's centres, (T, 2) as x and y in [0, 1), and its diameters, (T,).

    Space is a torus with the period of the short side: what leaves on one side enters on the
    other, and every square crop shows one object. The diameter is that of the disc of equal area;
    a growing object falls back to the smallest size after the largest. So centres, and the
    logarithm of the diameter, are uniform at any time in every class.
    """
    elapsed = np.arange(scene.n_frames) / float(scene.fps) * scene.speed
    centres = np.tile(scene.start, (scene.n_frames, 1))
    place = np.full(scene.n_frames, scene.phase)
    if scene.label < N_TRANSLATION:
        direction = np.array(DIRECTIONS[scene.label], dtype=float)
        centres += elapsed[:, None] * direction / np.linalg.norm(direction)
    else:
        place += elapsed if scene.label == N_TRANSLATION else -elapsed
    smallest, largest = DIAMETERS
    return centres % 1, smallest * (largest / smallest) ** (place % 1)


def render_mask(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the object's opacity in [0, 1] and object coordinates u and v, each (T, H, W)."""
    side = min(scene.width, scene.height)
    centres, diameters = (a.astype(np.float32)[..., None, None] for a in trajectory(scene))
    x = (np.arange(scene.width, dtype=np.float32) + 0.5) / side
    y = (np.arange(scene.height, dtype=np.float32)[:, None] + 0.5) / side
    radii = diameters / 2
    dx = ((x - centres[:, 0] + 0.5) % 1 - 0.5) / radii
    dy = ((y - centres[:, 1] + 0.5) % 1 - 0.5) / radii
    cos, sin = np.float32(np.cos(scene.angle)), np.float32(np.sin(scene.angle))
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    # Signed distance to the edge for shapes of area pi, the disc's.
    if scene.shape == "disc":
        distance = np.hypot(u, v) - 1
    elif scene.shape == "square":
        distance = np.maximum(np.abs(u), np.abs(v)) - np.sqrt(np.pi).astype(np.float32) / 2
    else:
        third = np.float32(np.sqrt(3) / 2)
        inradius = np.float32(np.sqrt(np.pi / (3 * np.sqrt(3))))
        distance = np.maximum(np.maximum(third * u + v / 2, v / 2 - third * u), -v) - inradius
    return np.clip(0.5 - distance * radii * side, 0, 1), u, v


def render_video(scene: Scene) -> np.ndarray:
    """Draw a scene: (T, H, W, 3) uint8, the same bytes for the same scene."""
    side = min(scene.width, scene.height)
    x, y = np.meshgrid(*((np.arange(n) + 0.5 - n / 2) / side for n in (scene.width, scene.height)))
    background = scene.background.at(x.astype(np.float32), y.astype(np.float32))
    opacity, u, v = render_mask(scene)
    frames = np.broadcast_to(background, (*opacity.shape, 3)).copy()
    inside = opacity > 0
    # Texture in object coordinates moves and scales with the object; 2 of them are a diameter.
    foreground = scene.foreground.at(u[inside] / 2, v[inside] / 2)
    frames[inside] += opacity[inside][:, None] * (foreground - frames[inside])
    amplitude, frequency, phase = scene.flicker
    seconds = np.arange(scene.n_frames) / float(scene.fps)
    gain = 1 + amplitude * np.sin(2 * np.pi * frequency * seconds + phase)
    frames *= gain.astype(np.float32)[:, None, None, None]
    return np.clip(frames + 0.5, 0, 255).astype(np.uint8)
