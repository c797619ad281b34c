"""The video Vision Transformer: tubelet embedding, fixed sinusoidal positions, pre-norm blocks.

Numerically the encoder of VideoMAE (Tong et al. 2022, arXiv:2203.12602; MCG-NJU/VideoMAE
modeling_pretrain.py, modeling_finetune.py), checked against its outputs and gradients in
tests/models/test_golden.py.

Shapes: B batch, C channels, T frames, H, W, N tokens, D width, P pixels of a tubelet per channel.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """Sizes of a video ViT.

    `pos_grid` is the (time, height, width) grid whose positions are interpolated to the model's
    own, for weights trained on another number of frames or pixels; None computes the positions of
    the model's own grid, as the official code does for every size.

    Raises:
        ValueError: sizes that do not divide each other, or a grid that is none.
    """

    embed_dim: int
    depth: int
    num_heads: int
    image_size: int = 224
    patch_size: int = 16
    num_frames: int = 16
    tubelet_size: int = 2
    in_channels: int = 3
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0
    pos_grid: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        for whole, part in (
            ("image_size", "patch_size"),
            ("num_frames", "tubelet_size"),
            ("embed_dim", "num_heads"),
        ):
            size, divisor = getattr(self, whole), getattr(self, part)
            if size < 1 or divisor < 1 or size % divisor:
                raise ValueError(f"{whole} {size} is not a positive multiple of {part} {divisor}")
        if self.pos_grid is not None and min(self.pos_grid) < 1:
            raise ValueError(f"pos_grid {self.pos_grid} has sizes that are not positive")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of tokens along time, height and width."""
        side = self.image_size // self.patch_size
        return self.num_frames // self.tubelet_size, side, side

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def tubelet_values(self) -> int:
        """Number of pixel values in a tubelet, all channels."""
        return self.in_channels * self.tubelet_size * self.patch_size**2


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of a masked autoencoder's decoder."""

    embed_dim: int
    depth: int
    num_heads: int

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"decoder embed_dim {self.embed_dim} is not a multiple of "
                f"num_heads {self.num_heads}"
            )


