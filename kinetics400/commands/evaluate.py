"""`kinetics400 evaluate`: score a finetuned model on a list of videos."""

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from kinetics400 import __version__
from kinetics400.commands.clips import check_clips, test_sampler
from kinetics400.commands.evaluation_report import (
    FILES,
    check_output_dir,
    outcome,
    summarize,
    write_report,
)
from kinetics400.commands.evaluation_subject import (
    RUN_FLAGS,
    RunFacts,
    class_names,
    load_classifier,
    read_run,
)
from kinetics400.commands.guard import VideoGuard
from kinetics400.commands.plan import Problems, check_dtype, input_dtype, missing_devices
from kinetics400.commands.progress import ProgressMeter
from kinetics400.commands.session import launch
from kinetics400.commands.telling import say
from kinetics400.config.evaluation import EvaluateConfig
from kinetics400.config.parse import flatten, named_flags, parse
from kinetics400.data.annotations import VideoTable
from kinetics400.data.dataset import SegmentSampler, VideoViews, ViewDataset
from kinetics400.data.library import open_split
from kinetics400.data.loader import view_loader
from kinetics400.data.shared_memory import clip_bytes, needed_bytes, shortage
from kinetics400.engine.evaluation import Evaluation, ViewTransform, evaluate
from kinetics400.engine.kept_scores import KeptScores, weights_digest
from kinetics400.errors import DataError, InputError, MissingInput
from kinetics400.methods.base import Method
from kinetics400.methods.classification import Classification


def main(argv: Sequence[str]) -> int:
    """Run the command; see kinetics400.__main__ for exit codes."""
    config, facts = parse_with_run(argv)
    subject, protocol = config.subject, config.protocol
    problems = Problems()
    check_dtype(config.device, problems)
    problems.require(
        config.device.strategy != "fsdp",
        "--strategy fsdp is for training; each device evaluates with the whole model: leave "
        "--strategy out",
    )
    check_clips(config.clips, problems)
    problems.require(subject.batch_size >= 1, "--batch_size must be at least 1")
    problems.require(subject.n_worker >= 0, "--n_worker must be at least 0")
    problems.require(
        0 < subject.decode_timeout < math.inf,
        f"--decode_timeout {subject.decode_timeout} must be a positive number of seconds",
    )
    segments_crops = problems.catch(lambda: parse_views(protocol.views))
    if subject.output_dir is not None:
        problems.catch(partial(check_output_dir, subject.output_dir))
    for text in missing_devices(config.device):
        problems.add(text)
    problems.raise_any()
    method = load_classifier(
        subject.checkpoint,
        dtype=input_dtype(config.device),
        num_frames=subject.num_frames,
        input_size=subject.input_size,
    )
    names = class_names(subject.checkpoint, subject.label_names, facts, method.num_classes)
    videos = open_videos(config, method)
    check_memory(config, method, math.prod(segments_crops))
    origin = origins(facts, argv)
    say(describe(config, facts, method, origin))
    fabric = launch(config.device)
    about = what_decides(config, method, videos)  # before the precision's changes
    fabric.setup_module(method)  # moves it and sets its precision, in place
    guard = VideoGuard(
        subject.output_dir, num_workers=subject.n_worker, timeout=subject.decode_timeout
    )
    kept = None
    if subject.output_dir is not None:
        kept = KeptScores(subject.output_dir, fabric, about)
        if kept.done and fabric.is_global_zero:
            say(f"continuing: {len(kept.done):,} of {len(videos):,} videos are scored already")
    started = time.monotonic()
    progress = (
        ProgressMeter("evaluating", len(videos), "videos")
        if fabric.is_global_zero
        else nullcontext()
    )
    with progress as meter:
        result = score(
            fabric,
            method,
            videos,
            views=segments_crops,
            segment_frames=test_sampler(config.clips, method.encoder.config.num_frames),
            clips_per_forward=subject.batch_size,
            num_workers=subject.n_worker,
            merge=protocol.merge,
            guard=guard,
            meter=meter,
            kept=kept,
        )
    if fabric.is_global_zero:
        seconds = time.monotonic() - started
        results = summarize(result, views=protocol.views, merge=protocol.merge, clips=config.clips)
        results |= circumstances(config, method, origin)
        num_here = result.num_videos - (0 if kept is None else len(kept.done))
        results |= {"seconds": seconds, "videos_per_sec": num_here / seconds}
        say(f"{outcome(results)}\n{seconds:.1f} s, {results['videos_per_sec']:.1f} videos/s")
        if subject.output_dir is not None:
            write_report(
                subject.output_dir, results, result, videos, names=names, merge=protocol.merge
            )
            say(f"{', '.join(FILES)} lie in {subject.output_dir}")
    if kept is not None:
        kept.close()
    return 0


def parse_with_run(argv: Sequence[str]) -> tuple[EvaluateConfig, RunFacts]:
    """The flags, with what the model's run knows as their defaults.

    Raises:
        InputError: a file of the run is damaged.
    """
    read = partial(
        parse,
        EvaluateConfig,
        prog="kinetics400 evaluate",
        description="Score a finetuned model on the validation videos.",
    )
    facts = read_run(read(argv).subject.checkpoint)
    return read([*facts.as_flags(argv), *argv]), facts


