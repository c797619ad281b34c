"""Our classes, loaded by our loader, against numbers of the public VideoMAE code (tests/golden)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kinetics400.batch import Batch, normalize
from kinetics400.engine.optim import build_adamw, set_lr
from kinetics400.engine.schedule import warmup_cosine
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.pretrained import load_pretrained, read_weights
from kinetics400.models.vit import DecoderConfig, VitConfig

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FACTS = json.loads((GOLDEN / "tiny.json").read_text(encoding="utf-8"))
TENSORS = load_file(GOLDEN / "tiny.tensors.safetensors")
SIZES = FACTS["config"]
SCHEDULE = FACTS["lr_schedule"]

ENCODER = VitConfig(
    **{
        name: SIZES[name]
        for name in (
            *("embed_dim", "depth", "num_heads"),
            *("image_size", "patch_size", "num_frames", "tubelet_size"),
        )
    }
)
DECODER = DecoderConfig(
    embed_dim=SIZES["decoder_embed_dim"],
    depth=SIZES["decoder_depth"],
    num_heads=SIZES["decoder_num_heads"],
)


def official_pth(folder: Path, kind: str, wrapper: str) -> Path:
    """The golden weights as the official training code saves them."""
    file = folder / f"{kind}-{wrapper}.pth"
    state = load_file(GOLDEN / f"tiny.{kind}_official.safetensors")
    torch.save({wrapper: state, "epoch": 3}, file)
    return file


def videomae(folder: Path, *, norm_pix_loss: bool = True, wrapper: str = "model") -> VideoMAE:
    method = VideoMAE(ENCODER, DECODER, mask_ratio=SIZES["mask_ratio"], norm_pix_loss=norm_pix_loss)
    load_pretrained(method, read_weights(official_pth(folder, "pretrain", wrapper)))
    return method


def classifier(folder: Path, *, wrapper: str = "model") -> Classification:
    method = Classification(ENCODER, SIZES["num_classes"], label_smoothing=0.1)
    load_pretrained(method, read_weights(official_pth(folder, "finetune", wrapper)))
    return method


def pretraining_batch() -> tuple[Batch, dict[str, Tensor]]:
    clips = normalize(TENSORS["pretrain.input.video_uint8_bcthw"])
    mask = TENSORS["pretrain.input.mask"]
    nothing = torch.zeros(len(clips), dtype=torch.int64)
    drawn = {
        "keep_indices": torch.stack([(~row).nonzero()[:, 0] for row in mask]),
        "mask_indices": torch.stack([row.nonzero()[:, 0] for row in mask]),
    }
    return Batch(clips, nothing, nothing), drawn


def finetuning_batch() -> Batch:
    clips = normalize(TENSORS["finetune.input.video_uint8_bcthw"])
    labels = TENSORS["finetune.input.label"]
    return Batch(clips, labels, torch.zeros_like(labels))


def assert_same(ours: Tensor, golden: Tensor, relative: float = 1e-5) -> None:
    """Largest error relative to the largest value."""
    assert ours.shape == golden.shape and ours.dtype == golden.dtype
    assert (ours - golden).abs().max() <= relative * golden.abs().max()


def assert_same_gradients(method: torch.nn.Module, golden: dict[str, float], prefix: str) -> None:
    ours = {name: p.grad.norm().item() for name, p in method.named_parameters()}
    assert ours == pytest.approx({ours_name(name, prefix): v for name, v in golden.items()}, 1e-4)


def ours_name(official: str, prefix: str) -> str:
    return official if official.startswith(("fc_norm.", "head.")) else prefix + official


# --- pretraining ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["model", "module"])
def test_encoder_output_and_predictions(tmp_path: Path, wrapper: str) -> None:
    method = videomae(tmp_path, wrapper=wrapper).eval()
    batch, drawn = pretraining_batch()
    with torch.no_grad():
        visible = method.encoder(batch.clips, drawn["keep_indices"])
        predictions = method.reconstruct(batch.clips, **drawn)
    assert_same(visible, TENSORS["pretrain.output.encoder_visible"])
    assert_same(predictions, TENSORS["pretrain.output.pred_masked"])


@pytest.mark.parametrize(("norm_pix_loss", "name"), [(True, "norm_pix"), (False, "raw_pix")])
def test_reconstruction_loss(tmp_path: Path, norm_pix_loss: bool, name: str) -> None:
    method = videomae(tmp_path, norm_pix_loss=norm_pix_loss)
    loss = method(*pretraining_batch())["loss"]
    assert loss.item() == pytest.approx(TENSORS[f"pretrain.output.loss_{name}"].item(), rel=1e-5)


def test_reconstruction_gradients(tmp_path: Path) -> None:
    method = videomae(tmp_path)
    method(*pretraining_batch())["loss"].backward()
    assert_same_gradients(method, FACTS["pretrain"]["grad_norm_of_loss_norm_pix"], prefix="")


@pytest.mark.parametrize("fused", [False, True])
def test_five_adamw_steps(tmp_path: Path, fused: bool) -> None:
    facts = FACTS["pretrain"]["adamw"]
    method = videomae(tmp_path)
    groups = method.param_groups(facts["weight_decay"])
    optimizer = build_adamw(groups, betas=tuple(facts["betas"]), eps=facts["eps"], fused=fused)
    batch, drawn = pretraining_batch()
    losses, rates = [], []
    first = SCHEDULE["values"].index(facts["lr_per_step"][0])  # in the middle of the warm-up
    for step in range(first, first + 5):
        loss = method(batch, drawn)["loss"]
        losses.append(loss.item())
        loss.backward()
        set_lr(optimizer, golden_lr(step))
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    losses.append(method(batch, drawn)["loss"].item())
    assert rates == [pytest.approx([lr, lr], rel=1e-12) for lr in facts["lr_per_step"]]
    golden = FACTS["pretrain"]["loss_before_each_step_and_after_last"]
    assert losses == pytest.approx(golden, rel=1e-5)


def test_pretraining_groups() -> None:
    method = VideoMAE(ENCODER, DECODER, mask_ratio=SIZES["mask_ratio"])
    groups = method.param_groups(0.05)
    decays = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert len(groups) == 2 and {group["lr_scale"] for group in groups} == {1.0}
    official = load_file(GOLDEN / "tiny.pretrain_official.safetensors")
    # "Every parameter with one dimension, every bias, mask_token" goes without weight decay.
    assert decays == {
        name: 0.0 if value.dim() == 1 or name == "mask_token" else 0.05
        for name, value in official.items()
    }


# --- finetuning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["model", "module"])
def test_logits_and_smoothed_loss(tmp_path: Path, wrapper: str) -> None:
    method = classifier(tmp_path, wrapper=wrapper)
    batch = finetuning_batch()
    with torch.no_grad():
        logits = method.eval().predict(batch.clips)
        loss = method.train()(batch, {})["loss"]
    assert_same(logits, TENSORS["finetune.output.logits"])
    assert loss.item() == pytest.approx(
        TENSORS["finetune.output.loss_smoothing_0.1"].item(), rel=1e-5
    )


def test_classification_gradients(tmp_path: Path) -> None:
    method = classifier(tmp_path)
    method(finetuning_batch(), {})["loss"].backward()
    assert_same_gradients(method, FACTS["finetune"]["grad_norm"], prefix="encoder.")


def test_layer_decay_groups() -> None:
    groups = Classification(ENCODER, SIZES["num_classes"]).param_groups(
        0.05, FACTS["finetune"]["layer_decay"]
    )
    ours = {
        name: {"lr_scale": group["lr_scale"], "weight_decay": group["weight_decay"]}
        for group in groups
        for name in group["names"]
    }
    golden = FACTS["finetune"]["param_groups"]
    assert ours == {ours_name(name, "encoder."): facts for name, facts in golden.items()}
    assert len(groups) == 2 * (ENCODER.depth + 2)
    assert [group["lr_scale"] for group in groups] == sorted(g["lr_scale"] for g in groups)


# --- schedule -------------------------------------------------------------------------------------


def golden_lr(step: int) -> float:
    return warmup_cosine(
        step,
        peak=SCHEDULE["lr"],
        final=SCHEDULE["min_lr"],
        warmup_steps=SCHEDULE["warmup"] * SCHEDULE["iters"],
        total_steps=SCHEDULE["epochs"] * SCHEDULE["iters"],
    )


def test_whole_learning_rate_schedule() -> None:
    values = SCHEDULE["values"]
    assert len(values) == 42
    assert [golden_lr(step) for step in range(42)] == pytest.approx(values, rel=1e-12, abs=1e-18)
