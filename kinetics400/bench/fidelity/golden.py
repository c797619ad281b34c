"""Pretraining and finetuning of a tiny model against numbers that the paper's code computed.

The numbers: tests/golden/README.md.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kinetics400.batch import Batch, normalize
from kinetics400.bench.fidelity.rules import FORWARD, GRADIENT, Measured, Rule, difference
from kinetics400.engine.optim import build_adamw, set_lr
from kinetics400.engine.schedule import warmup_cosine
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.pretrained import load_pretrained, read_weights
from kinetics400.models.vit import DecoderConfig, VitConfig

TESTS = "models/test_golden.py"


class Golden:
    """The reference numbers, and our models with their weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = json.loads((folder / "tiny.json").read_text(encoding="utf-8"))
        self.tensors = load_file(folder / "tiny.tensors.safetensors")
        sizes = self.facts["config"]
        self.encoder = VitConfig(
            embed_dim=sizes["embed_dim"],
            depth=sizes["depth"],
            num_heads=sizes["num_heads"],
            image_size=sizes["image_size"],
            patch_size=sizes["patch_size"],
            num_frames=sizes["num_frames"],
            tubelet_size=sizes["tubelet_size"],
        )
        self.decoder = DecoderConfig(
            embed_dim=sizes["decoder_embed_dim"],
            depth=sizes["decoder_depth"],
            num_heads=sizes["decoder_num_heads"],
        )
        self.mask_ratio = sizes["mask_ratio"]
        self.num_classes = sizes["num_classes"]

    def videomae(self, *, norm_pix_loss: bool = True) -> VideoMAE:
        """Ours for pretraining, with the golden weights."""
        method = VideoMAE(
            self.encoder, self.decoder, mask_ratio=self.mask_ratio, norm_pix_loss=norm_pix_loss
        )
        weights = read_weights(self.folder / "tiny.pretrain_official.safetensors")
        load_pretrained(method, weights)
        return method

    def classifier(self) -> Classification:
        """Ours for finetuning, with the golden weights and label smoothing."""
        method = Classification(self.encoder, self.num_classes, label_smoothing=0.1)
        weights = read_weights(self.folder / "tiny.finetune_official.safetensors")
        load_pretrained(method, weights)
        return method

    @cached_property
    def pretraining(self) -> tuple[Batch, dict[str, Tensor]]:
        """Batch and mask."""
        mask = self.tensors["pretrain.input.mask"]
        clips = normalize(self.tensors["pretrain.input.video_uint8_bcthw"])
        nothing = torch.zeros(len(clips), dtype=torch.int64)
        return Batch(clips, nothing, nothing), indices(mask)

    @cached_property
    def finetuning(self) -> Batch:
        """Batch."""
        clips = normalize(self.tensors["finetune.input.video_uint8_bcthw"])
        labels = self.tensors["finetune.input.label"]
        return Batch(clips, labels, torch.zeros_like(labels))

    def output(self, name: str) -> Tensor:
        """What the paper's code computed."""
        return self.tensors[name]


def indices(hidden: Tensor) -> dict[str, Tensor]:
    """A boolean mask (B, N), True where hidden, as our index masks."""
    return {
        "keep_indices": torch.stack([(~row).nonzero()[:, 0] for row in hidden]),
        "mask_indices": torch.stack([row.nonzero()[:, 0] for row in hidden]),
    }


# --- pretraining ----------------------------------------------------------------------------------


def golden_rules(golden: Golden) -> Iterator[Rule]:
    """Every rule that golden numbers show."""
    yield from pretraining_rules(golden)
    yield from finetuning_rules(golden)


