"""How ranks meet after a restart, and how one ends: when it fails, at once and by name."""

import atexit
import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import NoReturn

import torch.distributed
from lightning.fabric import Fabric
from torch.distributed import distributed_c10d as c10d
from torch.distributed.rendezvous import rendezvous

LEAVE_SECONDS = 5  # in which all that have not failed are at their end


def meet_again(environment: Mapping[str, str], *, backend: str, timeout: float) -> None:
    """Join the other ranks of a torchrun; nothing happens without one.

    Its store outlives the processes (torch 2.15): after a restart a rank would read in it where
    another listened before, and connect to nobody. So each attempt gets names of its own.

    Args:
        environment: what torchrun says.
        backend: of torch.distributed.
        timeout: seconds in which all must have come.
    """
    if "TORCHELASTIC_RESTART_COUNT" not in environment or environment["WORLD_SIZE"] == "1":
        return
    span = timedelta(seconds=timeout)
    store, rank, world_size = next(rendezvous("env://", timeout=span))
    attempt = f"attempt {environment['TORCHELASTIC_RESTART_COUNT']}"
    torch.distributed.init_process_group(
        backend,
        store=c10d.PrefixStore(attempt, store),
        rank=rank,
        world_size=world_size,
        timeout=span,
    )


def fail_fast(fabric: Fabric, *, timeout: float) -> None:
    """End this process at an uncaught error, told with its rank; no teardown, which may hang.

    The other ranks find their connections closed. SIGUSR2 has a process print its stacks.

    Args:
        fabric: launched.
        timeout: seconds that a rank waits for the others from here on.
    """
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    if fabric.world_size == 1:
        return
    # The public function is newer than the oldest torch supported.
    set_timeout = getattr(c10d, "set_timeout", None) or c10d._set_pg_timeout
    set_timeout(timedelta(seconds=timeout))
    rank = fabric.global_rank

    def fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        told = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write("".join(f"[rank {rank}] {line}\n" for line in told.splitlines()))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    sys.excepthook = fail


def is_one_of_several() -> bool:
    """Whether this process has met others."""
    return torch.distributed.is_initialized()


def leave(code: int) -> NoReturn:
    """End this process, one of several, when its command has ended.

    What Python has registered for the end is done. The interpreter is not taken apart: threads of
    gloo may still be at work (torch 2.14, on a busy machine), and the process would abort instead
    of giving its exit code. The processes wait for each other, as one that closes its connections
    may take from another what that has not read yet.
    """
    store = c10d._get_default_store()
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # Those that fail do not come; and the store is gone once rank 0 has seen all and left.
    with suppress(RuntimeError):
        store.set(f"leaves/{rank}", "")
        everybody = [f"leaves/{one}" for one in range(world_size)]
        store.wait(everybody, timedelta(seconds=LEAVE_SECONDS))
    os._exit(code)
