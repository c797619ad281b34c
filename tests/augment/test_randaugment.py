"""RandAugment: what a text means, what is drawn from a key, and that it is done to the clips."""

import re

import pytest
import torch
from timm.data import auto_augment

from kinetics400.augment.randaugment import (
    NAMES,
    OPERATIONS,
    Draw,
    RandAugment,
    _groups,
    augmented,
    parse_randaugment,
)
from kinetics400.bench.augment_peers import timm_operation, to_clip, to_images

PUBLISHED = parse_randaugment("rand-m7-n4-mstd0.5-inc1")


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def many_draws(randaugment: RandAugment, count: int = 2000) -> list[list[Draw]]:
    return randaugment.draw(torch.arange(count))


# --- the text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "magnitude", "num_layers", "magnitude_std", "probability"),
    [
        ("rand-m7-n4-mstd0.5-inc1", 7, 4, 0.5, 0.5),
        ("rand-m9-n2-mstd0-inc1-p0.25", 9, 2, 0.0, 0.25),
        ("rand-inc1-p1-mstd1.5-n1-m10", 10, 1, 1.5, 1.0),
        ("rand-m7-mstd0.5-inc1", 7, 2, 0.5, 0.5),
    ],
)
def test_texts_mean_what_they_mean_to_timm(
    text: str, magnitude: int, num_layers: int, magnitude_std: float, probability: float
) -> None:
    expected = RandAugment(
        magnitude=magnitude,
        num_layers=num_layers,
        magnitude_std=magnitude_std,
        probability=probability,
    )
    assert parse_randaugment(text) == expected
    theirs = auto_augment.rand_augment_transform(text, {})
    assert theirs.num_layers == num_layers
    assert tuple(operation.name for operation in theirs.ops) == NAMES
    assert {operation.magnitude for operation in theirs.ops} == {magnitude}
    assert {operation.magnitude_std for operation in theirs.ops} == {magnitude_std}
    assert {operation.prob for operation in theirs.ops} == {probability}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rand",
        "auto-m7-n4-mstd0.5-inc1",
        "rand-m7-n4-mstd0.5",
        "rand-n4-mstd0.5-inc1",
        "rand-m7-n4-mstd0.5-inc0",
        "rand-m7-n4-mstd0.5-inc1-w0",
        "rand-m7-n4-mstd0.5-inc1-mmax5",
        "rand-m7-n4-m7-mstd0.5-inc1",
        "rand-m7-n4-mstd0.5-inc1-",
        "rand-m7.5-n4-mstd0.5-inc1",
        "rand-m7-n4-mstd.5.5-inc1",
        "rand-m11-n4-mstd0.5-inc1",
        "rand-m7-n0-mstd0.5-inc1",
        "rand-m7-n4-mstd0.5-inc1-p1.5",
        "rand-m-7-n4-mstd0.5-inc1",
    ],
)
def test_other_texts_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s){re.escape(repr(text))}.*rand-mM-nN-mstdS-inc1"):
        parse_randaugment(text)


# --- what is drawn --------------------------------------------------------------------------------


@pytest.mark.parametrize("magnitude", [0.0, 2.5, 6.31, 7.0, 9.99, 10.0])
@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_timms(name: str, magnitude: float, monkeypatch: pytest.MonkeyPatch) -> None:
    level = auto_augment.LEVEL_TO_ARG[name]
    for sign, number in ((1, 0.3), (-1, 0.7)):  # timm negates above a half
        monkeypatch.setattr(auto_augment.random, "random", lambda n=number: n)
        expected = (None,) if level is None else level(magnitude, {})
        assert (Draw(name, True, magnitude, sign).argument,) == expected


def test_the_key_decides_not_the_place_in_the_batch() -> None:
    keys = torch.tensor([5, -7, 2**62, 0])
    whole = PUBLISHED.draw(keys)
    assert [PUBLISHED.draw(key.view(1))[0] for key in keys] == whole
    assert PUBLISHED.draw(keys.flip(0)) == whole[::-1]


