"""How a rank ends when it fails: at once and by name, so that no other waits for it."""

import faulthandler
import os
import signal
import sys
import traceback
from types import TracebackType

from lightning.fabric import Fabric


def fail_fast(fabric: Fabric) -> None:
    """End this process at an uncaught error, told with its rank; no teardown, which may hang.

    The other ranks find their connections closed. SIGUSR2 has a process print its stacks.
    """
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    if fabric.world_size == 1:
        return
    rank = fabric.global_rank

    def leave(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        told = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write("".join(f"[rank {rank}] {line}\n" for line in told.splitlines()))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    sys.excepthook = leave
