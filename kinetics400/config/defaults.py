"""What unset flags become: the published values for a model's size (VideoMAE's scripts).

Sources: MCG-NJU/VideoMAE scripts/kinetics/*/{pretrain,finetune}.sh, run_mae_pretraining.py,
run_class_finetuning.py, MODEL_ZOO.md. `tiny` is ours and follows the small model.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Published:
    """A size's recipe. Learning rates are per 256 clips of the global batch."""

    n_epoch: int
    base_lr: float
    min_base_lr: float
    warmup_epochs: float
    drop_path_rate: float = 0.0
    head_dropout: float = 0.0


def _pretraining(n_epoch: int) -> Published:
    return Published(n_epoch=n_epoch, base_lr=1.5e-4, min_base_lr=1e-5, warmup_epochs=40)


def _finetuning(
    n_epoch: int, base_lr: float, *, drop_path_rate: float = 0.1, **different: float
) -> Published:
    return Published(
        n_epoch=n_epoch,
        base_lr=base_lr,
        drop_path_rate=drop_path_rate,
        warmup_epochs=5,
        **{"min_base_lr": 1e-6, **different},
    )


PRETRAINING = {
    "tiny": _pretraining(1600),
    "small": _pretraining(1600),
    "base": _pretraining(800),
    "large": _pretraining(1600),
    "huge": _pretraining(1600),
}

FINETUNING = {
    "tiny": _finetuning(150, 5e-4),
    "small": _finetuning(150, 5e-4),
    "base": _finetuning(100, 1e-3),
    "large": _finetuning(35, 2e-3),
    "huge": _finetuning(50, 1e-3, drop_path_rate=0.2, head_dropout=0.5, min_base_lr=1e-5),
}
