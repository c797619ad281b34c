"""Which results may be called official; expected values are typed, not taken from the table."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kinetics400.commands import protocols
from kinetics400.commands.evaluation_report import outcome, summarize
from kinetics400.commands.protocols import Protocol, why_not_official
from kinetics400.config.common import LabelledClipFlags
from kinetics400.data.dataset import Unreadable
from kinetics400.engine.evaluation import Evaluation

KINETICS: dict[str, Any] = {
    **{"num_classes": 400, "num_videos": 19_796, "num_scored": 19_796},
    **{"views": "5x3", "merge": "prob", "clips": LabelledClipFlags()},
}
SPARSE = LabelledClipFlags(sampling="sparse", sampling_rate=2)
SSV2: dict[str, Any] = {
    **{"num_classes": 174, "num_videos": 24_777, "num_scored": 24_777},
    **{"views": "2x3", "merge": "prob", "clips": SPARSE},
}


@pytest.mark.parametrize(
    "result",
    [
        KINETICS,
        KINETICS | {"views": "10x3"},
        KINETICS | {"clips": LabelledClipFlags(sampling_rate=2)},  # the model's own
        *(KINETICS | {"num_videos": n, "num_scored": n} for n in (19_881, 19_906, 19_761, 19_404)),
        SSV2,
    ],
)
def test_published_protocols_on_all_videos_are_official(result: dict[str, Any]) -> None:
    assert why_not_official(**result) == []


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (KINETICS | {"views": "1x1"}, "Kinetics-400 is tested with 5x3 or 10x3 views"),
        (KINETICS | {"views": "2x3"}, "Kinetics-400 is tested with 5x3 or 10x3 views"),
        (KINETICS | {"views": "5x4"}, "Kinetics-400 is tested with 5x3 or 10x3 views"),
        (KINETICS | {"merge": "logit"}, "Kinetics-400 is tested with --merge prob"),
        (KINETICS | {"clips": SPARSE}, "Kinetics-400 is tested with --sampling dense"),
        (
            KINETICS | {"clips": LabelledClipFlags(target_fps=30.0)},
            "Kinetics-400 is tested without --target_fps",
        ),
        (
            KINETICS | {"num_videos": 19_795, "num_scored": 19_795},
            "19,795 videos are listed, the whole of Kinetics-400 has 19,796",
        ),
        (KINETICS | {"num_scored": 19_790}, "6 of the videos could not be scored"),
        (SSV2 | {"views": "5x3"}, "Something-Something v2 is tested with 2x3 views"),
        (SSV2 | {"clips": LabelledClipFlags()}, "v2 is tested with --sampling sparse"),
        (SSV2 | {"num_videos": 1000, "num_scored": 1000}, "1,000 videos are listed"),
        (KINETICS | {"num_classes": 399}, "no protocol is known for a dataset of 399 classes"),
    ],
)
def test_each_departure_is_said(result: dict[str, Any], reason: str) -> None:
    (said,) = why_not_official(**result)
    assert reason in said


def test_all_departures_are_said_at_once() -> None:
    wrong = {"views": "1x1", "merge": "logit", "num_videos": 9, "num_scored": 8}
    assert len(why_not_official(**(KINETICS | wrong))) == 4


# --- what is said of it ---------------------------------------------------------------------------


@pytest.fixture
def small_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset of 6 classes and 4 videos."""
    protocol = Protocol(
        dataset="Small", num_classes=6, sampling="dense", views=("5x3",), num_videos={"its": 4}
    )
    monkeypatch.setattr(protocols, "PROTOCOLS", (protocol,))


def results(unread: int = 0) -> dict[str, Any]:
    scores = torch.eye(6, dtype=torch.float64)[:4]
    scores[:unread] = float("nan")
    result = Evaluation(
        scores=scores,
        labels=torch.tensor([0, 1, 2, 2]),
        failures=[Unreadable(f"{i}.mp4", "gone") for i in range(unread)],
    )
    return summarize(result, views="5x3", merge="prob", clips=LabelledClipFlags())


def test_an_official_result_says_so(small_protocol: None) -> None:
    found = results()
    assert (found["official"], found["not_official_because"]) == (True, [])
    assert found["top1_acc"] == 75
    # Wilson's interval for 3 of 4, by hand: (0.75 + 0.48018 +- 0.69961) / 1.96036... of scipy.
    assert found["top1_interval"] == pytest.approx([30.0642, 95.4413], abs=1e-3)
    text = outcome(found)
    assert text.startswith("top-1 75.00 % (95 % interval 30.06 to 95.44), top-5 100.00 % with 5x3")
    assert text.endswith("on 4 videos. Official: the published protocol, on all videos")


def test_a_result_with_an_unreadable_video_is_not_official(small_protocol: None) -> None:
    found = results(unread=1)
    assert found["official"] is False
    assert (found["top1_acc"], found["num_scored"]) == (50, 3)
    assert found["failures"] == [{"path": "0.mp4", "reason": "gone"}]
    assert found["mean_class_acc"] == pytest.approx((0 + 100 + 50) / 3)
    text = outcome(found)
    assert "on 4 videos, 1 of them not scored and counted as wrong" in text
    assert text.endswith("Not official: 1 of the videos could not be scored")


def test_results_of_an_earlier_version_can_still_be_told(tmp_path: Path) -> None:
    """A finished run repeats what its results.json says."""
    old = {"top1_acc": 50.0, "top5_acc": 100.0, "num_videos": 8, "num_scored": 8, "views": "5x3"}
    text = outcome(json.loads(json.dumps(old)))
    assert "top-1 50.00 %" in text
    assert "fficial" not in text
