"""Positions and patch embeddings for other clips, against numbers by hand and numpy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kinetics400.errors import InputError
from kinetics400.models.pretrained import Weights
from kinetics400.models.resize import KERNEL, resize_kernel, starting_grid, with_kernel
from kinetics400.models.vit import (
    VisionTransformer,
    VitConfig,
    interpolate_positions,
    sinusoid_table,
)

PUBLISHED = (8, 14, 14)  # 16 frames of 224 pixels


def interpolation_matrix(old: int, new: int, kernel: object, reach: int) -> np.ndarray:
    """(new, old): the weight of each old place at each new one; places outside are the border."""
    matrix = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        first = math.floor(centre) - reach + 1
        for place in range(first, first + 2 * reach):
            matrix[row, min(max(place, 0), old - 1)] += kernel(abs(centre - place))
    return matrix


def linear(x: float) -> float:
    return max(0.0, 1 - x)


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.75, as torch and OpenCV have it."""
    a = -0.75
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


# --- positions ------------------------------------------------------------------------------------


def test_the_same_grid_keeps_every_bit() -> None:
    table = sinusoid_table(math.prod(PUBLISHED), 12)
    assert torch.equal(interpolate_positions(table, PUBLISHED, PUBLISHED), table)


def test_time_is_interpolated_linearly() -> None:
    table = torch.tensor([[[1.0], [5.0]]])
    longer = interpolate_positions(table, (2, 1, 1), (4, 1, 1))
    assert longer.flatten().tolist() == pytest.approx([1, 2, 4, 5])


@pytest.mark.parametrize(("grid", "new"), [((1, 1, 2), (1, 1, 4)), ((1, 2, 1), (1, 4, 1))])
def test_space_is_interpolated_bicubically(
    grid: tuple[int, int, int], new: tuple[int, int, int]
) -> None:
    """By hand, a = -0.75: the kernel is -27, 67 and -9 (of 256) at 1.25, 0.75 and 1.75."""
    wider = interpolate_positions(torch.tensor([[[0.0], [1.0]]]), grid, new)
    expected = [-27 / 256, 58 / 256, 198 / 256, 283 / 256]
    assert wider.flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("new", [(16, 14, 14), (4, 7, 9), (32, 24, 20), (5, 16, 14), (8, 28, 14)])
def test_interpolation_equals_numpy(new: tuple[int, int, int]) -> None:
    """Of three matrices, one per axis; height and width are told apart."""
    dim = 6
    table = sinusoid_table(math.prod(PUBLISHED), dim)
    over_time = interpolation_matrix(PUBLISHED[0], new[0], linear, 1)
    down, across = (interpolation_matrix(14, size, cubic, 2) for size in new[1:])
    expected = np.einsum(
        "at,bh,cw,thwd->abcd",
        *(over_time, down, across),
        table.double().numpy().reshape(*PUBLISHED, dim),
        optimize=True,
    )
    ours = interpolate_positions(table, PUBLISHED, new)
    assert ours.shape == (1, math.prod(new), dim) and ours.dtype == torch.float32
    np.testing.assert_allclose(ours[0].numpy(), expected.reshape(-1, dim), rtol=0, atol=2e-6)


def test_a_model_takes_the_positions_of_its_pos_grid() -> None:
    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 2, "image_size": 32, "num_frames": 8}
    own = VisionTransformer(VitConfig(**sizes), final_norm=True)
    assert torch.equal(own.pos_embed, sinusoid_table(16, 24))
    expected = interpolate_positions(sinusoid_table(8, 24), (2, 2, 2), (4, 2, 2))
    built = VisionTransformer(VitConfig(**sizes, pos_grid=(2, 2, 2)), final_norm=True)
    own.set_pos_grid((2, 2, 2))
    assert own.config == built.config
    assert torch.equal(own.pos_embed, expected) and torch.equal(built.pos_embed, expected)
    assert "pos_embed" not in own.state_dict()
    own.set_pos_grid(None)
    assert torch.equal(own.pos_embed, sinusoid_table(16, 24))


# --- which positions ------------------------------------------------------------------------------

LONG = VitConfig(embed_dim=24, depth=1, num_heads=2, num_frames=32)
STATED = {"image_size": 224, "num_frames": 16, "pos_grid": None}
TAKEN = (4, 7, 7)  # what the weights of a folder were interpolated from themselves


def weights(sizes: dict[str, object] | None, kernel: tuple[int, int, int] = (2, 16, 16)) -> Weights:
    return Weights("there", {KERNEL: torch.ones(24, 3, *kernel)}, sizes)


