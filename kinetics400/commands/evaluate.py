"""`kinetics400 evaluate`: score a finetuned model on a list of videos."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.fabric import Fabric

from kinetics400.commands.clips import check_clips, test_sampler
from kinetics400.commands.guard import VideoGuard
from kinetics400.commands.plan import Problems, check_dtype, input_dtype, missing_devices
from kinetics400.commands.session import launch, say
from kinetics400.config.evaluation import EvaluateConfig
from kinetics400.config.parse import parse
from kinetics400.data.annotations import VideoTable
from kinetics400.data.dataset import SegmentSampler, ViewDataset
from kinetics400.data.library import open_split
from kinetics400.data.loader import view_loader
from kinetics400.data.shared_memory import clip_bytes, needed_bytes, shortage
from kinetics400.data.storage import write_atomic
from kinetics400.engine.evaluation import Evaluation, ViewTransform, evaluate
from kinetics400.errors import DataError, InputError, MissingInput
from kinetics400.methods.base import Method
from kinetics400.methods.classification import Classification
from kinetics400.models.pretrained import find_weights, load_pretrained, read_weights
from kinetics400.models.vit import VitConfig


def main(argv: Sequence[str]) -> int:
    """Run the command; see kinetics400.__main__ for exit codes."""
    config = parse(
        EvaluateConfig,
        argv,
        prog="kinetics400 evaluate",
        description="Score a finetuned model on the validation videos.",
    )
    subject, protocol = config.subject, config.protocol
    problems = Problems()
    check_dtype(config.device, problems)
    check_clips(config.clips, problems)
    problems.require(subject.batch_size >= 1, "--batch_size must be at least 1")
    problems.require(subject.n_worker >= 0, "--n_worker must be at least 0")
    segments_crops = problems.catch(lambda: parse_views(protocol.views))
    for text in missing_devices(config.device):
        problems.add(text)
    problems.raise_any()
    method = load_classifier(subject.checkpoint, dtype=input_dtype(config.device))
    vit = method.encoder.config
    need = needed_bytes(
        clips_per_batch=math.prod(segments_crops),
        bytes_per_clip=clip_bytes(vit.num_frames, vit.image_size),
        num_workers=subject.n_worker,
        num_loaders=config.device.n_device,
    )
    if short := shortage(need):
        raise InputError(short)
    videos = open_split(
        subject.data_dir, "val", list_path=subject.val_list, num_classes=method.num_classes
    )
    fabric = launch(config.device)
    fabric.setup_module(method)  # moves it and sets its precision, in place
    result = score(
        fabric,
        method,
        videos,
        views=segments_crops,
        segment_frames=test_sampler(config.clips, method.encoder.config.num_frames),
        clips_per_forward=subject.batch_size,
        num_workers=subject.n_worker,
        merge=protocol.merge,
    )
    if fabric.is_global_zero:
        results = summarize(result, views=protocol.views, merge=protocol.merge)
        say(outcome(results))
        if subject.json is not None:
            write_atomic(subject.json, json.dumps(results, indent=2) + "\n")
    return 0


def load_classifier(folder: Path, *, dtype: torch.dtype = torch.float32) -> Classification:
    """Load a finetuned model's folder.

    Raises:
        InputError: it is absent, damaged, or not a classifier.
    """
    found = find_weights(folder, None)
    if found is None:
        raise MissingInput(
            f"--checkpoint {folder} holds no model: expected model.safetensors in it or its model/"
        )
    weights = read_weights(found)
    if weights.sizes is None or "head.weight" not in weights.state:
        raise InputError(f"{found} is not a finetuned classifier's folder")
    try:
        config = VitConfig(**weights.sizes)
    except ValueError as error:
        raise InputError(f"{found}: config.json does not describe a model: {error}") from error
    method = Classification(config, len(weights.state["head.weight"]), dtype=dtype)
    load_pretrained(method, weights)
    return method


def parse_views(views: str) -> tuple[int, int]:
    """Segments and crops of a test protocol.

    >>> parse_views("5x3")
    (5, 3)

    Raises:
        InputError: it is not of the form SxC.
    """
    match = re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d{0,2})", views)
    if not match:
        raise InputError(f"--views {views!r} must be segments x crops, as 5x3 or 1x1")
    return int(match[1]), int(match[2])


def score(
    fabric: Fabric,
    method: Method,
    videos: VideoTable,
    *,
    views: tuple[int, int],
    segment_frames: SegmentSampler,
    clips_per_forward: int,
    num_workers: int,
    merge: str,
    guard: VideoGuard | None = None,
    transform: ViewTransform | None = None,
) -> Evaluation:
    """Score a classifier on videos with a protocol of (segments, crops).

    Without a guard that remembers, a video that ends a worker is named and nothing else.

    Raises:
        Stopped: a video has hung or crashed its decoder.
        DataError: not one video could be read; an accuracy of 0 % would hide it.
    """
    assert isinstance(method, Classification)
    guard = guard or VideoGuard(None, num_workers=num_workers)
    dataset = ViewDataset(
        videos,
        segment_frames=segment_frames,
        num_segments=views[0],
        num_crops=views[1],
        size=method.encoder.config.image_size,
        beats=guard.beats(),
        quarantined=guard.quarantined("val", videos),
    )
    loader = view_loader(
        dataset,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=num_workers,
    )
    with guard.watching(loader, dataset, "val") as watched:
        result = evaluate(
            fabric,
            method,
            watched,
            num_videos=len(videos),
            num_classes=method.num_classes,
            merge=merge,
            clips_per_forward=clips_per_forward,
            transform=transform,
        )
    if result.num_scored == 0:
        raise DataError(
            f"none of the {result.num_videos} videos could be read: {result.failures[0].reason}. "
            "Check that the data folder is there and whole"
        )
    return result


def summarize(result: Evaluation, *, views: str, merge: str) -> dict[str, object]:
    """What results.json holds."""
    return {
        "top1_acc": result.top1_acc,
        "top5_acc": result.top5_acc,
        "num_videos": result.num_videos,
        "num_scored": result.num_scored,
        "views": views,
        "merge": merge,
        "failures": [{"path": bad.path, "reason": bad.reason} for bad in result.failures],
    }


def outcome(results: Mapping[str, object]) -> str:
    """One line on a result, with the counts that belong beside an accuracy."""
    unread = int(str(results["num_videos"])) - int(str(results["num_scored"]))
    counted = f", {unread} of them unreadable and counted as wrong" if unread else ""
    return (
        f"top-1 {results['top1_acc']:.2f} %, top-5 {results['top5_acc']:.2f} % with "
        f"{results['views']} views on {results['num_videos']} videos{counted}"
    )
