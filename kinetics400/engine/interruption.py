"""When a run saves between epochs and when it stops: by the clock or a signal, all ranks together.

A signal is only noted. At the end of the step the ranks agree on it, save, and leave with exit code
75; so none is left waiting for another, and nothing that was computed is lost.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from kinetics400.engine.agreement import Agreement
from kinetics400.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
Handler = Callable[[int, FrameType | None], object]


@dataclass(frozen=True)
class Decision:
    """What to do after a step."""

    save: bool = False
    stop: int = 0
    """The signal that stops the run; 0 for none."""


class Interruption:
    """Decides after each step whether to save and whether to stop.

    Args:
        agreement: the ranks; rank 0's clock counts.
        save_minutes: between checkpoints; 0 for none by the clock.
    """

    def __init__(self, agreement: Agreement, *, save_minutes: float) -> None:
        self._agreement = agreement
        self._save_seconds = 60 * save_minutes
        self._signal = 0
        self.saved()

    def saved(self) -> None:
        """Start the clock anew: a checkpoint has been written."""
        self._saved = time.monotonic()

    def decide(self) -> Decision:
        """Called by all ranks after the same step."""
        since = time.monotonic() - self._saved
        due = self._agreement.rank == 0 and 0 < self._save_seconds <= since
        save, stop = self._agreement.largest([int(due), self._signal])
        return Decision(save=bool(save), stop=stop)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals while the block lasts; a second one ends the process at once."""
        with _handled_by(self._note):
            yield

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """Stop at a signal at once while the block lasts: it changes nothing that is not saved.

        Raises:
            Stopped: a signal has come.
        """
        with _handled_by(self._leave):
            yield

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            os._exit(Stopped.exit_code)
        self._signal = number

    def _leave(self, number: int, frame: FrameType | None) -> None:
        raise Stopped(
            f"stopped by {signal.Signals(number).name} during an evaluation; the training before "
            "it is saved. Repeating the command continues."
        )


@contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    """Only the main thread may handle signals; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
