"""This process's random number generators: torch's, numpy's and Python's; seeded, kept, put back.

What belongs to a sample does not come from them (data/keys.py); dropout and drop path do.
"""

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_generators(seed: int) -> None:
    """Seed all of them, on the CPU and on the devices."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_state() -> dict[str, Tensor]:
    """State of torch's, numpy's and Python's generators as tensors; NaN for no cached Gaussian."""
    _, python_state, python_gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    _, numpy_keys, position, has_gauss, numpy_gauss = numpy_state
    gauss = [
        float("nan") if python_gauss is None else python_gauss,
        numpy_gauss if has_gauss else float("nan"),
    ]
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(python_state),
        "numpy": torch.tensor([*numpy_keys.tolist(), position]),
        "gauss": torch.tensor(gauss, dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    """Put back what `random_state` gave.

    Raises:
        KeyError, TypeError, ValueError, OverflowError, RuntimeError: it is nothing of the kind.
    """
    python_gauss, numpy_gauss = (
        None if math.isnan(value) else value for value in state["gauss"].tolist()
    )
    torch.set_rng_state(state["torch"])
    random.setstate((3, tuple(state["python"].tolist()), python_gauss))
    *numpy_keys, position = state["numpy"].tolist()
    np.random.set_state(
        (
            "MT19937",
            np.array(numpy_keys, dtype=np.uint32),
            position,
            int(numpy_gauss is not None),
            numpy_gauss or 0.0,
        )
    )
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