def sinusoid_table(num_positions: int, dim: int) -> Tensor:
    """Positions as sines (even columns) and cosines (odd columns), (1, num_positions, dim) float32.

    One table over the flattened T*H*W index, computed in float64 (VideoMAE modeling_finetune.py).
    """
    column = torch.arange(dim, dtype=torch.float64)
    frequency = 10000.0 ** (-2.0 * (column // 2) / dim)
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequency
    even = torch.arange(dim) % 2 == 0
    return torch.where(even, angle.sin(), angle.cos()).float()[None]


def interpolate_positions(
    table: Tensor, grid: tuple[int, int, int], new_grid: tuple[int, int, int]
) -> Tensor:
    """Positions of one (T, H, W) grid at the places of another, (1, N, D) to (1, N', D).

    Bicubic over height and width, then linear over time, each from pixel centre to pixel centre
    (align_corners=False) and without antialiasing. The same grid gives the table itself.
    """
    if new_grid == grid:
        return table
    (t, h, w), (new_t, new_h, new_w) = grid, new_grid
    dim = table.shape[-1]
    x = table.reshape(t, h, w, dim).permute(0, 3, 1, 2)
    x = F.interpolate(x, size=(new_h, new_w), mode="bicubic", align_corners=False)
    x = x.permute(2, 3, 1, 0).flatten(0, 1)
    x = F.interpolate(x, size=new_t, mode="linear", align_corners=False)
    return x.permute(2, 0, 1).reshape(1, new_t * new_h * new_w, dim)


def position_table(config: VitConfig, dim: int) -> Tensor:
    """The positions a model of this config has at width `dim`, (1, N, dim) float32."""
    if config.pos_grid is None:
        return sinusoid_table(config.num_tokens, dim)
    table = sinusoid_table(math.prod(config.pos_grid), dim)
    return interpolate_positions(table, config.pos_grid, config.grid)


def mlp_width(dim: int, mlp_ratio: float) -> int:
    """Width of an MLP's hidden layer, rounded down as published.

    >>> mlp_width(1408, 48 / 11), mlp_width(512, 48 / 11)  # VideoMAE V2's ViT-g and its decoder
    (6144, 2234)
    """
    # A ratio read off two widths must give them back: 49 * (1 / 49) is just below 1.
    return int(dim * mlp_ratio + 1e-6)


def split_tubelets(clips: Tensor, config: VitConfig) -> Tensor:
    """Cut clips into tubelets: (B, C, T, H, W) to (B, N, C, P).

    N runs over (time, height, width) and P over (frame, row, column) within the tubelet.
    """
    batch, channels = clips.shape[:2]
    t, h, w = config.grid
    p = config.patch_size
    x = clips.reshape(batch, channels, t, config.tubelet_size, h, p, w, p)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, t * h * w, channels, -1)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Pick tokens by index: (B, N, ...) and (B, K) to (B, K, ...)."""
    index = indices.reshape(*indices.shape, *[1] * (tokens.dim() - 2))
    return tokens.gather(1, index.expand(-1, -1, *tokens.shape[2:]))


class PatchEmbed(nn.Module):
    """Embed tubelets linearly. The weight has the shape of a 3-D convolution's."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        kernel = (config.tubelet_size, config.patch_size, config.patch_size)
        # Never called as a convolution: it gives the weight its published name, shape and
        # default initialisation, and a product with the visible tubelets alone is cheaper.
        self.proj = nn.Conv3d(config.in_channels, config.embed_dim, kernel, stride=kernel)

    def forward(self, tubelets: Tensor) -> Tensor:
        """(B, N, C, P) to (B, N, D)."""
        return F.linear(tubelets.flatten(2), self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention with biases on query and value.

    A key bias cannot change a softmax over keys, so the fused product gets zeros there; they are
    a buffer, because an optimizer would move a parameter.
    """

    k_bias: Tensor

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("k_bias", torch.zeros(dim), persistent=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        batch, n, dim = x.shape
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.view(batch, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, n, dim))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block with stochastic depth on both branches.

    Attributes:
        is_checkpointed: keep only the input for the backward pass and compute the rest again,
            with the same random numbers (Chen et al. 2016, arXiv:1604.06174).
    """

    is_checkpointed = False

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, mlp_width(dim, mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.is_checkpointed and torch.is_grad_enabled():
            return checkpoint(self._branches, x, use_reentrant=False)
        return self._branches(x)

    def _branches(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def transformer_blocks(model: nn.Module) -> list[Block]:
    """All of a model's, encoder's and decoder's, in its order."""
    return [module for module in model.modules() if isinstance(module, Block)]


def checkpoint_blocks(model: nn.Module) -> None:
    """Have all transformer blocks keep only their inputs: less memory, a third more computing."""
    for block in transformer_blocks(model):
        block.is_checkpointed = True


class VisionTransformer(nn.Module):
    """Clips to tokens.

    Args:
        config: sizes.
        final_norm: normalise the output tokens. Pretraining does; classification pools first and
            normalises after (VideoMAE modeling_finetune.py).
    """

    pos_embed: Tensor

    def __init__(self, config: VitConfig, *, final_norm: bool) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        table = position_table(config, config.embed_dim)
        self.register_buffer("pos_embed", table, persistent=False)
        drop_path = torch.linspace(0, config.drop_path_rate, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio, rate) for rate in drop_path
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=LAYER_NORM_EPS) if final_norm else None

    def set_pos_grid(self, pos_grid: tuple[int, int, int] | None) -> None:
        """Take positions interpolated from another grid; None computes those of the own grid."""
        self.config = replace(self.config, pos_grid=pos_grid)
        self.pos_embed = position_table(self.config, self.config.embed_dim).to(self.pos_embed)

    def forward(self, clips: Tensor, keep_indices: Tensor | None = None) -> Tensor:
        """Encode all tokens, or only the visible ones.

        Args:
            clips: (B, C, T, H, W), normalised.
            keep_indices: (B, K) token indices to keep; None keeps all N.

        Returns:
            (B, K or N, D).
        """
        tubelets = split_tubelets(clips, self.config)
        positions = self.pos_embed
        if keep_indices is not None:
            tubelets = gather_tokens(tubelets, keep_indices)
            positions = gather_tokens(positions.expand(len(clips), -1, -1), keep_indices)
        x = self.patch_embed(tubelets)
        x = x + positions.to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return x if self.norm is None else self.norm(x)


def init_linear(module: nn.Module, init: Callable[[Tensor], object]) -> None:
    """Initialise every linear layer's weight with `init`, its bias with zeros.

    LayerNorm and the patch embedding keep torch's defaults, as published (VideoMAE
    modeling_pretrain.py:67, modeling_finetune.py:240).
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            init(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