def test_layers_and_their_parts_are_drawn_independently() -> None:
    draws = many_draws(PUBLISHED)
    assert {len(clip) for clip in draws} == {4}
    for part in ("name", "applied", "magnitude", "sign"):
        columns = list(
            zip(*[[getattr(draw, part) for draw in clip] for clip in draws], strict=True)
        )
        assert len(set(columns)) == 4, part
    applied = [draw.applied for clip in draws for draw in clip]
    negative = [draw.sign < 0 for clip in draws for draw in clip]
    both = sum(a and b for a, b in zip(applied, negative, strict=True))
    assert abs(both / len(applied) - 0.25) < 0.02
    assert {draw.sign for clip in draws for draw in clip} == {-1, 1}


def test_magnitudes_follow_their_standard_deviation_and_are_cut() -> None:
    drawn = torch.tensor([d.magnitude for clip in many_draws(PUBLISHED) for d in clip])
    assert abs(drawn.mean().item() - 7) < 0.03 and abs(drawn.std().item() - 0.5) < 0.02
    wide = many_draws(parse_randaugment("rand-m7-n4-mstd9-inc1"), 200)
    magnitudes = [draw.magnitude for clip in wide for draw in clip]
    assert min(magnitudes) == 0 and max(magnitudes) == 10
    fixed = many_draws(parse_randaugment("rand-m3-n2-inc1"), 20)
    assert {draw.magnitude for clip in fixed for draw in clip} == {3.0}


def test_probability_decides_how_many_are_applied() -> None:
    for text, low, high in (("0.2", 0.18, 0.22), ("0", 0, 0), ("1", 1, 1)):
        draws = many_draws(parse_randaugment(f"rand-m7-n4-mstd0.5-inc1-p{text}"))
        share = sum(draw.applied for clip in draws for draw in clip) / (4 * len(draws))
        assert low <= share <= high


# --- what is done ---------------------------------------------------------------------------------


@pytest.mark.parametrize("height,width", [(24, 24), (30, 41)])
def test_operations_follow_each_other_as_in_timm(height: int, width: int) -> None:
    """Every clip of a strided batch, against timm frame by frame with the same arguments."""
    clips = noise(12, 5, height, width, 3).permute(0, 4, 1, 2, 3)
    keys = torch.arange(12) + 50
    results = parse_randaugment("rand-m6-n3-mstd2-inc1-p0.8")(clips, keys)
    draws = parse_randaugment("rand-m6-n3-mstd2-inc1-p0.8").draw(keys)
    assert results.is_contiguous() and results.dtype == torch.uint8
    colour = 0
    for clip, drawn, result in zip(clips, draws, results, strict=True):
        images = to_images(clip)
        for draw in drawn:
            if draw.applied:
                images = timm_operation(draw.name, images, draw.argument)
        if all(OPERATIONS[draw.name].apply.__module__.endswith("operations") for draw in drawn):
            colour += 1
            assert torch.equal(result, to_clip(images))
        else:
            # A level that a geometric operation rounds otherwise can be spread by the next one.
            share = (result != to_clip(images)).float().mean()
            assert share < 0.01
    assert 0 < colour < 12


def test_grouping_by_operation_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on an accelerator, run here."""
    clips, keys = noise(16, 3, 2, 20, 22), torch.arange(16)
    alone = PUBLISHED(clips, keys)
    sizes: list[int] = []

    def as_on_cuda(layer: tuple[Draw, ...], _: bool) -> list[tuple[str, list[int]]]:
        found = _groups(layer, False)
        sizes.extend(len(places) for _, places in found)
        return found

    monkeypatch.setattr("kinetics400.augment.randaugment._groups", as_on_cuda)
    assert torch.equal(PUBLISHED(clips, keys), alone)
    assert max(sizes) > 1


def test_clips_are_not_changed() -> None:
    clips = noise(4, 3, 2, 8, 8)
    before = clips.clone()
    idle = [[Draw("Invert", False, 7.0, 1)]] * 4
    assert torch.equal(augmented(clips, idle), before)
    busy = augmented(clips, [[Draw("Invert", True, 7.0, 1)]] * 4)
    assert torch.equal(busy, 255 - before) and torch.equal(clips, before)
