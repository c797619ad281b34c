"""Tube masks: counts, shape in time, order and distribution."""

import pytest
import torch
from torch import Tensor

from kinetics400.data import keys
from kinetics400.methods.masking import num_masked, tube_mask

PLACES, TIMES = 196, 8


def masks(num: int, *, places: int = PLACES, ratio: float = 0.9) -> tuple[Tensor, Tensor]:
    samples = keys.combine(0, torch.arange(num))
    return tube_mask(keys.bits(samples, "mask", places), TIMES, ratio)


@pytest.mark.parametrize(
    ("places", "ratio", "count"),
    # 0.9 * 196 = 176.4; 0.75 * 9 = 6.75; 0.29 * 100 is 28.999... in floating point, as published.
    [(196, 0.9, 176), (196, 0.75, 147), (9, 0.75, 6), (100, 0.29, 28), (4, 0.5, 2), (36, 0.9, 32)],
)
def test_number_of_masked_places_is_rounded_down(places: int, ratio: float, count: int) -> None:
    assert num_masked(places, ratio) == count


def test_published_mask_shows_160_tokens_and_hides_1408() -> None:
    keep, hidden = masks(50)
    assert keep.shape == (50, 160) and hidden.shape == (50, 1408)
    assert keep.dtype == hidden.dtype == torch.int64


def test_every_token_is_either_kept_or_hidden() -> None:
    keep, hidden = masks(50)
    tokens = torch.cat((keep, hidden), dim=1).sort(dim=1).values
    assert torch.equal(tokens, torch.arange(PLACES * TIMES).expand(50, -1))


def test_indices_ascend() -> None:
    for indices in masks(50):
        assert (indices.diff(dim=1) > 0).all()


def test_the_same_places_are_hidden_at_all_times() -> None:
    keep, hidden = masks(50)
    for indices, count in ((keep, 20), (hidden, 176)):
        over_time = indices.view(50, TIMES, count)
        assert torch.equal(over_time // PLACES, torch.arange(TIMES)[:, None].expand(50, -1, count))
        places = over_time % PLACES
        assert torch.equal(places, places[:, :1].expand(-1, TIMES, -1))


def test_lowest_scores_stay_visible() -> None:
    scores = torch.tensor([[0.5, 0.1, 0.9, 0.2], [-3.0, 4.0, -5.0, 6.0]])
    keep, hidden = tube_mask(scores, 2, 0.5)
    assert keep.tolist() == [[1, 3, 5, 7], [0, 2, 4, 6]]
    assert hidden.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_every_place_is_visible_equally_often() -> None:
    draws, kept = 20_000, 20
    keep, _ = masks(draws)
    seen = torch.bincount(keep[:, :kept].flatten(), minlength=PLACES).double()
    assert seen.sum() == draws * kept
    share = kept / PLACES
    # Chi-square for samples without replacement: 195 degrees of freedom, here within 5 sigma.
    variance = draws * share * (1 - share) * PLACES / (PLACES - 1)
    statistic = ((seen - draws * share).square() / variance).sum().item()
    assert abs(statistic - 195) < 5 * (2 * 195) ** 0.5


def test_every_pair_of_places_is_visible_equally_often() -> None:
    """A mask with a pattern (rows, neighbours) would show in pairs."""
    draws, places, kept = 20_000, 16, 4
    keep, _ = masks(draws, places=places, ratio=0.75)
    visible = torch.zeros(draws, places, dtype=torch.float64)
    visible.scatter_(1, keep[:, :kept], 1.0)
    together = visible.T @ visible / draws
    expected = kept * (kept - 1) / (places * (places - 1))
    off_diagonal = together[~torch.eye(places, dtype=torch.bool)]
    sigma = (expected * (1 - expected) / draws) ** 0.5
    assert (off_diagonal - expected).abs().max() < 5 * sigma
