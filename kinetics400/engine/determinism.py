"""The same bits from the same run, also on a GPU, for those who pay for it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """While the block lasts, use only algorithms that give the same bits every time.

    On a CPU they do so anyway. On a GPU some sums are in another order each time otherwise
    (cuBLAS's work space, attention's backward, cuDNN's choice of kernels).

    Raises:
        RuntimeError: in the block, by torch, where there is no such algorithm.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
