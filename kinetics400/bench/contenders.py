"""Who takes part in `kinetics400 bench loader`, and on which clips.

A *unit* is what a contender delivers: a clip of pretraining, a sample of finetuning, or a video of
a test (all its views).
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import av

from kinetics400.augment.pipeline import training_augment
from kinetics400.batch import Batch
from kinetics400.bench import peers
from kinetics400.bench.peers import FINETUNING, NUM_FRAMES, PRETRAINING, SAMPLING_RATE, Recipe
from kinetics400.data import keys, pyramid, sampling
from kinetics400.data.annotations import VideoTable
from kinetics400.data.dataset import ClipDataset, Sample, ViewDataset
from kinetics400.data.decode import DecodeError, VideoReader
from kinetics400.data.loader import collate

SEED = 0
PRETRAIN, FINETUNE, EVAL = "pretrain", "finetune", "eval"
UNITS = {PRETRAIN: "clips", FINETUNE: "samples", EVAL: "videos"}
SAMPLES_PER_DECODE = 2  # of finetuning, in VideoMAE's code
# Names of contenders, in the order of the table.
DECORD, TORCHCODEC, PYAV = "decord", "torchcodec", "pyav"
ORIGINAL, PYRAMID, AUGMENTED = "original", "pyramid", "augmented"
FLOOR, DECODING = "floor", "decoding"
MEANING = {
    DECORD: "(a) originals, decord + PIL/cv2 as in VideoMAE",
    TORCHCODEC: "(b) originals, torchcodec",
    PYAV: "(b) originals, PyAV",
    ORIGINAL: "(c) originals, ours",
    PYRAMID: "(d) pyramids, ours",
    AUGMENTED: "(d) + flip and normalisation on this core",
    FLOOR: "(e) pyramids, PyAV decoding the frames, no conversion",
    DECODING: "(f) pyramids, our decoding, no conversion",
}
RECIPES = {PRETRAIN: PRETRAINING, FINETUNE: FINETUNING}
GRIDS = {
    PRETRAIN: pyramid.common_grid(SAMPLING_RATE),
    FINETUNE: pyramid.near_grid(SAMPLING_RATE),
}


@dataclass(frozen=True)
class Spot:
    """One clip of one video, the same for every contender."""

    video: int
    slot: int
    clip_u: float
    """Uniform random number that chooses the frames."""
    crop_u: list[float]
    """Uniform random numbers that choose the crop."""


@dataclass(frozen=True)
class Contender:
    """Something that reads clips."""

    task: str
    name: str
    load: Callable[[Spot], object]
    """Read one spot."""
    units: int = 1
    """Delivered by one call."""
    needs: tuple[str, ...] = ()
    """Modules that an installation may lack."""


# --- clips ----------------------------------------------------------------------------------------


def spread_spots(num_videos: int, per_video: int, *, seed: int = SEED) -> list[Spot]:
    """`per_video` random clips of each video, spread evenly from early to late over all of them.

    A decoder that starts at a key frame is slower the later the clip, so a few clips at random
    would favour one side or the other of a comparison with little to do with the decoders. Slots
    are tried until their number falls into the wanted part of [0, 1).
    """
    total = num_videos * per_video
    spots: list[Spot] = []
    slot = 0
    for number in range(total):
        # Part k of `total`, in an order that gives every video early and late clips.
        part = number // per_video + num_videos * (number % per_video)
        while int(total * _clip_u(seed, slot)) != part:
            slot += 1
        key = keys.sample_key(seed, 0, slot)
        crop_u = keys.uniform(key, "crop", sampling.RESIZED_CROP_DRAWS).tolist()
        spots.append(Spot(number // per_video, slot, _clip_u(seed, slot), crop_u))
        slot += 1
    return spots


def _clip_u(seed: int, slot: int) -> float:
    return keys.uniform(keys.sample_key(seed, 0, slot), "clip", 1).item()


# --- contenders -----------------------------------------------------------------------------------


def all_contenders(originals: Sequence[str], pyramids: Sequence[str]) -> list[Contender]:
    """Everything that is measured; videos correspond by position."""
    found = [*_decord_contenders(originals)]
    for task in (PRETRAIN, FINETUNE):
        found += _other_contenders(task, originals)
    for name, paths in ((ORIGINAL, originals), (PYRAMID, pyramids)):
        table = video_table(paths)
        found += [
            Contender(task, name, partial(_our_clip, clip_dataset(table, task))) for task in RECIPES
        ]
        found.append(Contender(EVAL, name, partial(_our_views, view_dataset(table))))
    finetuning = clip_dataset(video_table(pyramids), FINETUNE)
    found.append(Contender(FINETUNE, AUGMENTED, partial(_augmented_clip, finetuning)))
    found += [Contender(task, FLOOR, partial(_floor, task, pyramids)) for task in UNITS]
    found += [Contender(task, DECODING, partial(_decoded, task, pyramids)) for task in UNITS]
    tasks, names = list(UNITS), list(MEANING)
    return sorted(found, key=lambda one: (tasks.index(one.task), names.index(one.name)))


def _decord_contenders(originals: Sequence[str]) -> list[Contender]:
    def pretrain(spot: Spot) -> object:
        return peers.decord_pretraining(originals[spot.video], spot.clip_u, spot.crop_u)

    def finetune(spot: Spot) -> object:
        # The second sample's crop takes other numbers of the same key.
        crops = [spot.crop_u, spot.crop_u[::-1]]
        return peers.decord_finetuning(originals[spot.video], spot.clip_u, crops)

    def evaluate(spot: Spot) -> object:
        return deque(peers.decord_evaluation(originals[spot.video]), maxlen=0)

    return [
        Contender(PRETRAIN, DECORD, pretrain, needs=("decord", "PIL")),
        Contender(
            FINETUNE,
            DECORD,
            finetune,
            units=SAMPLES_PER_DECODE,
            needs=("decord", "PIL", "timm.data.auto_augment"),
        ),
        Contender(EVAL, DECORD, evaluate, needs=("decord", "cv2")),
    ]


def _other_contenders(task: str, originals: Sequence[str]) -> Iterator[Contender]:
    recipe = RECIPES[task]

    def torchcodec(spot: Spot) -> object:
        return peers.torchcodec_clip(originals[spot.video], recipe, spot.clip_u, spot.crop_u)

    def pyav(spot: Spot) -> object:
        return peers.pyav_clip(originals[spot.video], recipe, spot.clip_u, spot.crop_u)

    yield Contender(task, TORCHCODEC, torchcodec, needs=("torchcodec.decoders",))
    yield Contender(task, PYAV, pyav)


def video_table(paths: Sequence[str]) -> VideoTable:
    """The videos as training knows them."""
    return VideoTable.from_rows([(os.path.abspath(path), 0) for path in paths])


def clip_dataset(table: VideoTable, task: str) -> ClipDataset:
    """The product's data set with the published settings of a task, frames on the layers' grid."""
    recipe = RECIPES[task]
    return ClipDataset(
        table,
        sample_frames=partial(_frames, recipe, GRIDS[task]),
        num_frame_draws=1,
        num_frames=NUM_FRAMES,
        sample_box=recipe.box,
        num_box_draws=recipe.num_box_draws,
        size=peers.SIZE,
        antialias=recipe.antialias,
        seed=SEED,
    )


def _frames(recipe: Recipe, grid: int, length: int, fps: float, u: Sequence[float]) -> list[int]:
    return recipe.frames(length, NUM_FRAMES, SAMPLING_RATE, u[0], grid=grid)


def view_dataset(table: VideoTable) -> ViewDataset:
    """The product's data set for the published test: 5 clips × 3 crops."""
    return ViewDataset(
        table,
        segment_frames=_segment_frames,
        num_segments=peers.NUM_SEGMENTS,
        num_crops=peers.NUM_CROPS,
        size=peers.SIZE,
    )


