"""What is said of an evaluation, and what it leaves: results as JSON, and tables as CSV.

Shapes: N videos, K classes.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kinetics400.commands.protocols import why_not_official
from kinetics400.config.common import LabelledClipFlags
from kinetics400.data.annotations import VideoTable
from kinetics400.data.storage import disk_errors, write_atomic
from kinetics400.engine.evaluation import Evaluation
from kinetics400.engine.metrics import (
    best_classes,
    class_accuracies,
    confusion_matrix,
    wilson_interval,
)
from kinetics400.errors import InputError

Row = Sequence[object]
FILES = ("results.json", "predictions.csv", "per_class.csv", "confusion.csv")


def summarize(
    result: Evaluation, *, views: str, merge: str, clips: LabelledClipFlags
) -> dict[str, Any]:
    """What results.json holds of any evaluation; intervals are 95 %, in percent."""
    num_classes = result.scores.shape[1]
    by_class = class_accuracies(result.correct(1), result.labels, num_classes)
    not_official = why_not_official(
        num_classes=num_classes,
        num_videos=result.num_videos,
        num_scored=result.num_scored,
        views=views,
        merge=merge,
        clips=clips,
    )
    return {
        "top1_acc": result.top1_acc,
        "top1_interval": interval(result.top1_acc, result.num_videos),
        "top5_acc": result.top5_acc,
        "top5_interval": interval(result.top5_acc, result.num_videos),
        "mean_class_acc": by_class.nanmean().item(),
        "num_videos": result.num_videos,
        "num_scored": result.num_scored,
        "num_classes": num_classes,
        "views": views,
        "merge": merge,
        "official": not not_official,
        "not_official_because": not_official,
        "failures": [{"path": bad.path, "reason": bad.reason} for bad in result.failures],
    }


def interval(acc: float, num_videos: int) -> list[float]:
    """95 % interval of an accuracy in percent, in percent."""
    return list(wilson_interval(round(acc * num_videos / 100), num_videos))


def outcome(results: Mapping[str, Any]) -> str:
    """A result in a line or two, with the counts that belong beside an accuracy."""
    num_videos = int(results["num_videos"])
    unread = num_videos - int(results["num_scored"])
    counted = f", {unread:,} of them not scored and counted as wrong" if unread else ""
    low, high = interval(results["top1_acc"], num_videos)
    text = (
        f"top-1 {results['top1_acc']:.2f} % (95 % interval {low:.2f} to {high:.2f}), "
        f"top-5 {results['top5_acc']:.2f} % with {results['views']} views on "
        f"{num_videos:,} videos{counted}"
    )
    if results.get("official"):
        return f"{text}. Official: the published protocol, on all videos"
    reasons = results.get("not_official_because")
    return f"{text}. Not official: {'; '.join(reasons)}" if reasons else text


# --- files ----------------------------------------------------------------------------------------


def check_output_dir(folder: Path) -> None:
    """Refuse a folder that cannot be written, before hours are spent on what belongs there.

    Raises:
        InputError: it is or lies below a file, may not be written, or is a run directory, whose
            results.json is the run's own.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"--output_dir {folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--output_dir {folder}: nothing can be written into {there}")
    if (folder / "checkpoints").is_dir():
        raise InputError(
            f"--output_dir {folder} is a run directory, and its results.json is the run's own: "
            f"choose another folder, as {folder / 'evaluation'}"
        )


def write_report(
    folder: Path,
    results: Mapping[str, Any],
    result: Evaluation,
    videos: VideoTable,
    *,
    names: Sequence[str],
    merge: str,
) -> None:
    """Write `FILES`.

    Raises:
        StorageError: the disk is full, read-only or failing.
    """
    with disk_errors(f"writing {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    contents = (
        json.dumps(results, indent=2).encode() + b"\n",
        as_csv(prediction_rows(result, videos, merge)),
        as_csv(class_rows(result, names)),
        as_csv(confusion_rows(result, names)),
    )
    for name, content in zip(FILES, contents, strict=True):
        write_atomic(folder / name, content)


def as_csv(rows: Iterable[Row]) -> bytes:
    """Rows as CSV in UTF-8 (RFC 4180, lines end in LF); what reads CSV gets every name back.

    A lone surrogate, which a config.json can hold and UTF-8 cannot, becomes its escape.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def prediction_rows(result: Evaluation, videos: VideoTable, merge: str) -> Iterable[Row]:
    """One row per listed video; one that was not scored has its reason instead of a prediction."""
    yield ("index", "path", "label", "prediction", "top5", "label_probability", "failure")
    reasons = {bad.path: bad.reason for bad in result.failures}
    best = best_classes(result.scores.nan_to_num(), 5).tolist()
    # Averaged softmaxes are probabilities; averaged logits become some.
    shares = result.scores if merge == "prob" else result.scores.softmax(dim=1)
    of_label = shares.gather(1, result.labels[:, None])[:, 0].tolist()
    for index, is_scored in enumerate(result.is_scored().tolist()):
        who = (index, videos.name(index), videos.label(index))
        if is_scored:
            top5 = " ".join(map(str, best[index]))
            yield (*who, best[index][0], top5, f"{of_label[index]:.6g}", "")
        else:
            yield (*who, "", "", "", reasons[videos.path(index)])


def class_rows(result: Evaluation, names: Sequence[str]) -> Iterable[Row]:
    """One row per class; its accuracies are of all its videos, and empty where it has none."""
    yield ("label", "name", "num_videos", "num_scored", "top1_acc", "top5_acc")
    num_classes = len(names)
    listed = result.labels.bincount(minlength=num_classes).tolist()
    scored = result.labels[result.is_scored()].bincount(minlength=num_classes).tolist()
    top1, top5 = (
        class_accuracies(result.correct(k), result.labels, num_classes).tolist() for k in (1, 5)
    )
    for label, name in enumerate(names):
        accuracies = (f"{acc[label]:.4f}" if listed[label] else "" for acc in (top1, top5))
        yield (label, name, listed[label], scored[label], *accuracies)


def confusion_rows(result: Evaluation, names: Sequence[str]) -> Iterable[Row]:
    """One row per label, one column per prediction; with `not_scored` a row sums to its videos."""
    num_classes = len(names)
    yield ("label", "name", *range(num_classes), "not_scored")
    scored = result.is_scored()
    predictions = best_classes(result.scores[scored], 1)[:, 0]
    counts = confusion_matrix(result.labels[scored], predictions, num_classes)
    missed = result.labels[~scored].bincount(minlength=num_classes)
    table = torch.cat((counts, missed[:, None]), dim=1).tolist()
    for label, (name, row) in enumerate(zip(names, table, strict=True)):
        yield (label, name, *row)
