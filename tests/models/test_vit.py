"""The encoder against slow, plainly written counterparts."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kinetics400.models.vit import (
    Attention,
    DecoderConfig,
    PatchEmbed,
    VisionTransformer,
    VitConfig,
    checkpoint_blocks,
    gather_tokens,
    init_linear,
    mlp_width,
    sinusoid_table,
    split_tubelets,
)

# Every size differs, so that a swapped axis cannot go unnoticed: 3 times x 2 x 2 places.
CONFIG = VitConfig(
    embed_dim=24, depth=2, num_heads=4, image_size=16, patch_size=8, num_frames=6, tubelet_size=2
)


def random_model(*, final_norm: bool = True, seed: int = 0) -> VisionTransformer:
    """A model in which every parameter matters: biases and norms are random, too."""
    model = VisionTransformer(CONFIG, final_norm=final_norm).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.2 * noise)
    return model.eval()


def random_clips(batch: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 6, 16, 16, generator=generator, dtype=torch.float64)


# --- embedding ------------------------------------------------------------------------------------


def test_patch_embedding_equals_a_convolution() -> None:
    embed = PatchEmbed(CONFIG).double()
    clips = random_clips()
    ours = embed(split_tubelets(clips, CONFIG))
    convolved = functional.conv3d(clips, embed.proj.weight, embed.proj.bias, stride=(2, 8, 8))
    assert convolved.shape == (2, 24, 3, 2, 2)
    torch.testing.assert_close(ours, convolved.flatten(2).transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_tubelets_run_over_time_then_rows_then_columns() -> None:
    clips = random_clips()
    tubelets = split_tubelets(clips, CONFIG)
    assert tubelets.shape == (2, 12, 3, 128)
    token = 0
    for t in range(3):
        for row in range(2):
            for column in range(2):
                part = clips[
                    :, :, 2 * t : 2 * t + 2, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8
                ]
                assert torch.equal(tubelets[:, token], part.flatten(2))
                token += 1


@pytest.mark.parametrize(("positions", "dim"), [(1568, 48), (72, 24), (5, 7)])
def test_sinusoid_table_equals_a_loop(positions: int, dim: int) -> None:
    expected = np.zeros((positions, dim))
    for position in range(positions):
        for column in range(dim):
            angle = position / math.pow(10000, 2 * (column // 2) / dim)
            expected[position, column] = math.cos(angle) if column % 2 else math.sin(angle)
    table = sinusoid_table(positions, dim)
    assert table.shape == (1, positions, dim) and table.dtype == torch.float32
    # float32 rounds to 6e-8; computed in float32, the angle alone would be off by 1e-4.
    np.testing.assert_allclose(table[0].numpy(), expected, rtol=0, atol=1e-7)


def test_the_width_of_an_mlp_is_rounded_down_and_read_back() -> None:
    assert mlp_width(768, 4.0) == 3072
    assert mlp_width(512, 48 / 11) == 2234  # of 2234.18, VideoMAE V2's decoder
    assert mlp_width(10, 2.59) == 25
    # A ratio read off two widths; multiplied back it may be a bit too small.
    assert int(49 * (1 / 49)) == 0 and mlp_width(49, 1 / 49) == 1
    widths = [(dim, hidden) for dim in range(8, 200, 3) for hidden in range(8, 800, 7)]
    assert all(mlp_width(dim, hidden / dim) == hidden for dim, hidden in widths)


def test_positions_are_no_weights() -> None:
    model = VisionTransformer(CONFIG, final_norm=True)
    assert not any("pos_embed" in key for key in model.state_dict())
    assert not any("pos_embed" in key for key, _ in model.named_parameters())


def test_gather_tokens_picks_per_sample() -> None:
    tokens = torch.arange(2 * 5 * 3 * 2).reshape(2, 5, 3, 2)
    indices = torch.tensor([[4, 0], [1, 1]])
    expected = torch.stack([tokens[0, [4, 0]], tokens[1, [1, 1]]])
    assert torch.equal(gather_tokens(tokens, indices), expected)
    assert torch.equal(gather_tokens(tokens[..., 0], indices), expected[..., 0])


# --- attention and blocks -------------------------------------------------------------------------


def slow_attention(x: Tensor, attention: Attention) -> Tensor:
    """Head by head, with the softmax written out."""
    dim, heads = x.shape[-1], attention.num_heads
    w_q, w_k, w_v = attention.qkv.weight.chunk(3)
    q, k, v = x @ w_q.T + attention.q_bias, x @ w_k.T, x @ w_v.T + attention.v_bias
    out = []
    for head in range(heads):
        part = slice(head * dim // heads, (head + 1) * dim // heads)
        scores = (q[..., part] @ k[..., part].transpose(1, 2)) / math.sqrt(dim // heads)
        weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
        out.append(weights @ v[..., part])
    return torch.cat(out, dim=-1) @ attention.proj.weight.T + attention.proj.bias


def slow_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred / (variance + 1e-6).sqrt() * norm.weight + norm.bias


def slow_encode(model: VisionTransformer, clip: Tensor, keep: list[int]) -> Tensor:
    """Embed the whole clip by convolution, add positions, then keep the visible tokens."""
    proj = model.patch_embed.proj
    x = functional.conv3d(clip[None], proj.weight, proj.bias, stride=proj.stride)
    x = x.flatten(2).transpose(1, 2) + sinusoid_table(12, 24).double()
    x = x[:, keep]
    for block in model.blocks:
        x = x + slow_attention(slow_norm(x, block.norm1), block.attn)
        fc1, fc2 = block.mlp.fc1, block.mlp.fc2
        hidden = slow_norm(x, block.norm2) @ fc1.weight.T + fc1.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + hidden @ fc2.weight.T + fc2.bias
    return x[0] if model.norm is None else slow_norm(x, model.norm)[0]


@pytest.mark.parametrize("final_norm", [True, False])
@torch.no_grad()
def test_visible_tokens_equal_a_slow_encoder(final_norm: bool) -> None:
    model = random_model(final_norm=final_norm)
    clips = random_clips()
    keep = [[0, 3, 7, 11], [1, 2, 5, 10]]
    ours = model(clips, torch.tensor(keep))
    expected = torch.stack([slow_encode(model, *pair) for pair in zip(clips, keep, strict=True)])
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_no_indices_encode_every_token() -> None:
    model, clips = random_model(), random_clips()
    ours = model(clips)
    assert torch.equal(ours, model(clips, torch.arange(12).expand(2, -1)))
    expected = slow_encode(model, clips[1], list(range(12)))
    torch.testing.assert_close(ours[1], expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_hidden_pixels_do_not_reach_visible_tokens() -> None:
    model, clips = random_model(), random_clips(1)
    keep = torch.tensor([[0, 5, 6]])
    before = model(clips, keep)
    clips[:, :, 0:2, 0:8, 8:16] += 1.0  # token 1
    assert torch.equal(model(clips, keep), before)
    clips[:, :, 0:2, 0:8, 0:8] += 1.0  # token 0
    assert not torch.allclose(model(clips, keep), before)


def test_key_bias_is_zero_and_stays_so() -> None:
    model = VisionTransformer(CONFIG, final_norm=True)
    names = {name for name, _ in model.named_parameters()} | set(model.state_dict())
    assert not any("k_bias" in name or "qkv.bias" in name for name in names)
    assert {"blocks.0.attn.q_bias", "blocks.0.attn.v_bias"} <= names
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(random_clips().float()).square().mean().backward()
        optimizer.step()
    for block in model.blocks:
        assert block.attn.k_bias.shape == (24,) and not block.attn.k_bias.any()
        assert block.attn.v_bias.any()


def test_every_layer_norm_has_the_published_epsilon() -> None:
    model = VisionTransformer(CONFIG, final_norm=True)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * CONFIG.depth + 1
    assert {norm.eps for norm in norms} == {1e-6}


def test_drop_path_acts_on_both_branches_of_a_block() -> None:
    config = VitConfig(**{**CONFIG.__dict__, "drop_path_rate": 0.999999})
    last = VisionTransformer(config, final_norm=False).train().blocks[-1]
    x = torch.randn(4, 5, 24)
    assert torch.equal(last(x), x)  # both dropped
    assert not torch.allclose(last.eval()(x), x)


def test_init_linear_leaves_the_embedding_and_the_norms_alone() -> None:
    model = VisionTransformer(CONFIG, final_norm=True)
    embedding = model.patch_embed.proj.weight.clone()
    init_linear(model, lambda weight: torch.nn.init.constant_(weight, 7.0))
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 4 * CONFIG.depth
    assert all((linear.weight == 7).all() for linear in linears)
    assert all(not linear.bias.any() for linear in linears if linear.bias is not None)
    assert torch.equal(model.patch_embed.proj.weight, embedding)
    assert (model.norm.weight == 1).all()


# --- sizes ----------------------------------------------------------------------------------------


def test_published_grid() -> None:
    config = VitConfig(embed_dim=768, depth=12, num_heads=12)
    assert config.grid == (8, 14, 14)
    assert config.num_tokens == 1568
    assert config.tubelet_values == 1536


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 20}, "image_size 20 is not a positive multiple of patch_size 8"),
        ({"num_frames": 5}, "num_frames 5 is not a positive multiple of tubelet_size 2"),
        ({"num_heads": 5}, "embed_dim 24 is not a positive multiple of num_heads 5"),
        ({"tubelet_size": 0}, "num_frames 6 is not a positive multiple of tubelet_size 0"),
        ({"image_size": 0}, "image_size 0 is not a positive multiple of patch_size 8"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VitConfig(**{**CONFIG.__dict__, **changes})


def test_decoder_heads_must_divide_its_width() -> None:
    with pytest.raises(ValueError, match="embed_dim 24 is not a multiple of num_heads 5"):
        DecoderConfig(embed_dim=24, depth=1, num_heads=5)


@pytest.mark.parametrize("shape", [(1, 3, 6, 16, 24), (1, 3, 4, 16, 16), (1, 3, 6, 8, 16)])
def test_clips_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    model = VisionTransformer(CONFIG, final_norm=True)
    with pytest.raises(RuntimeError, match="shape"):
        model(torch.zeros(shape))


# --- activation checkpointing ---------------------------------------------------------------------


def gradients(config: VitConfig, checkpointed: bool) -> tuple[list[Tensor], int]:
    """Of all parameters, and the bytes kept for the backward pass."""
    torch.manual_seed(0)
    model = VisionTransformer(config, final_norm=True).train()
    if checkpointed:
        checkpoint_blocks(model)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)
    clips = torch.randn(2, 3, config.num_frames, config.image_size, config.image_size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(clips).square().mean()
    loss.backward()
    found = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None], sum(kept.values())


def test_checkpointed_blocks_have_the_same_gradients_and_keep_less() -> None:
    """Bit by bit, with stochastic depth: the second forward draws the same paths."""
    config = VitConfig(
        embed_dim=48, depth=6, num_heads=2, image_size=32, num_frames=8, drop_path_rate=0.5
    )
    plain, kept = gradients(config, checkpointed=False)
    again, kept_less = gradients(config, checkpointed=True)
    assert all(torch.equal(one, two) for one, two in zip(plain, again, strict=True))
    assert kept_less < 0.4 * kept


def test_nothing_is_checkpointed_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    config = VitConfig(embed_dim=24, depth=1, num_heads=2, image_size=16, num_frames=4)
    model = VisionTransformer(config, final_norm=True)
    checkpoint_blocks(model)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("kinetics400.models.vit.checkpoint", refuse)
    with torch.no_grad():
        model(torch.zeros(1, 3, 4, 16, 16))
