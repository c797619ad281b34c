"""Pretrain and finetune video models on Kinetics-400 and on data laid out like it.

The names below are the Python API. They are imported on first use, so that the small processes
which unpack and verify videos never pay for (or depend on) torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Batch": "kinetics400.batch",
    "Classification": "kinetics400.methods.classification",
    "Method": "kinetics400.methods.base",
    "VideoMAE": "kinetics400.methods.videomae",
    "VisionTransformer": "kinetics400.models.vit",
    "VitConfig": "kinetics400.models.vit",
    "fit": "kinetics400.engine.trainer",
    "load_pretrained": "kinetics400.models.pretrained",
    "save_pretrained": "kinetics400.models.pretrained",
}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