def _segment_frames(length: int, fps: float, segment: int, num_segments: int) -> list[int]:
    return sampling.segment_frames(length, NUM_FRAMES, SAMPLING_RATE, segment, num_segments)


def _our_clip(dataset: ClipDataset, spot: Spot) -> Sample:
    sample = dataset[spot.video, 0, spot.slot]
    if sample.failures:  # another video was read in its place
        raise DecodeError(sample.failures[0].reason)
    return sample


def _augmented_clip(dataset: ClipDataset, spot: Spot) -> Batch:
    batch, _ = collate([_our_clip(dataset, spot)])
    return training_augment(flip_probability=peers.FLIP_PROBABILITY)(batch)


def _our_views(dataset: ViewDataset, spot: Spot) -> object:
    views = dataset[spot.video]
    if views.failure is not None:
        raise DecodeError(views.failure.reason)
    return views


def _needed(task: str, length: int, fps: float, clip_u: float) -> list[int]:
    """The frames that a task takes of a video, in order."""
    if task != EVAL:
        return _frames(RECIPES[task], GRIDS[task], length, fps, [clip_u])
    segments = range(peers.NUM_SEGMENTS)
    clips = [_segment_frames(length, fps, segment, len(segments)) for segment in segments]
    return sorted({frame for clip in clips for frame in clip})


def _floor(task: str, pyramids: Sequence[str], spot: Spot) -> list[av.VideoFrame]:
    """Decode the frames with PyAV as anybody would: seek, skip the other layers, stop in time."""
    with av.open(pyramids[spot.video]) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.skip_frame = "BIDIR"
        assert stream.time_base is not None and stream.average_rate is not None
        tick = int(1 / (stream.time_base * stream.average_rate))
        needed = _needed(task, stream.frames, float(stream.average_rate), spot.clip_u)
        wanted = {frame * tick for frame in needed}
        container.seek(min(wanted), stream=stream)
        found = []
        for frame in container.decode(stream):
            if frame.pts in wanted:
                found.append(frame)
            if frame.pts == max(wanted):
                break
    if len(found) < len(wanted):
        raise DecodeError(f"{pyramids[spot.video]} lacks frames")
    return found


def _decoded(task: str, pyramids: Sequence[str], spot: Spot) -> dict[int, av.VideoFrame]:
    """Decode the same frames with our reader."""
    with VideoReader(pyramids[spot.video]) as reader:
        return dict(reader.frames(_needed(task, len(reader), reader.fps, spot.clip_u)))
