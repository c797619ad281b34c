"""When to save and when to stop."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from lightning.fabric import Fabric

from kinetics400.engine import interruption as module
from kinetics400.engine.agreement import Agreement
from kinetics400.engine.interruption import SIGNALS, Decision, Interruption
from kinetics400.errors import Stopped


def interruption(minutes: float = 0.0) -> Interruption:
    return Interruption(Agreement(Fabric(accelerator="cpu", devices=1)), save_minutes=minutes)


def test_the_clock_says_when_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    ours, never = interruption(2.0), interruption()
    found = []
    for seconds in (0, 119.9, 120, 300, 301, 420):
        now[0] = 100.0 + seconds
        assert never.decide() == Decision()
        found.append(ours.decide().save)
        if seconds == 300:
            ours.saved()
    assert found == [False, False, True, True, False, True]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_nothing_else(number: int) -> None:
    ours = interruption()
    before = [signal.getsignal(one) for one in SIGNALS]
    with ours.listening():
        assert ours.decide() == Decision()
        os.kill(os.getpid(), number)
        assert ours.decide() == Decision(stop=number)
    assert [signal.getsignal(one) for one in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_an_evaluation_is_left_at_once(number: int) -> None:
    ours = interruption()
    name = signal.Signals(number).name
    with ours.listening():
        with (
            pytest.raises(Stopped, match=f"stopped by {name} during an evaluation"),
            ours.impatient(),
        ):
            os.kill(os.getpid(), number)
            pytest.fail("went on")
        os.kill(os.getpid(), number)  # only noted again
        assert ours.decide().stop == number


def test_a_second_signal_ends_the_process_at_once() -> None:
    code = (
        "import os, signal, time\n"
        "from lightning.fabric import Fabric\n"
        "from kinetics400.engine.agreement import Agreement\n"
        "from kinetics400.engine.interruption import Interruption\n"
        "ours = Interruption(Agreement(Fabric(accelerator='cpu', devices=1)), save_minutes=0)\n"
        "with ours.listening():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('one', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('two', flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (75, "one\n")


def test_only_rank_zeros_clock_counts() -> None:
    class Other:
        rank = 1

        def largest(self, values: list[int]) -> list[int]:
            assert values[0] == 0
            return [1, values[1]]

    other: Any = Other()
    assert Interruption(other, save_minutes=1e-9).decide() == Decision(save=True)