def origins(facts: RunFacts, argv: Sequence[str]) -> dict[str, str]:
    """Where each setting that a run can know comes from: given, its run, or assumed."""
    of_run = named_flags(facts.as_flags(argv))
    known = {name: "run" for name in of_run} | {name: "given" for name in named_flags(argv)}
    return {name: known.get(name, "assumed") for name in RUN_FLAGS}


def describe(
    config: EvaluateConfig, facts: RunFacts, method: Classification, origin: Mapping[str, str]
) -> str:
    """Say what is scored, and where each setting comes from."""
    vit, values = method.encoder.config, flatten(config)
    lines = [
        f"{config.subject.checkpoint}: {method.num_classes} classes, {vit.num_frames} frames of "
        f"{vit.image_size}x{vit.image_size} pixels"
    ]
    for kind, text in (
        ("given", "as given"),
        ("run", f"from {', '.join(map(str, facts.sources))}"),
        ("assumed", "assumed: nobody says otherwise"),
    ):
        names = [name for name in RUN_FLAGS if origin[name] == kind and values[name] is not None]
        if names:
            lines.append(f"  {', '.join(f'{name} {values[name]}' for name in names)} ({text})")
    return "\n".join(lines)


def circumstances(
    config: EvaluateConfig, method: Classification, origin: Mapping[str, str]
) -> dict[str, Any]:
    """What else results.json holds of `evaluate`, so that it can be repeated and compared."""
    values, vit = flatten(config), method.encoder.config
    said = ("checkpoint", "data_dir", "val_list", "sampling", "sampling_rate", "target_fps")
    return {
        **{name: str(v) if isinstance(v := values[name], Path) else v for name in said},
        "assumed": [name for name in said if origin.get(name) == "assumed"],
        "num_frames": vit.num_frames,
        "input_size": vit.image_size,
        "precision": config.device.precision,
        "n_device": config.device.n_device,
        "version": __version__,
    }


def what_decides(
    config: EvaluateConfig, method: Classification, videos: VideoTable
) -> dict[str, Any]:
    """Everything that a video's scores depend on, and its place in the list, as JSON has it."""
    of_clips = ("sampling", "sampling_rate", "target_fps", "views", "merge", "precision", "dtype")
    values = flatten(config)
    return {
        **{name: values[name] for name in of_clips},
        "num_frames": method.encoder.config.num_frames,
        "input_size": method.encoder.config.image_size,
        "weights": weights_digest(method),
        "videos": videos.digest(),
        "folder": videos.root,
        "version": __version__,
    }


def open_videos(config: EvaluateConfig, method: Classification) -> VideoTable:
    """Open the list.

    Raises:
        InputError: it is absent or has bad lines, as labels that the head does not have.
    """
    subject, num_classes = config.subject, method.num_classes
    try:
        return open_split(
            subject.data_dir, "val", list_path=subject.val_list, num_classes=num_classes
        )
    except MissingInput:
        raise
    except InputError as error:
        raise InputError(f"{error}\n(the model tells {num_classes} classes apart)") from error


def check_memory(config: EvaluateConfig, method: Classification, num_views: int) -> None:
    """Refuse views that the loader's workers cannot hand over.

    Raises:
        InputError: shared memory is too small.
    """
    vit = method.encoder.config
    need = needed_bytes(
        clips_per_batch=num_views,
        bytes_per_clip=clip_bytes(vit.num_frames, vit.image_size),
        num_workers=config.subject.n_worker,
        num_loaders=config.device.n_device,
    )
    if short := shortage(need):
        raise InputError(short)


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
    meter: ProgressMeter | None = None,
    transform: ViewTransform | None = None,
    kept: KeptScores | None = None,
) -> Evaluation:
    """Score a classifier on videos with a protocol of (segments, crops).

    Without a guard that remembers, a video that ends a worker is named and nothing else; without
    kept scores, what ends half-way begins anew.

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
        done=() if kept is None else kept.done,
    )
    before = 0 if kept is None else len(kept.done)
    with guard.watching(loader, dataset, "val") as watched:
        result = evaluate(
            fabric,
            method,
            watched if meter is None else metered(watched, meter, fabric.world_size, before),
            num_videos=len(videos),
            num_classes=method.num_classes,
            merge=merge,
            clips_per_forward=clips_per_forward,
            transform=transform,
            path_of=videos.path,
            kept=kept,
        )
    if result.num_scored == 0:
        raise DataError(
            f"none of the {result.num_videos} videos could be scored: {result.failures[0].reason}. "
            "Check that the data folder is there and whole"
        )
    return result


def metered(
    videos: Iterable[VideoViews], meter: ProgressMeter, world_size: int, before: int
) -> Iterator[VideoViews]:
    """Show how far this rank is; the others are as far. Some videos were done before."""
    for done, video in enumerate(videos, 1):
        yield video
        meter.update(min(before + done * world_size, meter.total))
