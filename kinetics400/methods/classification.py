"""Supervised classification: mean over all tokens, LayerNorm, linear head.

After VideoMAE's finetuning (modeling_finetune.py). Shapes: B batch, C channels, T frames, H, W,
N tokens, D width, K classes.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinetics400.batch import Batch
from kinetics400.methods.base import Method
from kinetics400.models import flops
from kinetics400.models.vit import LAYER_NORM_EPS, VisionTransformer, VitConfig, init_linear


class Classification(Method):
    """A video classifier on the encoder.

    Args:
        config: the encoder's sizes and drop path rate.
        num_classes: K.
        label_smoothing: share of the target spread over all classes.
        head_dropout: dropout before the head.
        head_init_scale: factor on the head's initial weights.
        dtype: type in which clips reach the encoder.
    """

    encoder: VisionTransformer

    def __init__(
        self,
        config: VitConfig,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        head_dropout: float = 0.0,
        head_init_scale: float = 0.001,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.dtype = dtype
        self.encoder = VisionTransformer(config, final_norm=False)
        self.fc_norm = nn.LayerNorm(config.embed_dim, eps=LAYER_NORM_EPS)
        self.head_dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(config.embed_dim, num_classes)
        # std 0.02, cut at +-2 absolute: the published trunc_normal_(std=.02) (timm's default cut).
        init_linear(self, partial(nn.init.trunc_normal_, std=0.02))
        with torch.no_grad():
            self.head.weight.mul_(head_init_scale)
            self.head.bias.mul_(head_init_scale)

    def forward(self, batch: Batch, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy with label smoothing, and the batch's top-1 accuracy in percent.

        Of mixed clips (`batch.targets`) there is no accuracy. Smoothing mixed targets is mixing
        smoothed ones, as the published code does (mixup.py).
        """
        logits = self.predict(batch.clips).float()
        target = batch.labels if batch.targets is None else batch.targets
        loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        if batch.targets is not None:
            return {"loss": loss}
        with torch.no_grad():
            correct = (logits.argmax(dim=1) == batch.labels).float().mean()
        return {"loss": loss, "train_top1_acc": 100 * correct}

    def predict(self, clips: Tensor) -> Tensor:
        """Logits (B, K) of normalised clips (B, C, T, H, W)."""
        tokens = self.encoder(clips.to(self.dtype))
        return self.head(self.head_dropout(self.fc_norm(tokens.mean(dim=1))))

    def training_flops(self) -> int:
        config = self.encoder.config
        forward = flops.classification_flops(config, self.num_classes)
        return flops.training_flops(forward, flops.embedding_flops(config, config.num_tokens))

    def layer_id(self, name: str) -> int:
        """Patch embedding 0, block i at i + 1, norm and head last (run_class_finetuning.py:417)."""
        if name.startswith("encoder.patch_embed."):
            return 0
        if name.startswith("encoder.blocks."):
            return int(name.split(".")[2]) + 1
        return self.encoder.config.depth + 1
