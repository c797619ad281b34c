"""Those whose training steps are compared: ours, transformers', and one written plainly.

Same weights, clips, masks, parameter groups and precision; a side is what makes a loss, and the
optimizer that follows.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from kinetics400.batch import Batch
from kinetics400.bench.fidelity.model import reference_model
from kinetics400.bench.plain import PlainClassification, PlainPretraining
from kinetics400.data import keys
from kinetics400.engine.optim import build_adamw
from kinetics400.methods.base import Method
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.vit import DecoderConfig, VitConfig

SEED = 0
LR = 1e-4
NUM_CLASSES = 400
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.05
OURS, TRANSFORMERS, PLAIN = "ours", "transformers", "plain"
COMPILED, TUNED, GRAPHS = ", compiled", ", compiled and tuned", ", compiled to CUDA graphs"
COMPILE_MODES = {
    COMPILED: "default",
    TUNED: "max-autotune-no-cudagraphs",
    GRAPHS: "reduce-overhead",
}
MATRIX_TYPES = {
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is trained, and on what.

    Attributes:
        decoder: pretraining's; None finetunes.
        precision: as the flag; of `MATRIX_TYPES`.
    """

    config: VitConfig
    decoder: DecoderConfig | None
    batch_size: int
    precision: str
    device: torch.device

    @property
    def weights(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16-true" else torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision != "bf16-mixed":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


@dataclass
class Side:
    """One of those that are compared."""

    loss: Callable[[], Tensor]
    module: nn.Module
    optimizer: Optimizer


@dataclass(frozen=True)
class Inputs:
    """A batch in everybody's form.

    Attributes:
        batch: ours.
        hidden: (B, N) bool; None where nothing is masked.
    """

    batch: Batch
    hidden: Tensor | None


def make_method(subject: Subject) -> Method:
    """Ours, on the device; the same weights every time."""
    torch.manual_seed(SEED)
    dtype = MATRIX_TYPES[subject.precision]
    method: Method
    if subject.decoder is None:
        method = Classification(subject.config, NUM_CLASSES, head_init_scale=1.0, dtype=dtype)
    else:
        method = VideoMAE(subject.config, subject.decoder, dtype=dtype)
    return method.to(subject.device, subject.weights)


def make_inputs(subject: Subject, method: Method) -> Inputs:
    """Clips that look like nothing; their content costs nobody anything."""
    config = subject.config
    generator = torch.Generator().manual_seed(SEED)
    size = (3, config.num_frames, config.image_size, config.image_size)
    batch = Batch(
        torch.randn(subject.batch_size, *size, generator=generator),
        torch.arange(subject.batch_size) % NUM_CLASSES,
        keys.combine(SEED, torch.arange(subject.batch_size)),
    ).to(subject.device)
    drawn = method.draw(batch.keys)
    if not drawn:
        return Inputs(batch, None)
    shape = (subject.batch_size, config.num_tokens)
    hidden = torch.zeros(shape, dtype=torch.bool, device=subject.device)
    return Inputs(batch, hidden.scatter_(1, drawn["mask_indices"], True))


def make_side(name: str, subject: Subject) -> Side:
    """Build one side, on the device."""
    kind, comma, how = name.partition(",")
    method = make_method(subject)
    inputs = make_inputs(subject, method)
    makers = {OURS: _ours, TRANSFORMERS: _transformers, PLAIN: _plain}
    return makers[kind](subject, method, inputs, COMPILE_MODES.get(comma + how))


def _ours(subject: Subject, method: Method, inputs: Inputs, mode: str | None) -> Side:
    model: Callable[..., Any] = method
    if mode is not None:
        model = torch.compile(method, fullgraph=True, dynamic=False, mode=mode)
    method.train()

    def loss() -> Tensor:  # as the training loop does it: masks are part of a step
        return model(inputs.batch, method.draw(inputs.batch.keys))["loss"]

    return Side(loss, method, build_adamw(_groups(method), betas=BETAS, fused=True))


def _transformers(subject: Subject, method: Method, inputs: Inputs, mode: str | None) -> Side:
    assert isinstance(method, VideoMAE | Classification)
    module = reference_model(method.float().cpu()).to(subject.device, subject.weights).train()
    model = module if mode is None else torch.compile(module, dynamic=False, mode=mode)
    # What a loader would have handed over: made once, outside the step.
    pixels = inputs.batch.clips.transpose(1, 2).contiguous()

    def loss() -> Tensor:
        clips = pixels.to(subject.weights)
        if inputs.hidden is None:
            return model(clips, labels=inputs.batch.labels).loss
        return model(clips, bool_masked_pos=inputs.hidden).loss

    return Side(loss, module, build_adamw(_groups(module), betas=BETAS, fused=True))


def _plain(subject: Subject, method: Method, inputs: Inputs, mode: str | None) -> Side:
    assert mode is None
    module: nn.Module
    if subject.decoder is None:
        module = PlainClassification(subject.config, NUM_CLASSES)
    else:
        module = PlainPretraining(subject.config, subject.decoder)
    module.load_state_dict(method.state_dict())
    module.to(subject.device, subject.weights).train()
    batch = inputs.batch

    def loss() -> Tensor:
        clips = batch.clips.to(subject.weights)
        if inputs.hidden is None:
            return module(clips, batch.labels)
        return module(clips, batch.clips, inputs.hidden)

    # torch's own choice: a loop on a CPU, several tensors at a time on CUDA.
    return Side(loss, module, AdamW(_groups(module), lr=LR, betas=BETAS))


def _groups(module: nn.Module) -> list[dict[str, Any]]:
    """No decay for vectors and tokens, as everybody has it."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    decays = {name: p.dim() > 1 and not name.endswith("_token") for name, p in named}
    return [
        {
            "params": [p for name, p in named if decays[name] == is_decayed],
            "weight_decay": WEIGHT_DECAY if is_decayed else 0.0,
            "lr": LR,
        }
        for is_decayed in (True, False)
    ]
