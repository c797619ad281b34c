"""The masked autoencoder: targets, what the loss sees, precision, drawing, compiling."""

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import functional

from kinetics400.batch import Batch, normalize
from kinetics400.data import keys
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.vit import DecoderConfig, VitConfig, checkpoint_blocks

ENCODER = VitConfig(
    embed_dim=24, depth=2, num_heads=3, image_size=16, patch_size=4, num_frames=4, tubelet_size=2
)
DECODER = DecoderConfig(embed_dim=12, depth=1, num_heads=2)


def videomae(
    *, mask_ratio: float = 0.75, norm_pix_loss: bool = True, dtype: torch.dtype = torch.float32
) -> VideoMAE:
    torch.manual_seed(0)
    return VideoMAE(
        ENCODER, DECODER, mask_ratio=mask_ratio, norm_pix_loss=norm_pix_loss, dtype=dtype
    )


def make_batch(size: int = 3, *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    shape = (size, 3, 4, 16, 16)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    samples = keys.combine(seed, torch.arange(size))
    return Batch(normalize(clips), torch.zeros(size, dtype=torch.int64), samples)


# --- targets --------------------------------------------------------------------------------------


def slow_target(clips: Tensor, mask_indices: Tensor, *, norm_pix_loss: bool) -> np.ndarray:
    """Tubelet by tubelet from pixels in [0, 1], in float64."""
    mean = np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1, 1)
    std = np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1, 1)
    pixels = clips.double().numpy() * std + mean
    target = np.empty((*mask_indices.shape, 96))
    for sample, row in enumerate(mask_indices.tolist()):
        for place, token in enumerate(row):
            t, y, x = token // 16, token // 4 % 4, token % 4
            part = pixels[
                sample, :, 2 * t : 2 * t + 2, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4
            ].reshape(3, 32)
            for channel in range(3):
                values = part[channel]
                if norm_pix_loss:
                    values = (values - values.mean()) / (values.std(ddof=1) + 1e-6)
                target[sample, place, channel::3] = values
    return target


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_target_equals_a_slow_one(norm_pix_loss: bool) -> None:
    method, batch = videomae(norm_pix_loss=norm_pix_loss), make_batch()
    # Channels of very different contrast: normalising them jointly would show.
    batch.clips[:, 1] *= 0.05
    indices = method.draw(batch.keys)["mask_indices"]
    target = method.target(batch.clips, indices)
    assert target.shape == (3, 24, 96)
    expected = slow_target(batch.clips, indices, norm_pix_loss=norm_pix_loss)
    np.testing.assert_allclose(target.numpy(), expected, rtol=0, atol=2e-5)


def test_raw_target_is_the_pixels_in_zero_to_one() -> None:
    method, batch = videomae(norm_pix_loss=False), make_batch()
    target = method.target(batch.clips, torch.arange(32).expand(3, -1))
    assert 0 <= target.min() < 0.01 and 0.99 < target.max() <= 1 + 1e-6
    levels = target * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)


def test_normalised_target_has_mean_zero_and_unbiased_variance_one_per_channel() -> None:
    method, batch = videomae(), make_batch()
    target = method.target(batch.clips, method.draw(batch.keys)["mask_indices"])
    per_channel = target.unflatten(2, (32, 3))
    assert per_channel.mean(dim=2).abs().max() < 1e-5
    torch.testing.assert_close(per_channel.var(dim=2), torch.ones(3, 24, 3), rtol=1e-3, atol=0)


def test_a_flat_tubelet_has_target_zero() -> None:
    method = videomae()
    clips = normalize(torch.full((1, 3, 4, 16, 16), 77, dtype=torch.uint8))
    target = method.target(clips, torch.arange(32)[None])
    # Rounding leaves 3e-8 of contrast, divided by at least 1e-6.
    assert target.isfinite().all() and target.abs().max() < 0.1


