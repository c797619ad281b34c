"""How others feed the same models: the readers that `kinetics400 bench loader` measures against.

What goes through decord, PIL, timm and cv2 is the path of MCG-NJU/VideoMAE (kinetics.py,
datasets.py, transforms.py, video_transforms.py): the same libraries do the same operations on the
same shapes in the same order, written anew. Only the choice of clip and crop is ours (sampling.py,
which has parity tests), so that it follows from the random numbers that all contenders share.

Shapes: T frames, C channels (RGB), H, W.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.error import FFmpegError
from PIL import Image
from torch import Tensor

from kinetics400.batch import IMAGENET_MEAN, IMAGENET_STD
from kinetics400.data import sampling
from kinetics400.data.decode import DecodeError
from kinetics400.data.sampling import Box

# VideoMAE on Kinetics-400: 16 frames, stride 4, 224 pixels, tubes of 16 × 16 × 2, 90 % masked.
NUM_FRAMES, SAMPLING_RATE, SIZE = 16, 4, 224
NUM_SEGMENTS, NUM_CROPS = 5, 3
TUBES, PATCHES, MASK_RATIO = 8, 196, 0.9
CROP_AREA, CROP_ASPECT = (0.08, 1.0), (0.75, 4 / 3)
RAND_AUGMENT = "rand-m7-n4-mstd0.5-inc1"
FLIP_PROBABILITY, ERASE_PROBABILITY = 0.5, 0.25
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)

READ_ERRORS: tuple[type[BaseException], ...]
READ_ERRORS = (DecodeError, FFmpegError, OSError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Recipe:
    """Which part of a video a training clip takes."""

    frames: Callable[..., list[int]]
    """(length, num_frames, sampling_rate, u) -> frame numbers."""
    box: Callable[[int, int, Sequence[float]], Box]
    """(height, width, u) -> crop."""
    num_box_draws: int
    """How many numbers `box` takes."""
    antialias: bool
    """Of the scaling, for readers that scale tensors."""


def pretraining_box(height: int, width: int, u: Sequence[float]) -> Box:
    """The crop of pretraining."""
    return sampling.multi_scale_box(height, width, SIZE, u)


def finetuning_box(height: int, width: int, u: Sequence[float]) -> Box:
    """The crop of finetuning."""
    return sampling.random_resized_box(height, width, CROP_AREA, CROP_ASPECT, u)


PRETRAINING = Recipe(sampling.pretraining_frames, pretraining_box, 2, antialias=True)
FINETUNING = Recipe(
    sampling.finetuning_frames, finetuning_box, sampling.RESIZED_CROP_DRAWS, antialias=False
)


def missing(modules: Sequence[str]) -> str | None:
    """Why a peer cannot run here: the first of its modules that cannot be imported, or None."""
    for module in modules:
        try:
            import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            return f"{module}: {first_line(error)}"
    return None


def first_line(error: BaseException) -> str:
    """What an error says, in short: torchcodec's runs over a hundred lines."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def read_errors() -> tuple[type[BaseException], ...]:
    """What any reader here may raise at a file that it cannot read.

    torchcodec without FFmpeg's libraries imports, and raises RuntimeError at the first file.
    """
    if missing(["decord"]):
        return READ_ERRORS
    return (*READ_ERRORS, import_module("decord").DECORDError)


# --- decord, as VideoMAE uses it ------------------------------------------------------------------


def decord_pretraining(path: str, clip_u: float, crop_u: Sequence[float]) -> tuple[Tensor, Any]:
    """A pretraining clip (C, T, S, S) float32, normalised, and its mask."""
    reader = import_module("decord").VideoReader(path, num_threads=1)
    indices = PRETRAINING.frames(len(reader), NUM_FRAMES, SAMPLING_RATE, clip_u)
    frames = reader.get_batch(indices).asnumpy()
    full_height, full_width = frames.shape[1:3]
    top, left, height, width = PRETRAINING.box(full_height, full_width, crop_u)
    corners = (left, top, left + width, top + height)
    images = [Image.fromarray(frame).crop(corners) for frame in frames]
    scaled = [image.resize((SIZE, SIZE), Image.Resampling.BILINEAR) for image in images]
    stacked = np.concatenate([np.asarray(image) for image in scaled], axis=2)
    planes = torch.from_numpy(stacked).permute(2, 0, 1).contiguous().float().div(255)
    for number, plane in enumerate(planes):
        plane.sub_(IMAGENET_MEAN[number % 3]).div_(IMAGENET_STD[number % 3])
    return planes.view(NUM_FRAMES, 3, SIZE, SIZE).transpose(0, 1), tube_mask()


