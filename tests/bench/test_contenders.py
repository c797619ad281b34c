from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from kinetics400.bench import contenders, peers
from kinetics400.bench.contenders import (
    AUGMENTED,
    DECODING,
    DECORD,
    EVAL,
    FINETUNE,
    FLOOR,
    ORIGINAL,
    PRETRAIN,
    PYAV,
    PYRAMID,
    TORCHCODEC,
    Contender,
    Spot,
    all_contenders,
    clip_dataset,
    spread_spots,
    video_table,
)
from kinetics400.bench.store import Store
from kinetics400.data import keys
from kinetics400.data.decode import DecodeError, VideoReader

SPOT = spread_spots(1, 1)[0]


def pixels(frame: av.VideoFrame) -> bytes:
    return frame.to_ndarray().tobytes()


def of(store: Store, task: str, name: str) -> Contender:
    everyone = all_contenders(store.originals, store.pyramids)
    (found,) = [one for one in everyone if (one.task, one.name) == (task, name)]
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The frames that our readers were asked for."""
    asked: list[list[int]] = []
    frames = VideoReader.frames

    def noted(self: VideoReader, indices: list[int]):
        asked.append(list(indices))
        return frames(self, indices)

    monkeypatch.setattr(VideoReader, "frames", noted)
    return asked


def test_everybody_takes_part(store: Store) -> None:
    training = [DECORD, TORCHCODEC, PYAV, ORIGINAL, PYRAMID]
    assert [(one.task, one.name) for one in all_contenders(store.originals, store.pyramids)] == [
        *((PRETRAIN, name) for name in [*training, FLOOR, DECODING]),
        *((FINETUNE, name) for name in [*training, AUGMENTED, FLOOR, DECODING]),
        *((EVAL, name) for name in [DECORD, ORIGINAL, PYRAMID, FLOOR, DECODING]),
    ]


def test_spots_are_spread_evenly_over_time_and_videos() -> None:
    spots = spread_spots(4, 5)
    assert Counter(spot.video for spot in spots) == {0: 5, 1: 5, 2: 5, 3: 5}
    assert sorted(int(20 * spot.clip_u) for spot in spots) == list(range(20))
    for video in range(4):  # every video has early and late ones
        own = [spot.clip_u for spot in spots if spot.video == video]
        assert [int(5 * u) for u in own] == list(range(5))
    assert len({spot.slot for spot in spots}) == 20
    assert spread_spots(4, 5) == spots
    assert spread_spots(4, 5, seed=1) != spots


def test_spots_hold_the_numbers_that_the_data_set_draws() -> None:
    for spot in spread_spots(2, 2):
        key = keys.sample_key(contenders.SEED, 0, spot.slot)
        assert spot.clip_u == keys.uniform(key, "clip", 1).item()
        assert spot.crop_u[:2] == keys.uniform(key, "crop", 2).tolist()


@pytest.mark.parametrize("task", [PRETRAIN, FINETUNE])
def test_ours_and_theirs_read_the_same_clip(
    task: str, store: Store, asked: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames move to the layer's grid, no more; and with the grid of 1 pixels agree as well."""
    of(store, task, PYRAMID).load(SPOT)
    of(store, task, DECODING).load(SPOT)
    ours, decoded = asked
    assert ours == decoded
    floor = of(store, task, FLOOR).load(SPOT)
    with VideoReader(store.pyramids[0]) as reader:
        plain = dict(reader.frames(ours))
    assert [pixels(frame) for frame in floor] == [pixels(plain[i]) for i in sorted(set(ours))]
    assert all(frame % 4 == 0 for frame in ours)
    recipe = contenders.RECIPES[task]
    theirs = recipe.frames(100, 16, 4, SPOT.clip_u)
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 3

    monkeypatch.setitem(contenders.GRIDS, task, 1)
    sample = of(store, task, ORIGINAL).load(SPOT)
    clip = peers.pyav_clip(store.originals[0], recipe, SPOT.clip_u, SPOT.crop_u)
    assert np.abs(sample.clips[0].numpy().astype(float) - clip.numpy()).mean() < 0.5


def test_units_are_what_is_delivered(store: Store) -> None:
    everyone = {(c.task, c.name): c for c in all_contenders(store.originals, store.pyramids)}
    samples = everyone[FINETUNE, DECORD].load(SPOT)
    assert len(samples) == everyone[FINETUNE, DECORD].units == 2
    rest = [one for key, one in everyone.items() if key != (FINETUNE, DECORD)]
    assert {one.units for one in rest} == {1}
    assert everyone[EVAL, PYRAMID].load(SPOT).views.shape == (15, 3, 16, 224, 224)
    assert everyone[PRETRAIN, PYRAMID].load(SPOT).clips[0].shape == (3, 16, 224, 224)


def test_two_samples_of_a_decode_have_two_crops(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(peers, "decord_finetuning", lambda path, u, crops: asked.append(crops))
    of(store, FINETUNE, DECORD).load(SPOT)
    ((first, second),) = asked
    assert first == SPOT.crop_u
    assert first[:4] != second[:4]


def test_the_floor_of_the_test_decodes_what_the_views_need(
    store: Store, asked: list[list[int]]
) -> None:
    for name in (PYRAMID, DECODING):
        of(store, EVAL, name).load(SPOT)
    assert asked[0] == asked[1]
    assert len(asked[0]) == 25  # every fourth of 100
    assert len(of(store, EVAL, FLOOR).load(SPOT)) == 25


def test_the_second_video_is_read_for_the_second_video(store: Store) -> None:
    """It is too short for a clip, which is then the same from every start."""
    spots = [Spot(1, slot, 0.5, SPOT.crop_u) for slot in (0, 1)]
    first, second = (of(store, PRETRAIN, PYRAMID).load(spot) for spot in spots)
    assert first.clips[0][:, -1].equal(first.clips[0][:, -2])  # its last frame repeats
    assert not first.clips[0].equal(second.clips[0])  # other crops
    for name in (DECORD, PYAV):
        of(store, PRETRAIN, name).load(spots[0])


def test_augmented_samples_are_normalised(store: Store) -> None:
    batch = of(store, FINETUNE, AUGMENTED).load(SPOT)
    assert (batch.clips.shape, batch.clips.dtype) == ((1, 3, 16, 224, 224), torch.float32)
    assert -2.2 < batch.clips.min() < 0 < batch.clips.max() < 2.7


def test_a_video_that_was_replaced_by_another_is_an_error(store: Store, tmp_path: Path) -> None:
    """The data set reads another video in its place, which must not be timed for it."""
    absent = str(tmp_path / "absent.mp4")
    dataset = clip_dataset(video_table([absent, store.pyramids[0]]), PRETRAIN)
    assert any(not dataset[0, 0, slot].failures[0].gave_up for slot in range(3))
    broken = Store([absent, store.originals[0]], [absent, store.pyramids[0]], {}, [])
    for task, name in ((PRETRAIN, PYRAMID), (FINETUNE, AUGMENTED), (EVAL, PYRAMID)):
        with pytest.raises(DecodeError, match="absent"):
            of(broken, task, name).load(SPOT)