@pytest.mark.parametrize(
    ("sizes", "pos_embed", "expected"),
    [
        (STATED, "interpolate", PUBLISHED),
        (STATED, "sinusoid", None),
        ({**STATED, "num_frames": 32}, None, None),
        ({**STATED, "num_frames": 32}, "interpolate", None),
        # Interpolated once: not from a table that is interpolated already, and kept if unasked.
        ({**STATED, "pos_grid": TAKEN}, "interpolate", TAKEN),
        ({**STATED, "num_frames": 32, "pos_grid": TAKEN}, None, TAKEN),
        ({**STATED, "num_frames": 32, "pos_grid": TAKEN}, "sinusoid", None),
        ({**STATED, "pos_grid": (16, 14, 14)}, "interpolate", None),
        # A bare .pth: 16 frames of 224 pixels, if anything is to be interpolated.
        (None, None, None),
        (None, "interpolate", PUBLISHED),
    ],
)
def test_whose_positions_a_model_starts_with(
    sizes: dict[str, object] | None, pos_embed: str | None, expected: tuple[int, int, int] | None
) -> None:
    assert starting_grid(weights(sizes), LONG, pos_embed) == expected


def test_the_grid_of_weights_is_that_of_their_own_tubelets() -> None:
    assert starting_grid(weights(None, (4, 14, 14)), LONG, "interpolate") == (4, 16, 16)


def test_other_clips_need_a_word_about_positions() -> None:
    with pytest.raises(InputError, match=r"8 x 14 x 14 tokens, asked for 16 x 14 x 14.*--pos_em"):
        starting_grid(weights(STATED), LONG, None)
    with pytest.raises(InputError, match="there has no patch embedding"):
        starting_grid(Weights("there", {}, STATED), LONG, "interpolate")


# --- patch embeddings -----------------------------------------------------------------------------


def kernel(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(1, 16, 16), (4, 16, 16), (2, 14, 14), (4, 8, 8), (1, 24, 20)])
def test_a_resized_kernel_answers_constant_input_alike(size: tuple[int, int, int]) -> None:
    old = kernel(5, 3, 2, 16, 16)
    new = resize_kernel(old, size)
    assert new.shape == (5, 3, *size) and new.dtype == old.dtype
    torch.testing.assert_close(new.sum(dim=(2, 3, 4)), old.sum(dim=(2, 3, 4)), rtol=0, atol=1e-4)


def test_the_same_size_keeps_every_bit() -> None:
    old = kernel(5, 3, 2, 16, 16)
    assert torch.equal(resize_kernel(old, (2, 16, 16)), old)


def test_inflation_over_time_divides_by_the_ratio() -> None:
    """I3D: a picture's kernel repeated and divided; back, the sum over time."""
    old = kernel(5, 3, 1, 4, 4)
    four = resize_kernel(old, (4, 4, 4))
    torch.testing.assert_close(four, old.expand(-1, -1, 4, -1, -1) / 4)
    torch.testing.assert_close(resize_kernel(four, (1, 4, 4)), old)


def test_kernels_are_spread_linearly() -> None:
    """By hand, 2 to 4: the columns (1, 3/4, 1/4, 0) of linear interpolation, over their sum."""
    along = torch.tensor([8.0, 80.0]).reshape(1, 1, 1, 1, 2)
    expected = [4.0, 3 + 10, 1 + 30, 40.0]
    assert resize_kernel(along, (1, 1, 4)).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shrinking_looks_at_every_old_value(axis: int) -> None:
    """4 to 2 by hand: triangles as wide as the ratio, rows and then columns brought to 1."""
    size = [1, 1, 1]
    size[axis] = 4
    rows = np.array([[0.75, 0.75, 0.25, 0], [0, 0.25, 0.75, 0.75]]) / 1.75
    matrix = rows / rows.sum(axis=0)
    values = np.array([1.0, 10, 100, 1000])
    size[axis], old = 2, torch.tensor(values).float().reshape(1, 1, *size)
    assert resize_kernel(old, tuple(size)).flatten().tolist() == pytest.approx(matrix @ values)


def test_only_the_patch_embedding_of_weights_is_resized() -> None:
    source = weights(STATED)
    source.state["encoder.norm.bias"] = torch.ones(24)
    config = VitConfig(embed_dim=24, depth=1, num_heads=2, patch_size=14, tubelet_size=4)
    resized = with_kernel(source, config)
    assert resized.state[KERNEL].shape == (24, 3, 4, 14, 14)
    assert resized.state["encoder.norm.bias"] is source.state["encoder.norm.bias"]
    assert source.state[KERNEL].shape == (24, 3, 2, 16, 16)
