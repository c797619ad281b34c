"""Pickles are read in a process of their own: what happens there stays there."""

import multiprocessing
import os
import resource
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kinetics400.errors import InputError, StorageError
from kinetics400.models import pickles
from kinetics400.models.pickles import read_pickle


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights; the folder for temporary files is `tmp_path / "temporary"`."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    torch.save({"model": {"a": torch.arange(5.0), "b": torch.ones(2, 3)}}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def while_reading(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Have the reader do something else, as one taken over by a hostile file would."""
    monkeypatch.setattr(torch, "load", lambda *args, **more: action())


def test_tensors_come_back_and_nothing_is_left(file: Path) -> None:
    state = read_pickle(file)
    assert state.keys() == {"a", "b"}
    assert state["a"].tolist() == [0, 1, 2, 3, 4] and state["b"].shape == (2, 3)
    assert not os.listdir(file.parent / "temporary")
    assert not multiprocessing.active_children()


def test_two_names_of_one_tensor(file: Path) -> None:
    table = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": table, "b": table, "c": table.t()}, file)
    state = read_pickle(file)
    assert torch.equal(state["a"], table) and torch.equal(state["b"], table)
    assert torch.equal(state["c"], table.t())


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "crashed .*signal 9"),
        (lambda: os._exit(3), r"crashed \(its process ended with code 3\)"),
        (lambda: bytearray(3 << 30), "out of memory"),
    ],
    ids=["crash", "exit", "memory"],
)
def test_what_befalls_the_reader_is_an_error_here(
    file: Path, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object], message: str
) -> None:
    while_reading(monkeypatch, action)
    with pytest.raises(InputError, match=rf"w\.pth cannot be loaded safely: .*{message}"):
        read_pickle(file)
    assert not os.listdir(file.parent / "temporary")


def test_nothing_that_a_reader_leaves_is_believed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge = "a header of more bytes than there are"
    monkeypatch.setattr(pickles, "save_tensors", lambda target, _: target.write_text(forge))
    monkeypatch.setattr(torch, "load", lambda *args, **more: {"a": torch.zeros(1)})
    with pytest.raises(
        InputError, match=r"w\.pth cannot be loaded safely: its reader left .*header"
    ):
        read_pickle(file)


def test_a_reader_that_does_not_end_is_killed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "SECONDS", 1)
    while_reading(monkeypatch, signal.pause)
    with pytest.raises(InputError, match="hung"):
        read_pickle(file)
    assert not multiprocessing.active_children()


@pytest.mark.skipif(os.geteuid() != 0, reason="others need user namespaces, which may be off")
def test_the_reader_reaches_nobody(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        while_reading(monkeypatch, lambda: socket.create_connection(server.getsockname()))
        with pytest.raises(InputError, match="Network is unreachable"):
            read_pickle(file)
        with pytest.raises(TimeoutError):
            server.accept()


def test_tensors_that_claim_more_than_the_file_has(file: Path) -> None:
    """An expanded tensor of 4 TB is a few bytes on disk."""
    torch.save({"bomb": torch.zeros(1).expand(1 << 40)}, file)
    with pytest.raises(InputError, match=r"is smaller than the tensor 'bomb' that it claims"):
        read_pickle(file)


def test_no_room_for_the_copy(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "SPARE", 1 << 26)
    torch.save({"a": torch.zeros(1000), "b": torch.zeros(1000)}, file)

    def full() -> dict[str, torch.Tensor]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        return {"a": torch.zeros(1000)}

    while_reading(monkeypatch, full)
    with pytest.raises(StorageError, match=r"a copy of .*w\.pth; TMPDIR"):
        read_pickle(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pth cannot be read: .*No such file"):
        read_pickle(tmp_path / "none.pth")
