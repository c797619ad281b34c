"""The console command: which failure gives which exit code."""

import errno
import os
import signal
import sys
import types
from collections.abc import Callable, Sequence

import pytest

from kinetics400 import __main__ as console
from kinetics400.errors import DataError, InputError, StorageError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], int]:
    """Run a function as if it were a subcommand."""

    def run(body: Callable[[], int]) -> int:
        module = types.ModuleType("planted_command")
        module.main = lambda argv: body()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "planted_command", module)
        monkeypatch.setitem(console.COMMANDS, "planted", ("planted_command", "for this test"))
        return console.run_command("planted", [])

    return run


def raiser(error: BaseException) -> Callable[[], int]:
    def body() -> int:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("bad flag"), 2),
        (DataError("bad data"), 3),
        (StorageError("bad disk"), 74),
        (OSError(errno.ENOSPC, "No space left on device"), 74),
        (KeyboardInterrupt(), 75),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_failures_have_their_exit_codes(
    command: Callable, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    assert command(raiser(error)) == code
    told = capsys.readouterr().err
    assert told.startswith("planted: ") and told.count("\n") == 1


def test_a_bug_keeps_its_traceback(command: Callable) -> None:
    with pytest.raises(ZeroDivisionError):
        command(lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        command(raiser(FileNotFoundError(errno.ENOENT, "No such file")))


def test_sigterm_stops_in_order_and_says_that_the_run_can_continue(
    command: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    left_in_order: list[bool] = []

    def body() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            left_in_order.append(True)
        return 0

    assert command(body) == 75
    assert left_in_order == [True]
    assert "repeat the command to continue" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def run_console(monkeypatch: pytest.MonkeyPatch, argv: Sequence[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["kinetics400", *argv])
    with pytest.raises(SystemExit) as ended:
        console.main()
    return ended.value.code  # type: ignore[return-value]


def test_unknown_command_is_refused_with_a_suggestion(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_console(monkeypatch, ["trian"]) == 2
    assert "Perhaps you meant 'train'?" in capsys.readouterr().err


def test_help_lists_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_console(monkeypatch, []) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in console.COMMANDS)
