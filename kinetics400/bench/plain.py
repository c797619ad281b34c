"""VideoMAE written plainly, the way most published code is: a peer to measure against.

Every token is embedded and then sorted out with boolean masks, attention multiplies its matrices
out, targets are made for every tubelet. Parameters have our names, so that it takes our weights.
Shapes: B batch, C channels, T frames, H, W, N tokens, K visible, M masked, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinetics400.batch import IMAGENET_MEAN, IMAGENET_STD
from kinetics400.models.vit import (
    LAYER_NORM_EPS,
    DecoderConfig,
    VitConfig,
    mlp_width,
    sinusoid_table,
)


class PlainAttention(nn.Module):
    """Attention with its matrix of weights in memory."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, n, dim = x.shape
        zeros = torch.zeros_like(self.v_bias, requires_grad=False)
        bias = torch.cat((self.q_bias, zeros, self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).reshape(batch, n, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q = q * (dim // self.num_heads) ** -0.5
        weights = (q @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, n, dim))


class PlainBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = PlainAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(dim, mlp_width(dim, mlp_ratio)))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(mlp_width(dim, mlp_ratio), dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainEncoder(nn.Module):
    """A video ViT that embeds all tokens, and goes on with those not hidden."""

    pos_embed: Tensor

    def __init__(self, config: VitConfig, *, final_norm: bool) -> None:
        super().__init__()
        kernel = (config.tubelet_size, config.patch_size, config.patch_size)
        self.patch_embed = nn.Sequential()
        conv = nn.Conv3d(config.in_channels, config.embed_dim, kernel, stride=kernel)
        self.patch_embed.add_module("proj", conv)
        table = sinusoid_table(config.num_tokens, config.embed_dim)
        self.register_buffer("pos_embed", table, persistent=False)
        self.blocks = nn.ModuleList(
            PlainBlock(config.embed_dim, config.num_heads, config.mlp_ratio)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=LAYER_NORM_EPS) if final_norm else None

    def forward(self, clips: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W) and (B, N) bool, True where hidden, to (B, N or K, D)."""
        x = self.patch_embed(clips).flatten(2).transpose(1, 2)
        x = x + self.pos_embed.to(x.dtype)
        if hidden is not None:
            x = x[~hidden].reshape(len(x), -1, x.shape[-1])
        for block in self.blocks:
            x = block(x)
        return x if self.norm is None else self.norm(x)


class PlainDecoder(nn.Module):
    """From all tokens to the pixels of the last ones."""

    def __init__(self, config: DecoderConfig, mlp_ratio: float, num_values: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            PlainBlock(config.embed_dim, config.num_heads, mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(config.embed_dim, num_values)

    def forward(self, x: Tensor, num_masked: int) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -num_masked:]))


class PlainPretraining(nn.Module):
    """Masked autoencoder; the loss of normalised clips with a boolean mask."""

    decoder_pos_embed: Tensor

    def __init__(self, config: VitConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = PlainEncoder(config, final_norm=True)
        self.encoder_to_decoder = nn.Linear(config.embed_dim, decoder.embed_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.embed_dim))
        self.decoder = PlainDecoder(decoder, config.mlp_ratio, config.tubelet_values)
        table = sinusoid_table(config.num_tokens, decoder.embed_dim)
        self.register_buffer("decoder_pos_embed", table, persistent=False)

    def forward(self, clips: Tensor, pixels: Tensor, hidden: Tensor) -> Tensor:
        """Loss, ().

        Args:
            clips: (B, C, T, H, W), normalised, in the type of the weights.
            pixels: the same in float32.
            hidden: (B, N) bool.
        """
        target = self.target(pixels)[hidden].reshape(len(clips), -1, self.config.tubelet_values)
        visible = self.encoder_to_decoder(self.encoder(clips, hidden))
        batch, _, dim = visible.shape
        positions = self.decoder_pos_embed.to(visible.dtype).expand(batch, -1, -1)
        seen = positions[~hidden].reshape(batch, -1, dim)
        unseen = positions[hidden].reshape(batch, -1, dim)
        x = torch.cat((visible + seen, self.mask_token.to(visible.dtype) + unseen), dim=1)
        return F.mse_loss(self.decoder(x, unseen.shape[1]).float(), target)

    @torch.no_grad()
    def target(self, clips: Tensor) -> Tensor:
        """Normalised pixels of every tubelet, (B, N, P * C)."""
        shape = (1, 3, 1, 1, 1)
        std = torch.tensor(IMAGENET_STD, dtype=torch.float32, device=clips.device).view(shape)
        mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float32, device=clips.device).view(shape)
        pixels = clips * std + mean
        (t, h, w), size = self.config.grid, self.config.patch_size
        x = pixels.reshape(len(clips), 3, t, self.config.tubelet_size, h, size, w, size)
        x = x.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(len(clips), t * h * w, -1, 3)
        x = (x - x.mean(dim=-2, keepdim=True)) / (x.var(dim=-2, keepdim=True).sqrt() + 1e-6)
        return x.flatten(2)


class PlainClassification(nn.Module):
    """Classifier; the cross-entropy of normalised clips."""

    def __init__(self, config: VitConfig, num_classes: int) -> None:
        super().__init__()
        self.encoder = PlainEncoder(config, final_norm=False)
        self.fc_norm = nn.LayerNorm(config.embed_dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(config.embed_dim, num_classes)

    def forward(self, clips: Tensor, labels: Tensor) -> Tensor:
        """Loss, ()."""
        logits = self.head(self.fc_norm(self.encoder(clips).mean(dim=1)))
        return F.cross_entropy(logits.float(), labels)
