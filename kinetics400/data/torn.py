"""A small convolutional network that tells torn blocks from whole pictures. In numpy, no torch.

It compares a picture with one before and one after, each encoded by itself at an eighth of its
size. Trained by benchmarks/broken_frames/train.py; the same in torch is benchmarks/broken_frames/
network.py.

H, W pixels, multiples of 16; C channels, D width of the code.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

WEIGHTS = Path(__file__).with_name("torn.safetensors")
CELL = 16  # pixels to a logit
LAYERS = ((1, 1), (2, 1), (2, 1), (1, 2), (1, 3))  # stride and dilation; kernels of 3 × 3
LUMA, CHROMA = (118.0, 52.0), (128.0, 20.0)  # mean and scale of the input


class Network(NamedTuple):
    """Weights (9 C, D) and biases (D) of the layers; those of the head's two."""

    layers: list[tuple[np.ndarray, np.ndarray]]
    head: list[tuple[np.ndarray, np.ndarray]]

    def encode(self, luma: np.ndarray, chroma: np.ndarray) -> np.ndarray:
        """A picture: luma (H, W) and chroma (2, H/2, W/2) to (H/8, W/8, D)."""
        height, width = luma.shape
        pairs = luma.reshape(height // 2, 2, width // 2, 2).transpose(0, 2, 1, 3)
        luma = (pairs.reshape(height // 2, width // 2, 4).astype(np.float32) - LUMA[0]) / LUMA[1]
        chroma = (chroma.transpose(1, 2, 0).astype(np.float32) - CHROMA[0]) / CHROMA[1]
        code = np.concatenate([luma, chroma], 2)
        for (weight, bias), (stride, dilation) in zip(self.layers, LAYERS, strict=True):
            code = _convolve(code, weight, bias, stride, dilation)
        return code

    def logits(self, before: np.ndarray, inside: np.ndarray, after: np.ndarray) -> np.ndarray:
        """How torn the picture inside is, from codes: (H/8, W/8, D) to (H/16, W/16)."""
        apart = np.minimum(np.abs(inside - before), np.abs(inside - after))
        joint = np.concatenate([inside, apart, np.maximum(before, after)], 2)
        (weight, bias), (last, shift) = self.head
        found = np.maximum(joint @ weight + bias, 0) @ last + shift
        rows, columns = (side // 2 for side in found.shape[:2])
        return found[: rows * 2, : columns * 2].reshape(rows, 2, columns, 2).mean((1, 3))


@cache
def network() -> Network:
    """The one that comes with the package."""
    stored = load_file(WEIGHTS)

    def pairs(name: str, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (stored[f"{name}.{k}.weight"].astype(np.float32), stored[f"{name}.{k}.bias"])
            for k in range(number)
        ]

    return Network(pairs("layers", len(LAYERS)), pairs("head", 2))


def _convolve(
    code: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, dilation: int
) -> np.ndarray:
    """3 × 3 with a border of zeros, then ReLU: (H, W, C) to (H/stride, W/stride, D)."""
    height, width, n_channels = code.shape
    padded = np.pad(code, ((dilation, dilation), (dilation, dilation), (0, 0)))
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    patches = np.empty((rows, columns, 9, n_channels), np.float32)
    for place in range(9):
        down, across = place // 3 * dilation, place % 3 * dilation
        patches[:, :, place] = padded[
            down : down + (rows - 1) * stride + 1 : stride,
            across : across + (columns - 1) * stride + 1 : stride,
        ]
    found = patches.reshape(rows * columns, 9 * n_channels) @ weight
    found += bias
    return np.maximum(found, 0, out=found).reshape(rows, columns, -1)
