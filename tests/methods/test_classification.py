"""The classifier: pooling, smoothed loss, initial values, drop path, compiling."""

import math

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from kinetics400.batch import Batch, normalize
from kinetics400.methods.classification import Classification
from kinetics400.models.vit import VitConfig, checkpoint_blocks

ENCODER = VitConfig(
    embed_dim=24, depth=3, num_heads=3, image_size=16, patch_size=8, num_frames=4, tubelet_size=2
)


def with_drop_path(rate: float, depth: int = 3) -> VitConfig:
    return VitConfig(**{**ENCODER.__dict__, "drop_path_rate": rate, "depth": depth})


def make_batch(size: int = 6, *, num_classes: int = 5, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    shape = (size, 3, 4, 16, 16)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(num_classes, (size,), generator=generator)
    return Batch(normalize(clips), labels, torch.zeros_like(labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_is_smoothed_cross_entropy(smoothing: float) -> None:
    torch.manual_seed(0)
    method = Classification(ENCODER, 5, label_smoothing=smoothing, head_init_scale=50.0)
    batch = make_batch()
    logits = method.predict(batch.clips).detach().double().numpy()
    total = 0.0
    for row, label in zip(logits, batch.labels.tolist(), strict=True):
        log_probs = row - math.log(sum(math.exp(value) for value in row))
        for index, log_prob in enumerate(log_probs):
            share = (1 - smoothing) * (index == label) + smoothing / 5
            total -= share * log_prob
    assert method(batch, {})["loss"].item() == pytest.approx(total / 6, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_targets_count_with_their_shares(smoothing: float) -> None:
    """As smoothed one-hots that are mixed afterwards, which is how timm makes them."""
    method = Classification(ENCODER, 5, label_smoothing=smoothing, head_init_scale=50.0)
    batch = make_batch()
    share = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0, 0.3]).unsqueeze(1)
    one_hot = torch.eye(5)[batch.labels]
    mixed = batch.with_targets(share * one_hot + (1 - share) * one_hot.flip(0))
    values = method(mixed, {})
    assert set(values) == {"loss"}  # of mixed clips there is no accuracy
    smooth = torch.full((6, 5), smoothing / 5)
    smooth += (1 - smoothing) * one_hot
    target = share * smooth + (1 - share) * smooth.flip(0)
    logits = method.predict(batch.clips).double()
    expected = -(target.double() * (logits - logits.logsumexp(1, keepdim=True))).sum(1).mean()
    assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_training_accuracy_is_percent_of_the_batch() -> None:
    method, batch = Classification(ENCODER, 5, head_init_scale=50.0), make_batch()
    best = method.predict(batch.clips).argmax(dim=1)
    batch.labels = best.clone()
    batch.labels[:2] = (best[:2] + 1) % 5
    accuracy = method(batch, {})["train_top1_acc"]
    assert accuracy.item() == pytest.approx(100 * 4 / 6) and not accuracy.requires_grad


def test_logits_come_from_the_normalised_mean_of_all_tokens() -> None:
    torch.manual_seed(0)
    method, batch = Classification(ENCODER, 5, head_init_scale=1.0).eval(), make_batch()
    with torch.no_grad():
        for parameter in (*method.fc_norm.parameters(), method.head.bias):
            parameter.add_(torch.randn(parameter.shape))
        tokens = method.encoder(batch.clips).double().numpy()
        logits = method.predict(batch.clips)
    assert tokens.shape == (6, 8, 24)
    mean = tokens.mean(axis=1)
    centred = mean - mean.mean(axis=1, keepdims=True)
    pooled = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-6)
    pooled = pooled * method.fc_norm.weight.detach().numpy() + method.fc_norm.bias.detach().numpy()
    expected = pooled @ method.head.weight.detach().numpy().T + method.head.bias.detach().numpy()
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_encoder_has_no_final_norm() -> None:
    names = {name for name, _ in Classification(ENCODER, 5).named_parameters()}
    assert not any(name.startswith("encoder.norm") for name in names)
    assert {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"} <= names


# --- initialisation -------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_initial_values_are_the_published_ones(scale: float) -> None:
    torch.manual_seed(0)
    method = Classification(ENCODER, 4000, head_init_scale=scale)
    weight = method.head.weight / scale
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    # The published cut is at +-2, a hundred standard deviations: 4.6 % lie beyond two of them.
    assert (weight.abs() > 0.04).float().mean().item() == pytest.approx(0.0455, abs=0.005)
    fc1 = method.encoder.blocks[0].mlp.fc1
    assert fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not method.head.bias.any() and not fc1.bias.any()
    bound = (1 / 384) ** 0.5  # torch's default of a convolution with 3 * 2 * 8 * 8 inputs
    embedding = method.encoder.patch_embed.proj.weight
    assert bound * 0.99 < embedding.abs().max() <= bound


def test_a_fresh_classifier_is_undecided() -> None:
    loss = Classification(ENCODER, 400)(make_batch(num_classes=400), {})["loss"]
    assert loss.item() == pytest.approx(math.log(400), abs=1e-3)


# --- regularisation -------------------------------------------------------------------------------


def test_drop_path_grows_linearly_with_depth() -> None:
    method = Classification(with_drop_path(0.2, depth=5), 5)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in method.encoder.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_drop_path_acts_in_training_only_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    method, batch = Classification(with_drop_path(0.5), 5, head_init_scale=50.0), make_batch()
    plain = Classification(ENCODER, 5)
    plain.load_state_dict(method.state_dict())
    with torch.no_grad():
        assert torch.equal(method.eval().predict(batch.clips), plain.eval().predict(batch.clips))
        method.train()
        assert not torch.equal(method.predict(batch.clips), method.predict(batch.clips))
        block = method.encoder.blocks[-1]
        x = torch.randn(20_000, 1, 24)
        x[:] = x[0]
        mean = block(x).mean(dim=0)
        method.eval()
        branch = block.attn(block.norm1(x[:1]))
        # Over the first branch's outcomes, the second's expectation is over both of its inputs.
        second = [block.mlp(block.norm2(x[:1] + part)) for part in (torch.zeros(1), 2 * branch)]
        expected = (x[:1] + branch + (second[0] + second[1]) / 2)[0]
        assert (mean - expected).abs().max() < 0.05 * (expected - x[0]).abs().max() + 1e-3


def test_head_dropout_acts_before_the_head_in_training_only() -> None:
    torch.manual_seed(0)
    method = Classification(ENCODER, 5, head_dropout=0.5, head_init_scale=50.0)
    batch = make_batch()
    seen: list[torch.Tensor] = []
    method.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method.train().predict(batch.clips)
    method.eval().predict(batch.clips)
    dropped = seen[0] == 0
    assert 0.3 < dropped.float().mean() < 0.7 and not (seen[1] == 0).any()
    torch.testing.assert_close(seen[0][~dropped], 2 * seen[1][~dropped])


def test_bfloat16_clips_reach_the_encoder_and_give_nearly_the_same_logits() -> None:
    torch.manual_seed(0)
    full = Classification(ENCODER, 5, head_init_scale=50.0)
    low = Classification(ENCODER, 5, dtype=torch.bfloat16)
    low.load_state_dict(full.state_dict())
    reached: list[torch.dtype] = []
    low.encoder.register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0].dtype))
    batch = make_batch()
    with torch.no_grad():
        expected = full.predict(batch.clips)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = low.predict(batch.clips)
            loss = low(batch, {})["loss"]
    assert reached[0] == torch.bfloat16 and loss.dtype == torch.float32
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


