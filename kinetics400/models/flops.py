"""Floating-point operations of a training step, from the models' sizes.

Matrix products only, a multiplication and an addition counted as two (as
torch.utils.flop_counter does): norms, activations and the optimizer are left out, and what
checkpointing or a fused attention computes twice counts once. These are the "model FLOPs" of an MFU
(Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
"""

from kinetics400.models.vit import DecoderConfig, VitConfig, mlp_width


def block_flops(num_tokens: int, dim: int, mlp_ratio: float) -> int:
    """Forward through one transformer block."""
    projections = 2 * num_tokens * dim * 4 * dim  # query, key, value, output
    attention = 2 * 2 * num_tokens**2 * dim
    mlp = 2 * 2 * num_tokens * dim * mlp_width(dim, mlp_ratio)
    return projections + attention + mlp


def embedding_flops(config: VitConfig, num_tokens: int) -> int:
    """Forward through the patch embedding."""
    return 2 * num_tokens * config.tubelet_values * config.embed_dim


def encoder_flops(config: VitConfig, num_tokens: int) -> int:
    """Forward of `num_tokens` of a clip's tokens through the encoder."""
    block = block_flops(num_tokens, config.embed_dim, config.mlp_ratio)
    return embedding_flops(config, num_tokens) + config.depth * block


def classification_flops(config: VitConfig, num_classes: int) -> int:
    """Forward of one clip through a classifier."""
    return encoder_flops(config, config.num_tokens) + 2 * config.embed_dim * num_classes


def pretraining_flops(config: VitConfig, decoder: DecoderConfig, num_visible: int) -> int:
    """Forward of one clip through a masked autoencoder whose encoder sees `num_visible` tokens."""
    num_masked = config.num_tokens - num_visible
    block = block_flops(config.num_tokens, decoder.embed_dim, config.mlp_ratio)
    return (
        encoder_flops(config, num_visible)
        + 2 * num_visible * config.embed_dim * decoder.embed_dim
        + decoder.depth * block
        + 2 * num_masked * decoder.embed_dim * config.tubelet_values
    )


def training_flops(forward: int, embedding: int) -> int:
    """Forward and backward: the gradients of weights and of inputs cost as much as forward each.

    Args:
        forward: of the whole model.
        embedding: the patch embedding's share, whose input, the pixels, needs no gradient.
    """
    return 3 * forward - embedding
