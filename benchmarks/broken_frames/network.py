"""The network of kinetics400/data/torn.py in torch, to train it."""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional

from kinetics400.data.torn import CHROMA, LAYERS, LUMA

WIDTHS, HEAD = (16, 32, 64, 64, 64), 48


class Net(nn.Module):
    """Encodes each picture; compares the one inside with those before and after."""

    def __init__(self) -> None:
        super().__init__()
        blocks, width = [], 6
        for wider, (stride, dilation) in zip(WIDTHS, LAYERS, strict=True):
            conv = nn.Conv2d(width, wider, 3, stride, dilation, dilation, bias=False)
            blocks.append(nn.Sequential(conv, nn.BatchNorm2d(wider), nn.ReLU()))
            width = wider
        self.encoder = nn.Sequential(*blocks)
        self.head = nn.ModuleList([nn.Linear(3 * width, HEAD), nn.Linear(HEAD, 1)])

    def forward(self, pictures: Tensor) -> Tensor:
        """Before, inside, after (B, 3, 6, H/2, W/2) to logits of macroblocks (B, H/16, W/16)."""
        codes = self.encoder(pictures.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        before, inside, after = codes.permute(0, 2, 3, 1).unflatten(0, (-1, 3)).unbind(1)
        apart = torch.minimum((inside - before).abs(), (inside - after).abs())
        joint = torch.cat([inside, apart, torch.maximum(before, after)], -1)
        found = self.head[1](functional.relu(self.head[0](joint)))[..., 0]
        return functional.avg_pool2d(found[:, None], 2)[:, 0]


def inputs(luma: np.ndarray, chroma: np.ndarray) -> Tensor:
    """(N, H, W) and (N, 2, H/2, W/2) uint8 to (N, 6, H/2, W/2)."""
    light = functional.pixel_unshuffle(torch.from_numpy(luma)[:, None].float(), 2)
    colour = torch.from_numpy(np.ascontiguousarray(chroma)).float()
    return torch.cat([(light - LUMA[0]) / LUMA[1], (colour - CHROMA[0]) / CHROMA[1]], 1)


def save(net: Net, path: Path) -> None:
    """As torn.py reads it: the normalisation folded into the kernels, weights in half precision."""
    stored = {}
    for number, (conv, norm, _) in enumerate(net.encoder):
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        kernel = (conv.weight * gain[:, None, None, None]).permute(2, 3, 1, 0)
        stored[f"layers.{number}.weight"] = kernel.reshape(-1, kernel.shape[-1]).half()
        stored[f"layers.{number}.bias"] = norm.bias - norm.running_mean * gain
    for number, layer in enumerate(net.head):
        stored[f"head.{number}.weight"] = layer.weight.T.half()
        stored[f"head.{number}.bias"] = layer.bias
    arrays = {name: np.ascontiguousarray(part.detach().numpy()) for name, part in stored.items()}
    save_file(arrays, path)