# --- groups ---------------------------------------------------------------------------------------


def test_published_finetuning_has_28_groups_from_the_pixels_up() -> None:
    with torch.device("meta"):
        method = Classification(VitConfig(embed_dim=768, depth=12, num_heads=12), 400)
    groups = method.param_groups(0.05, 0.75)
    assert len(groups) == 28
    scales = sorted({group["lr_scale"] for group in groups})
    assert scales == pytest.approx([0.75**i for i in range(13, -1, -1)])
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in method.named_parameters())
    assert len({id(p) for group in groups for p in group["params"]}) == len(names)


def test_frozen_parameters_are_in_no_group() -> None:
    method = Classification(ENCODER, 5)
    method.encoder.requires_grad_(False)
    names = {name for group in method.param_groups(0.05) for name in group["names"]}
    assert names == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}


# --- compiling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("drop_path", "checkpointed"), [(0.0, False), (0.3, False), (0.3, True)])
def test_forward_and_backward_compile_once_as_one_graph(
    drop_path: float, checkpointed: bool
) -> None:
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    method = Classification(with_drop_path(drop_path), 5, label_smoothing=0.1, head_init_scale=1.0)
    if checkpointed:
        checkpoint_blocks(method)
    compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            batch = make_batch(seed=seed)
            loss = compiled(batch, {})["loss"]
            gradients = torch.autograd.grad(loss, list(method.parameters()))
            assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
            if drop_path == 0:
                eager = method(batch, {})["loss"]
                expected = torch.autograd.grad(eager, list(method.parameters()))
                torch.testing.assert_close(loss, eager, rtol=1e-5, atol=1e-6)
                for ours, theirs in zip(gradients, expected, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()