def pretraining_rules(golden: Golden) -> Iterator[Rule]:
    """Forward, backward, five steps."""
    batch, drawn = golden.pretraining
    method = golden.videomae()
    with torch.no_grad():
        visible = method.encoder(batch.clips, drawn["keep_indices"])
        predicted = method.reconstruct(batch.clips, **drawn)
    encoded = golden.output("pretrain.output.encoder_visible")
    yield _golden(
        "model",
        "pretraining's encoder on visible tokens: pre-norm blocks, bias on q and v only, LayerNorm "
        "eps 1e-6, final norm",
        "modeling_pretrain.py",
        "models.vit.VisionTransformer",
        "test_encoder_output_and_predictions",
        difference([(visible, encoded)], relative=True),
    )
    yield _golden(
        "model",
        "decoder on [visible; mask tokens], both with positions; only masked tokens reach the head",
        "modeling_pretrain.py",
        "methods.videomae.VideoMAE.reconstruct",
        "test_encoder_output_and_predictions",
        difference([(predicted, golden.output("pretrain.output.pred_masked"))], relative=True),
    )
    for norm, name in ((True, "norm_pix"), (False, "raw_pix")):
        loss = golden.videomae(norm_pix_loss=norm)(batch, drawn)["loss"].detach()
        expected = golden.output(f"pretrain.output.loss_{name}")
        kind = "normalised pixels" if norm else "raw pixels in 0..1"
        yield _golden(
            "loss",
            f"mean squared error over masked tokens, {kind}",
            "engine_for_pretraining.py:35-64",
            "methods.videomae.VideoMAE.forward",
            "test_reconstruction_loss",
            difference([(loss, expected.squeeze())], relative=True),
        )
    method(batch, drawn)["loss"].backward()
    norms = golden.facts["pretrain"]["grad_norm_of_loss_norm_pix"]
    yield _golden(
        "loss",
        "gradient of the reconstruction loss: its norm for every parameter",
        "engine_for_pretraining.py:35-64",
        "methods.videomae.VideoMAE.forward",
        "test_reconstruction_gradients",
        _gradients(method, norms, ""),
        GRADIENT,
    )
    rates, losses = _five_steps(golden)
    facts = golden.facts["pretrain"]
    yield _golden(
        "optimisation",
        "AdamW (.9, .95), weight decay .05: loss over five steps in the warm-up",
        "optim_factory.py, engine_for_pretraining.py",
        "engine.optim.build_adamw",
        "test_five_adamw_steps",
        difference([(losses, facts["loss_before_each_step_and_after_last"])], relative=True),
    )
    yield _golden(
        "optimisation",
        "learning rates of these five steps",
        "utils.py:386-400",
        "engine.optim.set_lr",
        "test_five_adamw_steps",
        difference([(rates, facts["adamw"]["lr_per_step"])], relative=True),
        1e-12,
    )


def _five_steps(golden: Golden) -> tuple[list[float], list[float]]:
    facts, schedule = golden.facts["pretrain"]["adamw"], golden.facts["lr_schedule"]
    batch, drawn = golden.pretraining
    method = golden.videomae()
    groups = method.param_groups(facts["weight_decay"])
    optimizer = build_adamw(groups, betas=(0.9, 0.95), eps=facts["eps"], fused=False)
    rates, losses = [], []
    for step in range(7, 12):  # of a warm-up of 14
        loss = method(batch, drawn)["loss"]
        losses.append(loss.item())
        loss.backward()
        set_lr(
            optimizer,
            warmup_cosine(
                step,
                peak=schedule["lr"],
                final=schedule["min_lr"],
                warmup_steps=schedule["warmup"] * schedule["iters"],
                total_steps=schedule["epochs"] * schedule["iters"],
            ),
        )
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        rates.append(rate)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return rates, [*losses, method(batch, drawn)["loss"].item()]


# --- finetuning -----------------------------------------------------------------------------------


def finetuning_rules(golden: Golden) -> Iterator[Rule]:
    """Forward and backward."""
    method, batch = golden.classifier(), golden.finetuning
    with torch.no_grad():
        logits = method.eval().predict(batch.clips)
    yield _golden(
        "model",
        "finetuning: mean over all tokens, fresh fc_norm, head; no final norm of the encoder",
        "modeling_finetune.py:224-278",
        "methods.classification.Classification.predict",
        "test_logits_and_smoothed_loss",
        difference([(logits, golden.output("finetune.output.logits"))], relative=True),
    )
    loss = method.train()(batch, {})["loss"]
    expected = golden.output("finetune.output.loss_smoothing_0.1").squeeze()
    yield _golden(
        "loss",
        "cross-entropy with label smoothing .1",
        "engine_for_finetuning.py",
        "methods.classification.Classification.forward",
        "test_logits_and_smoothed_loss",
        difference([(loss.detach(), expected)], relative=True),
    )
    loss.backward()
    yield _golden(
        "loss",
        "gradient of the classification loss: its norm for every parameter",
        "engine_for_finetuning.py",
        "methods.classification.Classification.forward",
        "test_classification_gradients",
        _gradients(method, golden.facts["finetune"]["grad_norm"], "encoder."),
        GRADIENT,
    )


def _golden(
    part: str,
    rule: str,
    source: str,
    ours: str,
    test: str,
    found: Measured,
    allowed: float = FORWARD,
) -> Rule:
    return Rule(
        part=part,
        rule=rule,
        source=f"VideoMAE {source}",
        ours=ours,
        reference="golden numbers",
        test=f"{TESTS}::{test}",
        unit="relative",
        allowed=allowed,
        **found._asdict(),
    )


def ours_name(official: str, prefix: str) -> str:
    """A parameter's name with us; `prefix` is what the encoder's have before them."""
    return official if official.startswith(("fc_norm.", "head.")) else prefix + official


def _gradients(method: nn.Module, golden: Mapping[str, float], prefix: str) -> Measured:
    """Each parameter's own: a small one counts as much as a large one."""
    ours = {
        name: p.grad.norm().item() for name, p in method.named_parameters() if p.grad is not None
    }
    expected = {ours_name(name, prefix): value for name, value in golden.items()}
    if ours.keys() != expected.keys():
        raise ValueError(f"other parameters: {sorted(ours.keys() ^ expected.keys())}")
    return difference([([ours[n]], [expected[n]]) for n in expected], relative=True)
