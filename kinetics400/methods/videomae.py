"""VideoMAE: predict the pixels of hidden tubelets (Tong et al. 2022, arXiv:2203.12602).

Shapes: B batch, C channels, T frames, H, W, N tokens, K visible, M masked, D width, P pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinetics400.batch import Batch, denormalize
from kinetics400.data import keys as random_keys
from kinetics400.methods.base import Method
from kinetics400.methods.masking import num_masked, tube_mask
from kinetics400.models import flops
from kinetics400.models.vit import (
    LAYER_NORM_EPS,
    Block,
    DecoderConfig,
    VisionTransformer,
    VitConfig,
    gather_tokens,
    init_linear,
    position_table,
    split_tubelets,
)


class Decoder(nn.Module):
    """A narrow ViT from visible tokens and mask tokens to the pixels of the masked ones."""

    def __init__(self, config: DecoderConfig, mlp_ratio: float, num_values: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(config.embed_dim, num_values)

    def forward(self, x: Tensor, num_masked: int) -> Tensor:
        """(B, K + M, D) with the masked tokens last, to (B, M, P * C)."""
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -num_masked:]))


class VideoMAE(Method):
    """Masked autoencoding with a tube mask.

    Args:
        config: the encoder's sizes.
        decoder: the decoder's sizes.
        mask_ratio: share of tokens hidden from the encoder, in (0, 1).
        norm_pix_loss: predict pixels normalised per tubelet and channel, not raw ones in [0, 1].
        dtype: type in which clips reach the encoder. Targets are always float32: from bfloat16
            pixels they are off by 0.0056 (root mean square), ten times that on dim patches.

    Raises:
        ValueError: the ratio leaves no token visible, or hides none.
    """

    encoder: VisionTransformer
    decoder_pos_embed: Tensor

    def __init__(
        self,
        config: VitConfig,
        decoder: DecoderConfig,
        *,
        mask_ratio: float = 0.9,
        norm_pix_loss: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        num_places = config.grid[1] * config.grid[2]
        if not 0 < num_masked(num_places, mask_ratio) < num_places:
            raise ValueError(
                f"mask_ratio {mask_ratio} hides {num_masked(num_places, mask_ratio)} of "
                f"{num_places} places: it must leave some visible and hide some"
            )
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.dtype = dtype
        self.decoder_config = decoder
        self.encoder = VisionTransformer(config, final_norm=True)
        self.encoder_to_decoder = nn.Linear(config.embed_dim, decoder.embed_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.embed_dim))
        self.decoder = Decoder(decoder, config.mlp_ratio, config.tubelet_values)
        table = position_table(config, decoder.embed_dim)
        self.register_buffer("decoder_pos_embed", table, persistent=False)
        init_linear(self, nn.init.xavier_uniform_)
        # Cut at one standard deviation, as published (modeling_pretrain.py:14).
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    @property
    def num_visible(self) -> int:
        """Number of tokens that the encoder sees."""
        times, height, width = self.encoder.config.grid
        return times * (height * width - num_masked(height * width, self.mask_ratio))

    def training_flops(self) -> int:
        config, visible = self.encoder.config, self.num_visible
        forward = flops.pretraining_flops(config, self.decoder_config, visible)
        return flops.training_flops(forward, flops.embedding_flops(config, visible))

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """`keep_indices` (B, K) and `mask_indices` (B, M) of a tube mask per sample."""
        times, height, width = self.encoder.config.grid
        scores = random_keys.bits(keys, "mask", height * width)
        keep_indices, mask_indices = tube_mask(scores, times, self.mask_ratio)
        return {"keep_indices": keep_indices, "mask_indices": mask_indices}

    def forward(self, batch: Batch, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean squared error over the masked tubelets of normalised clips."""
        target = self.target(batch.clips, drawn["mask_indices"])
        prediction = self.reconstruct(batch.clips, **drawn)
        return {"loss": F.mse_loss(prediction.float(), target)}

    def reconstruct(self, clips: Tensor, keep_indices: Tensor, mask_indices: Tensor) -> Tensor:
        """Predict the masked tubelets: (B, M, P * C), channel fastest."""
        visible = self.encoder_to_decoder(self.encoder(clips.to(self.dtype), keep_indices))
        table = self.decoder_pos_embed.to(visible.dtype).expand(len(clips), -1, -1)
        masked = self.mask_token.to(visible.dtype) + gather_tokens(table, mask_indices)
        visible = visible + gather_tokens(table, keep_indices)
        return self.decoder(torch.cat((visible, masked), dim=1), mask_indices.shape[1])

    @torch.no_grad()
    def target(self, clips: Tensor, mask_indices: Tensor) -> Tensor:
        """What the masked tubelets hold: (B, M, P * C) float32, channel fastest.

        Normalised, each tubelet has mean 0 and unbiased variance 1 in each channel by itself
        (VideoMAE engine_for_pretraining.py:35-62; MAE-ST normalises channels jointly).
        """
        tubelets = split_tubelets(clips.float(), self.encoder.config)
        pixels = denormalize(gather_tokens(tubelets, mask_indices), channel_dim=2)
        if self.norm_pix_loss:
            pixels = pixels - pixels.mean(dim=-1, keepdim=True)
            # Several times as fast as torch's var on a CPU, and as exact, the mean being gone.
            variance = pixels.square().sum(dim=-1, keepdim=True) / (pixels.shape[-1] - 1)
            pixels = pixels / (variance.sqrt() + 1e-6)
        return pixels.transpose(2, 3).flatten(2)
