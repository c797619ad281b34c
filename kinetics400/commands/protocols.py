"""Test protocols that results are published with, and whether a result follows one."""

from collections.abc import Mapping
from dataclasses import dataclass

from kinetics400.config.common import LabelledClipFlags
from kinetics400.data.checkup import COPIES


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a dataset is tested.

    Attributes:
        dataset: its name.
        num_classes: by which it is known.
        sampling: of the clips.
        views: any of these, each with its softmaxes averaged.
        num_videos: of the whole validation list, by copy.
    """

    dataset: str
    num_classes: int
    sampling: str
    views: tuple[str, ...]
    num_videos: Mapping[str, int]


PROTOCOLS = (
    # 5x3: VideoMAE (scripts/kinetics/*/finetune.sh); 10x3: SlowFast and MAE-ST (FINETUNE.md).
    Protocol(
        dataset="Kinetics-400",
        num_classes=400,
        sampling="dense",
        views=("5x3", "10x3"),
        num_videos={copy: val for copy, (_, val) in COPIES.items()},
    ),
    # VideoMAE (scripts/ssv2/*/finetune.sh); the count from VideoMAE V2's docs/DATASET.md.
    Protocol(
        dataset="Something-Something v2",
        num_classes=174,
        sampling="sparse",
        views=("2x3",),
        num_videos={"published": 24_777},
    ),
)


def why_not_official(
    *,
    num_classes: int,
    num_videos: int,
    num_scored: int,
    views: str,
    merge: str,
    clips: LabelledClipFlags,
) -> list[str]:
    """Reasons why a result must not stand beside published ones; none if it may."""
    protocol = next((one for one in PROTOCOLS if one.num_classes == num_classes), None)
    if protocol is None:
        known = ", ".join(f"{one.dataset} ({one.num_classes})" for one in PROTOCOLS)
        return [f"no protocol is known for a dataset of {num_classes} classes (known: {known})"]
    name, reasons = protocol.dataset, []
    if clips.sampling != protocol.sampling:
        reasons.append(f"{name} is tested with --sampling {protocol.sampling}")
    if clips.target_fps is not None:
        reasons.append(f"{name} is tested without --target_fps")
    if views not in protocol.views:
        reasons.append(f"{name} is tested with {' or '.join(protocol.views)} views")
    if merge != "prob":
        reasons.append(f"{name} is tested with --merge prob")
    if num_videos not in protocol.num_videos.values():
        whole = ", ".join(f"{n:,} ({copy})" for copy, n in protocol.num_videos.items())
        reasons.append(f"{num_videos:,} videos are listed, the whole of {name} has {whole}")
    if num_scored < num_videos:
        reasons.append(f"{num_videos - num_scored:,} of the videos could not be scored")
    return reasons
