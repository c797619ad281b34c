"""A run's checkpoints: written on demand, and what happens when the disk does not take one."""

import sys
from collections.abc import Mapping

import torch
from lightning.fabric import Fabric
from torch import Tensor

from kinetics400.commands.plan import Run
from kinetics400.engine.agreement import Agreement
from kinetics400.engine.average import WeightAverage
from kinetics400.engine.checkpoint import save_checkpoint
from kinetics400.engine.retention import checkpoint_bytes, note_score, require_space
from kinetics400.errors import StorageError
from kinetics400.methods.base import Method

MOST_FAILURES = 3  # in a row


class Saver:
    """Writes a run's checkpoints, and says which stay. All ranks call it together.

    A checkpoint that cannot be written leaves the older ones and the run alive; the next one is
    tried as usual.

    Args:
        fabric: the ranks.
        run: whose `save_dir` is written to.
        method: what trains.
        optimizer: of the run.
        average: of the weights, if there is one.
        agreement: of the ranks.
    """

    def __init__(
        self,
        fabric: Fabric,
        run: Run,
        method: Method,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        agreement: Agreement,
    ) -> None:
        self._fabric = fabric
        self._run = run
        self._method = method
        self._optimizer = optimizer
        self._average = average
        self._agreement = agreement
        self._failures = 0
        self._root = run.config.saving.save_dir / "checkpoints"
        self._keep_every = (run.config.saving.keep_every or 0) * run.schedule.steps_per_epoch

    def require_space(self) -> None:
        """Make sure that the disk takes the run's checkpoints.

        Raises:
            StorageError: it does not.
        """
        error: StorageError | None = None
        if self._fabric.is_global_zero:
            try:
                size = checkpoint_bytes(
                    self._method, self._optimizer, has_average=self._average is not None
                )
                require_space(self._root, size)
            except StorageError as caught:
                error = caught
        if self._agreement.any(error is not None):
            raise error or StorageError("rank 0 has no space for checkpoints")

    def evaluated(self, step: int, score: float) -> None:
        """Take note of what the weights after `step` steps are worth; larger is better."""
        if self._fabric.is_global_zero:
            note_score(self._root, step, score)

    def __call__(self, step: int, means: Mapping[str, Tensor]) -> None:
        """Write the state after `step` steps.

        Raises:
            StorageError: for the third time in a row, or after the last step.
        """
        run = self._run
        try:
            save_checkpoint(
                self._fabric,
                self._root,
                step=step,
                method=self._method,
                optimizer=self._optimizer,
                agreed=run.agreed(),
                agreement=self._agreement,
                average=self._average,
                means=means,
                keep_every=self._keep_every,
            )
        except StorageError as error:
            self._failures += 1
            if self._failures == MOST_FAILURES or step == run.schedule.total_steps:
                raise
            if self._fabric.is_global_zero:
                print(
                    f"WARNING: {error}. The run goes on; the last checkpoint is as it was. Free "
                    f"space: after {MOST_FAILURES} failures in a row the run stops",
                    file=sys.stderr,
                    flush=True,
                )
        else:
            self._failures = 0
