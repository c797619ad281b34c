"""The console command: one table from subcommand to function, and the one place that exits."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from types import FrameType

from kinetics400 import __version__
from kinetics400.errors import Failure, Stopped, StorageError

COMMANDS = {
    "preprocess": ("kinetics400.commands.preprocess", "unpack and verify the dataset"),
    "pretrain": ("kinetics400.commands.pretrain", "pretrain a video model without labels"),
    "train": ("kinetics400.commands.train", "finetune a video classifier and evaluate it"),
    "evaluate": ("kinetics400.commands.evaluate", "evaluate a finetuned model on a split"),
    "convert": ("kinetics400.commands.convert", "official .pth weights to a model folder and back"),
    "bench": ("kinetics400.commands.bench", "measure against named peers: bench loader"),
    "doctor": ("kinetics400.commands.doctor", "find what is wrong with the machine and the data"),
    "demo": ("kinetics400.commands.demo", "the whole job on an embedded dataset, on the CPU"),
}

STOPS = (signal.SIGTERM, signal.SIGUSR1)  # SLURM sends either before it kills


def run_command(name: str, argv: Sequence[str]) -> int:
    """Run a subcommand and return the process's exit code (README, "Exit codes").

    A `Failure` becomes one message on standard error; anything else is a bug and keeps its
    traceback. One process of several ends here.
    """
    code = _run(name, argv)
    ranks = sys.modules.get("kinetics400.engine.ranks")  # otherwise the command has none
    if ranks is not None and ranks.is_one_of_several():
        ranks.leave(code)
    return code


def _run(name: str, argv: Sequence[str]) -> int:
    main = import_module(COMMANDS[name][0]).main
    try:
        with stop_on_signals():
            return main(argv)
    except Failure as failure:
        print(f"{name}: {failure}", file=sys.stderr)
        return failure.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted; repeat the command to continue", file=sys.stderr)
        return 75
    except BrokenPipeError:  # `… | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in StorageError.ERRNOS:
            raise
        print(f"{name}: the disk failed: {error}", file=sys.stderr)
        return StorageError.exit_code


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Leave in order (children ended, temporary files removed) when the scheduler says so."""

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        raise Stopped(f"stopped by {name}; repeat the command to continue.")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def usage() -> str:
    """The table of commands."""
    lines = [f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["usage: kinetics400 COMMAND [flags]   (COMMAND --help lists its flags)", "", *lines]
    )


def main() -> None:
    """Entry point of `kinetics400` and of `python -m kinetics400`."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        sys.exit(0)
    if name == "--version":
        print(__version__)
        sys.exit(0)
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS)
        hint = f" Perhaps you meant {close[0]!r}?" if close else ""
        print(f"kinetics400: there is no command {name!r}.{hint}\n{usage()}", file=sys.stderr)
        sys.exit(2)
    sys.exit(run_command(name, argv))


if __name__ == "__main__":
    main()
