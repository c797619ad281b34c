"""Torn pictures that decode without an error; and what they must not be confused with."""

import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.nn import functional

from kinetics400.data import broken
from kinetics400.data.annotations import label_names
from kinetics400.data.broken import BrokenMeter, sudden_changes
from kinetics400.data.checkup import Rules, check_library
from kinetics400.data.checkup_full import check_pictures, examine
from kinetics400.data.findings import WARNING
from kinetics400.data.foreign import farness
from kinetics400.data.torn import LAYERS
from kinetics400.data.torn import network as torn_network
from kinetics400.data.verify import verify_video


@pytest.fixture(scope="module")
def takes(broken_frames: dict[str, ModuleType]) -> list:
    """Two takes, as the benchmark draws them."""
    rng = np.random.default_rng(8)
    return [broken_frames["films"].draw_film(rng, n_frames) for n_frames in (110, 70)]


def write(broken_frames: dict[str, ModuleType], film: object, path: Path) -> str:
    broken_frames["films"].encode(film, str(path), {"preset": "veryfast", "crf": "21"})
    return str(path)


def spans_of(path: str) -> list[tuple[int, int]]:
    meter = BrokenMeter()
    verify_video(path, meter.add)
    return meter.finish()


@pytest.fixture(scope="module")
def torn(
    broken_frames: dict[str, ModuleType], takes: list, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A video with torn blocks in frames 41 to 72."""
    film = takes[0].copy()
    planes = film.luma[41].copy(), film.chroma[41].copy()
    broken_frames["damage"].displace(
        np.random.default_rng(4), planes, np.ones((16, 22), bool), film
    )
    film.luma[41:73], film.chroma[41:73] = planes
    return write(broken_frames, film, tmp_path_factory.mktemp("torn") / "torn.mp4")


def test_a_torn_span_is_named(torn: str) -> None:
    row = examine(torn)
    assert (row["reason"], row["stills"]) == ("", "")  # torn, and therefore not merely still
    first, last = map(int, row["broken"].split("–"))
    assert abs(first - 41) <= 2
    assert abs(last - 72) <= 2


def test_the_doctor_says_which_frames(torn: str, library: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(library, tmp_path / "Kinetics-400"))
    shutil.copy(torn, folder / "videos_val/val_02.mp4")
    checkup = check_library(folder, Rules(4, label_names(), 4, 1))
    (finding,) = check_pictures(checkup, 1)
    named = (finding.reason, finding.split, finding.path, finding.level)
    assert named == ("broken frames", "val", "val_02.mp4", WARNING)
    assert finding.detail == f"frames {examine(torn)['broken']}"


@pytest.mark.parametrize(
    "kind", ["none", "cut there and back", "photograph", "title card", "freeze", "split screen"]
)
def test_an_edited_video_is_not_named(
    broken_frames: dict[str, ModuleType], takes: list, tmp_path: Path, kind: str
) -> None:
    edited = broken_frames["edits"].EDITS[kind](np.random.default_rng(5), *takes)
    assert spans_of(write(broken_frames, edited, tmp_path / "whole.mp4")) == []


def test_spans_are_counted_from_the_first_frame_in_later_windows(
    torn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (span,) = spans_of(torn)
    monkeypatch.setattr(broken, "WINDOW", 80)  # the damage is whole in frames 40 to 109 only
    monkeypatch.setattr(broken, "MARGIN", 1)
    (again,) = spans_of(torn)
    assert abs(again[0] - span[0]) <= 2
    assert abs(again[1] - span[1]) <= 2


def test_changes_are_few_and_exact() -> None:
    """Though the texture of every fourth picture only is known."""
    rng = np.random.default_rng(0)
    textures, thumbs = rng.normal(0, 0.01, (30, 7, 8, 10)), np.full((120, 8, 8), 90, np.uint8)
    textures[11:18] += 1
    thumbs[41:71] += 60
    changes = sudden_changes(textures, thumbs)
    assert {41, 71} <= set(changes)
    assert len(changes) <= broken.MOST_CHANGES
    assert sudden_changes(textures[:3], thumbs[:12]) == []


def test_a_video_without_a_frame_has_no_span() -> None:
    assert BrokenMeter().finish() == []


def test_the_network_is_the_one_that_torch_computes() -> None:
    """On a picture that is not square, from the stored weights."""
    net, rng = torn_network(), np.random.default_rng(0)
    pictures = [
        (rng.integers(0, 256, (48, 80), dtype=np.uint8), rng.integers(0, 256, (2, 24, 40)))
        for _ in range(3)
    ]
    codes = []
    for luma, chroma in pictures:
        x = functional.pixel_unshuffle(torch.from_numpy(luma)[None, None].float(), 2)
        colour = torch.from_numpy(chroma)[None].float()
        x = torch.cat([(x - 118) / 52, (colour - 128) / 20], 1)
        for (weight, bias), (stride, gap) in zip(net.layers, LAYERS, strict=True):
            kernel = torch.from_numpy(weight).reshape(3, 3, x.shape[1], -1).permute(3, 2, 0, 1)
            x = functional.conv2d(x, kernel, torch.from_numpy(bias), stride, gap, gap).relu()
        codes.append(x)
    before, inside, after = codes
    apart = torch.minimum((inside - before).abs(), (inside - after).abs())
    found = torch.cat([inside, apart, torch.maximum(before, after)], 1)[0].permute(1, 2, 0)
    (weight, bias), (last, shift) = [[torch.from_numpy(p) for p in pair] for pair in net.head]
    found = ((found @ weight + bias).relu() @ last + shift).permute(2, 0, 1)
    expected = functional.avg_pool2d(found, 2)[0].numpy()
    ours = net.logits(*(net.encode(luma, chroma) for luma, chroma in pictures))
    assert ours.shape == (3, 5)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_moved_part_is_near_and_a_new_one_is_far() -> None:
    rng = np.random.default_rng(2)
    picture = rng.integers(0, 256, (64, 64)).astype(np.float32)
    moved = np.roll(picture, (4, -4), (0, 1))
    moved[24:32, 24:32] += 40
    far = farness(moved, [np.zeros_like(picture), picture])
    assert far[3, 3] == pytest.approx(40, abs=1e-3)
    inner = far[1:-1, 1:-1].copy()
    inner[2, 2] = 0
    assert inner.max() < 1e-3