def tube_mask() -> np.ndarray:
    """A random mask of TUBES * PATCHES tokens, the same at every time; 1 where hidden."""
    hidden = int(MASK_RATIO * PATCHES)
    mask = np.hstack([np.zeros(PATCHES - hidden), np.ones(hidden)])
    np.random.shuffle(mask)
    return np.tile(mask, (TUBES, 1)).flatten()


def decord_finetuning(path: str, clip_u: float, crops_u: Sequence[Sequence[float]]) -> list[Tensor]:
    """Finetuning samples of one decoded clip, one per entry of `crops_u`."""
    frames = _decord_frames(
        path, lambda length: FINETUNING.frames(length, NUM_FRAMES, SAMPLING_RATE, clip_u)
    )
    return [finetuning_sample(frames, crop_u) for crop_u in crops_u]


def _decord_frames(path: str, pick: Callable[[int], list[int]]) -> np.ndarray:
    decord = import_module("decord")
    reader = decord.VideoReader(path, num_threads=1, ctx=decord.cpu(0))
    reader.seek(0)
    return reader.get_batch(pick(len(reader))).asnumpy()


def finetuning_sample(frames: np.ndarray, crop_u: Sequence[float]) -> Tensor:
    """(T, H, W, C) uint8 to an augmented sample (C, T, S, S) float32.

    RandAugment on whole frames comes first, then the type, the normalisation, and only then the
    crop: most of the work is done on pixels that are thrown away.
    """
    images = rand_augment([Image.fromarray(frame) for frame in frames])
    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous() for image in images]
    clip = torch.stack([tensor.float().div(255) for tensor in tensors]).permute(0, 2, 3, 1)
    clip = (clip - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    clip = clip.permute(3, 0, 1, 2)
    full_height, full_width = clip.shape[2:]
    top, left, height, width = FINETUNING.box(full_height, full_width, crop_u)
    part = clip[:, :, top : top + height, left : left + width]
    clip = F.interpolate(part, (SIZE, SIZE), mode="bilinear", align_corners=False)
    if random.random() < FLIP_PROBABILITY:
        clip = clip.flip(-1)
    return random_erase(clip)


def rand_augment(images: list[Image.Image]) -> list[Image.Image]:
    """Four random operations of timm's, with strengths drawn once for all frames."""
    augment = import_module("timm.data.auto_augment")
    hparams = {"translate_const": int(SIZE * 0.45), "interpolation": Image.Resampling.BICUBIC}
    policy = augment.rand_augment_transform(RAND_AUGMENT, hparams)
    for operation in np.random.choice(policy.ops, policy.num_layers):
        if random.random() > operation.prob:
            continue
        strength = random.gauss(operation.magnitude, operation.magnitude_std)
        strength = min(max(strength, 0.0), 10.0)
        level = operation.level_fn
        arguments = level(strength, operation.hparams) if level is not None else ()
        images = [operation.aug_fn(image, *arguments, **operation.kwargs) for image in images]
    return images


def random_erase(clip: Tensor) -> Tensor:
    """Fill a random box of (C, T, H, W) with noise, the same box at every time; in place."""
    if random.random() > ERASE_PROBABILITY:
        return clip
    height, width = clip.shape[2:]
    for _ in range(10):
        area = random.uniform(*ERASED_AREA) * height * width
        aspect = math.exp(random.uniform(*(math.log(bound) for bound in ERASED_ASPECT)))
        box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if box_height < height and box_width < width:
            top = random.randint(0, height - box_height)
            left = random.randint(0, width - box_width)
            part = clip[:, :, top : top + box_height, left : left + box_width]
            part.copy_(torch.randn(part.shape))
            break
    return clip


def decord_evaluation(path: str) -> Iterator[Tensor]:
    """The 15 views of a test, each decoded by itself: (C, T, S, S) float32, normalised.

    The published data set has an item for each view. Every item decodes a quarter of all frames
    of the video, scales all of them, and keeps 16.
    """
    for segment in range(NUM_SEGMENTS):
        for crop in range(NUM_CROPS):
            yield decord_view(path, segment, crop)


def decord_view(path: str, segment: int, crop: int) -> Tensor:
    """One view (C, T, S, S) float32, normalised."""
    cv2 = import_module("cv2")
    cv2.setNumThreads(1)
    frames = _decord_frames(path, strided_frames)
    full_height, full_width = frames.shape[1:3]
    height, width = sampling.short_side_size(full_height, full_width, SIZE)
    if (height, width) != (full_height, full_width):
        size, linear = (width, height), cv2.INTER_LINEAR
        frames = np.stack([cv2.resize(frame, size, interpolation=linear) for frame in frames])
    start = int(segment * (len(frames) - NUM_FRAMES) / (NUM_SEGMENTS - 1))
    top, left, _, _ = sampling.crop_box(height, width, SIZE, crop, NUM_CROPS)
    part = frames[start : start + NUM_FRAMES, top : top + SIZE, left : left + SIZE]
    planes = np.zeros((3, NUM_FRAMES, SIZE, SIZE))  # float64 on the way, as there
    for number, frame in enumerate(part):
        planes[:, number] = frame.transpose(2, 0, 1)
    clip = torch.from_numpy(planes).float().div(255)
    mean, std = (torch.tensor(part).view(3, 1, 1, 1) for part in (IMAGENET_MEAN, IMAGENET_STD))
    return clip.sub_(mean).div_(std)


def strided_frames(length: int) -> list[int]:
    """Every fourth frame of a video, the last one repeated if they are too few for a clip."""
    strided = list(range(0, length, SAMPLING_RATE))
    return strided + [strided[-1]] * (NUM_FRAMES - len(strided))


# --- other decoders, with our crop and scaling ----------------------------------------------------


def torchcodec_clip(path: str, recipe: Recipe, clip_u: float, crop_u: Sequence[float]) -> Tensor:
    """A clip (C, T, S, S) uint8 read by torchcodec."""
    decoder = import_module("torchcodec.decoders").VideoDecoder(path, num_ffmpeg_threads=1)
    indices = recipe.frames(len(decoder), NUM_FRAMES, SAMPLING_RATE, clip_u)
    return _crop_resize(decoder.get_frames_at(indices).data, recipe, crop_u)


def pyav_clip(path: str, recipe: Recipe, clip_u: float, crop_u: Sequence[float]) -> Tensor:
    """A clip (C, T, S, S) uint8 read as PyAV's documentation shows: seek, decode, convert.

    Frames are told apart by time, which takes a constant frame rate for granted.
    """
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        rate, base, start = stream.average_rate, stream.time_base, stream.start_time or 0
        length = stream.frames or _frames_by_duration(container, rate)
        if rate is None or base is None or not length:
            raise ValueError(f"{path} has no frame rate or no duration")
        indices = recipe.frames(length, NUM_FRAMES, SAMPLING_RATE, clip_u)
        wanted = set(indices)
        container.seek(start + int(min(wanted) / (rate * base)), stream=stream)
        frames: dict[int, np.ndarray] = {}
        for frame in container.decode(stream):
            if frame.pts is None:
                raise ValueError(f"{path} has frames without a time")
            number = round((frame.pts - start) * base * rate)
            if number in wanted:
                frames[number] = frame.to_ndarray(format="rgb24")
            if number >= max(wanted):
                break
    if wanted - frames.keys():
        raise ValueError(f"{path} lacks frames {sorted(wanted - frames.keys())[:5]}")
    stacked = np.stack([frames[index] for index in indices])
    return _crop_resize(torch.from_numpy(stacked).permute(0, 3, 1, 2), recipe, crop_u)


def _frames_by_duration(container: Any, rate: Any) -> int:
    """Matroska has no count of frames."""
    return int(container.duration * rate / av.time_base) if container.duration and rate else 0


def _crop_resize(frames: Tensor, recipe: Recipe, crop_u: Sequence[float]) -> Tensor:
    """(T, C, H, W) uint8 to (C, T, S, S) uint8."""
    full_height, full_width = frames.shape[2:]
    top, left, height, width = recipe.box(full_height, full_width, crop_u)
    part = frames[:, :, top : top + height, left : left + width]
    scaled = F.interpolate(part, (SIZE, SIZE), mode="bilinear", antialias=recipe.antialias)
    return scaled.transpose(0, 1)