def test_targets_are_float32_whatever_the_input_dtype_and_precision() -> None:
    batch = make_batch()
    method = videomae()
    indices = method.draw(batch.keys)["mask_indices"]
    expected = method.target(batch.clips, indices)
    low = videomae(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target = low.target(batch.clips, indices)
    assert target.dtype == torch.float32 and not target.requires_grad
    assert torch.equal(target, expected)


def test_fabric_leaves_the_clips_of_a_batch_in_float32() -> None:
    method, batch = videomae(dtype=torch.bfloat16), make_batch()
    seen: list[Tensor] = []
    method.target = lambda clips, indices: (
        seen.append(clips)
        or VideoMAE.target(  # type: ignore
            method, clips, indices
        )
    )
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    loss = fabric.setup(method)(batch, method.draw(batch.keys))["loss"]
    assert seen[0].dtype == torch.float32 and torch.equal(seen[0], batch.clips)
    assert loss.dtype == torch.float32


def test_bfloat16_input_gives_nearly_the_same_loss() -> None:
    batch = make_batch()
    full, low = videomae(), videomae(dtype=torch.bfloat16)
    low.load_state_dict(full.state_dict())
    drawn = full.draw(batch.keys)
    reached: list[torch.dtype] = []
    low.encoder.register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close = low(batch, drawn)["loss"].item()
    expected = full(batch, drawn)["loss"].item()
    assert reached == [torch.bfloat16]
    assert close != expected and close == pytest.approx(expected, rel=5e-3)


# --- loss -----------------------------------------------------------------------------------------


def test_loss_is_the_mean_square_over_masked_tubelets_only() -> None:
    method, batch = videomae(), make_batch()
    drawn = method.draw(batch.keys)
    prediction = method.reconstruct(batch.clips, **drawn).detach().numpy()
    target = slow_target(batch.clips, drawn["mask_indices"], norm_pix_loss=True)
    assert prediction.shape == target.shape
    expected = np.square(prediction - target).mean()
    assert method(batch, drawn)["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_predictions_do_not_depend_on_hidden_pixels() -> None:
    method, batch = videomae(), make_batch()
    drawn = method.draw(batch.keys)
    before = method.reconstruct(batch.clips, **drawn)
    changed = batch.clips.clone()
    sample, token = 1, drawn["mask_indices"][1, 5].item()
    t, y, x = token // 16, token // 4 % 4, token % 4
    changed[sample, :, 2 * t : 2 * t + 2, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] += 1.0
    assert torch.equal(method.reconstruct(changed, **drawn), before)


def test_predictions_stand_at_the_place_of_their_mask_index() -> None:
    """Swapping the masked indices swaps the predictions, and nothing else."""
    method, batch = videomae(), make_batch()
    drawn = method.draw(batch.keys)
    order = torch.randperm(24)
    shuffled = {**drawn, "mask_indices": drawn["mask_indices"][:, order]}
    expected = method.reconstruct(batch.clips, **drawn)[:, order]
    ours = method.reconstruct(batch.clips, **shuffled)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected[:, 0], expected[:, 1], atol=1e-3)


def test_every_parameter_gets_a_gradient() -> None:
    method, batch = videomae(), make_batch()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    method(batch, method.draw(batch.keys))["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


# --- drawing --------------------------------------------------------------------------------------


def test_mask_depends_on_the_key_alone() -> None:
    method = videomae()
    samples = keys.combine(3, torch.arange(6))
    together = method.draw(samples)
    torch.manual_seed(99)
    for index in (5, 0, 3):
        alone = method.draw(samples[index : index + 1])
        for name in ("keep_indices", "mask_indices"):
            assert torch.equal(alone[name][0], together[name][index])
    assert len({tuple(row) for row in together["keep_indices"].tolist()}) > 1


def test_published_sizes_see_160_of_1568_tokens() -> None:
    with torch.device("meta"):
        method = VideoMAE(VitConfig(embed_dim=24, depth=1, num_heads=2), DECODER, mask_ratio=0.9)
    drawn = method.draw(keys.combine(0, torch.arange(2)))
    assert method.num_visible == 160
    assert drawn["keep_indices"].shape == (2, 160)
    assert drawn["mask_indices"].shape == (2, 1408)


@pytest.mark.parametrize("ratio", [0.0, 0.05, 1.0, -0.1, 1.5])
def test_ratio_that_hides_nothing_or_all_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"mask_ratio {ratio} hides"):
        videomae(mask_ratio=ratio)


# --- initialisation -------------------------------------------------------------------------------


def test_initial_values_are_the_published_ones() -> None:
    torch.manual_seed(1)
    method = VideoMAE(
        VitConfig(embed_dim=96, depth=1, num_heads=3, image_size=32),
        DecoderConfig(embed_dim=96, depth=1, num_heads=3),
    )
    state = dict(method.named_parameters())
    for name, fans in (
        ("encoder.blocks.0.attn.qkv.weight", 96 + 288),
        ("encoder.blocks.0.mlp.fc1.weight", 96 + 384),
        ("encoder_to_decoder.weight", 96 + 96),
        ("decoder.head.weight", 96 + 1536),
    ):
        bound = (6 / fans) ** 0.5  # Xavier, uniform
        assert bound * 0.99 < state[name].abs().max() <= bound, name
        assert state[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.03), name
    bound = (1 / 1536) ** 0.5  # torch's default of a convolution
    assert bound * 0.99 < state["encoder.patch_embed.proj.weight"].abs().max() <= bound
    token = state["mask_token"]
    assert 0.015 < token.abs().max() <= 0.02
    # A normal cut at one standard deviation keeps 0.54 of it.
    assert token.std().item() == pytest.approx(0.02 * 0.54, rel=0.25)
    for name, parameter in state.items():
        if name.endswith("bias") and "patch_embed" not in name:
            assert not parameter.any(), name


# --- compiling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointed", [False, True])
def test_forward_and_backward_compile_once_as_one_graph(checkpointed: bool) -> None:
    torch._dynamo.reset()
    counters.clear()
    method = videomae()
    if checkpointed:
        checkpoint_blocks(method)
    compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            batch = make_batch(seed=seed)
            drawn = method.draw(batch.keys)
            eager = method(batch, drawn)["loss"]
            expected = torch.autograd.grad(eager, list(method.parameters()))
            loss = compiled(batch, drawn)["loss"]
            gradients = torch.autograd.grad(loss, list(method.parameters()))
            torch.testing.assert_close(loss, eager, rtol=1e-5, atol=1e-6)
            for ours, theirs in zip(gradients, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


def test_loss_falls_when_the_prediction_is_the_target() -> None:
    """The loss compares predictions and targets in one order of values."""
    method, batch = videomae(), make_batch(1)
    drawn = method.draw(batch.keys)
    target = method.target(batch.clips, drawn["mask_indices"])
    method.reconstruct = lambda *_, **__: target.bfloat16()  # type: ignore[method-assign]
    rounded = functional.mse_loss(target.bfloat16().float(), target)
    assert torch.equal(method(batch, drawn)["loss"], rounded)
