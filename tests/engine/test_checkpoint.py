"""Checkpoints: bit-equal after loading, refused when damaged or of another run, two kept."""

import errno
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision import MixedPrecision
from torch.optim import Optimizer

from kinetics400.batch import Batch, normalize
from kinetics400.engine.agreement import Agreement
from kinetics400.engine.average import WeightAverage
from kinetics400.engine.checkpoint import (
    check_agreement,
    find_checkpoint,
    load_checkpoint,
    made_otherwise,
    read_checkpoint,
    save_checkpoint,
    set_aside_later,
)
from kinetics400.engine.optim import build_adamw, set_lr
from kinetics400.errors import InputError, StorageError
from kinetics400.methods.classification import Classification
from kinetics400.models.vit import VitConfig

ENCODER = VitConfig(
    **{"embed_dim": 12, "depth": 2, "num_heads": 2, "image_size": 8, "patch_size": 4},
    num_frames=2,
    drop_path_rate=0.5,  # draws from torch's generator at every step
)
AGREED = {"seed": 0, "lr": 3e-4, "scale": (0.5, 1.0), "model_name": "tiny"}
FILES = ("model.safetensors", "optimizer.safetensors", "rank-00000.safetensors", "state.json")


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def build(seed: int = 0) -> tuple[Classification, Optimizer]:
    torch.manual_seed(seed)
    method = Classification(ENCODER, 3, head_init_scale=1.0)
    groups = method.param_groups(0.05, 0.75)
    return method, build_adamw(groups, betas=(0.9, 0.999), fused=True)


def train(method: Classification, optimizer: Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        shape = (4, 3, 2, 8, 8)
        clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.arange(4) % 3
        set_lr(optimizer, 1e-2)
        loss = method.train()(Batch(normalize(clips), labels, labels), {})["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def save(fabric: Fabric, root: Path, step: int, *parts: Any, **agreed: Any) -> Path:
    method, optimizer = parts or build()
    save_checkpoint(
        fabric,
        root,
        step=step,
        method=method,
        optimizer=optimizer,
        agreed={**AGREED, **agreed},
        agreement=Agreement(fabric),
    )
    return root / f"step-{step:010}"


def draw_everywhere() -> list[float]:
    return [
        torch.rand(()).item(),
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.standard_normal(),
    ]


# --- round trip -----------------------------------------------------------------------------------


def test_training_continues_bit_for_bit(fabric: Fabric, tmp_path: Path) -> None:
    method, optimizer = build()
    train(method, optimizer, range(3))
    save(fabric, tmp_path, 3, method, optimizer)
    expected = train(method, optimizer, range(3, 7))
    weights = method.state_dict()

    method, optimizer = build(seed=99)
    checkpoint, _ = find_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.step == 3
    load_checkpoint(fabric, checkpoint, method=method, optimizer=optimizer)
    assert train(method, optimizer, range(3, 7)) == expected
    assert all(torch.equal(method.state_dict()[name], weights[name]) for name in weights)


def test_the_average_of_the_weights_continues(fabric: Fabric, tmp_path: Path) -> None:
    method, optimizer = build()
    average = WeightAverage(method, 0.9)
    train(method, optimizer, range(3))
    average.update()
    expected = {name: value.clone() for name, value in average.state().items()}
    save_checkpoint(
        fabric,
        tmp_path,
        step=3,
        method=method,
        optimizer=optimizer,
        agreed=AGREED,
        agreement=Agreement(fabric),
        average=average,
    )
    checkpoint, _ = find_checkpoint(tmp_path)
    assert checkpoint is not None
    assert "average.safetensors" in (checkpoint.folder / "manifest.json").read_text()

    method, optimizer = build(seed=99)
    fresh = WeightAverage(method, 0.9)
    load_checkpoint(fabric, checkpoint, method=method, optimizer=optimizer, average=fresh)
    assert all(torch.equal(fresh.state()[name], value) for name, value in expected.items())


@pytest.mark.parametrize("cached_gauss", [False, True])
def test_all_generators_continue(fabric: Fabric, tmp_path: Path, cached_gauss: bool) -> None:
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    method, optimizer = build()
    train(method, optimizer, range(1))
    if cached_gauss:  # both make two Gaussians at a time and keep one
        random.gauss(0, 1)
        np.random.standard_normal()
    save(fabric, tmp_path, 1, method, optimizer)
    expected = [draw_everywhere() for _ in range(3)]
    checkpoint, _ = find_checkpoint(tmp_path)
    assert checkpoint is not None
    for seed in (7, 8):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        draw_everywhere()
        load_checkpoint(fabric, checkpoint, method=method, optimizer=optimizer)
        assert [draw_everywhere() for _ in range(3)] == expected


def test_saving_does_not_disturb_the_generators(fabric: Fabric, tmp_path: Path) -> None:
    parts = build()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    save(fabric, tmp_path, 1, *parts)
    assert torch.equal(torch.rand(3), expected)


def test_checkpoint_is_what_its_manifest_says(fabric: Fabric, tmp_path: Path) -> None:
    folder = save(fabric, tmp_path, 12_000)
    assert folder.name == "step-0000012000"
    assert sorted(file.name for file in folder.iterdir()) == sorted((*FILES, "manifest.json"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest) == sorted(FILES)
    assert all(manifest[name]["bytes"] == (folder / name).stat().st_size for name in FILES)
    state = json.loads((folder / "state.json").read_text())
    assert state["step"] == 12_000 and state["agreed"]["lr"] == 3e-4


# --- which are kept and found ---------------------------------------------------------------------


def test_only_the_newest_two_are_kept(fabric: Fabric, tmp_path: Path) -> None:
    parts = build()
    for step in (5, 10, 90, 100, 1000):
        save(fabric, tmp_path, step, *parts)
    names = sorted(folder.name for folder in tmp_path.iterdir())
    assert names == ["step-0000000100", "step-0000001000"]
    checkpoint, _ = find_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.step == 1000


def test_the_same_step_is_replaced(fabric: Fabric, tmp_path: Path) -> None:
    save(fabric, tmp_path, 5, lr=1.0)
    save(fabric, tmp_path, 5, lr=2.0)
    checkpoint, _ = find_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.state["agreed"]["lr"] == 2.0
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-0000000005"]


def test_a_half_written_one_is_not_found_and_not_in_the_way(fabric: Fabric, tmp_path: Path) -> None:
    left = tmp_path / ".tmp-step-0000000005"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (left / "rank-00007.safetensors").write_bytes(b"half")
    assert find_checkpoint(tmp_path) == (None, "")
    folder = save(fabric, tmp_path, 5)
    assert not left.exists() and not (folder / "rank-00007.safetensors").exists()
    assert read_checkpoint(folder).step == 5


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) == (None, "")
    assert find_checkpoint(tmp_path / "absent") == (None, "")


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(fabric: Fabric, tmp_path: Path, name: str) -> None:
    method, optimizer = build()
    train(method, optimizer, range(1))
    folder = save(fabric, tmp_path, 5, method, optimizer)
    content = bytearray((folder / name).read_bytes())
    content[-20] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{folder.name}: {name} is damaged.*Remove that folder"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_damaged_one_is_passed_over_once_and_kept_under_another_name(
    fabric: Fabric, tmp_path: Path, name: str
) -> None:
    sound, damaged = save(fabric, tmp_path, 5), save(fabric, tmp_path, 6)
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(content[:-1])
    checkpoint, reason = find_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.folder == sound
    assert damaged.name in reason
    assert damaged.exists()  # looking changes nothing

    set_aside_later(tmp_path, 5)
    aside = tmp_path / f".bad-{damaged.name}"
    assert {path.name for path in tmp_path.iterdir()} == {sound.name, aside.name}
    assert (aside / name).read_bytes() == content[:-1]
    assert find_checkpoint(tmp_path) == (checkpoint, "")


def test_two_damaged_ones_are_a_failing_disk(fabric: Fabric, tmp_path: Path) -> None:
    for step in (5, 6):
        (save(fabric, tmp_path, step) / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"step-0000000005: state\.json is damaged"):
        find_checkpoint(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the file's name")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_disk_that_takes_no_checkpoint_leaves_the_one_before(
    fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """Full, failing, or read-only at any of the files."""
    before = save(fabric, tmp_path, 5)
    content = {file.name: file.read_bytes() for file in before.iterdir()}

    fsync = os.fsync

    def failing(file: int) -> None:
        if name in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(number, os.strerror(number))
        fsync(file)

    monkeypatch.setattr(os, "fsync", failing)
    told = f"step-0000000006 could not be written: .*{os.strerror(number)}"
    with pytest.raises(StorageError, match=told):
        save(fabric, tmp_path, 6)
    assert [path.name for path in tmp_path.iterdir()] == [before.name]
    assert {file.name: file.read_bytes() for file in before.iterdir()} == content


def test_sums_since_the_last_row_come_back(fabric: Fabric, tmp_path: Path) -> None:
    method, optimizer = build()
    train(method, optimizer, range(1))
    sums = {"loss": torch.tensor([3.5, 2.0]), "grad_norm": torch.tensor([1.0, 2.0])}
    save_checkpoint(
        fabric,
        tmp_path,
        step=1,
        method=method,
        optimizer=optimizer,
        agreed=AGREED,
        agreement=Agreement(fabric),
        means=sums,
    )
    checkpoint, _ = find_checkpoint(tmp_path)
    assert checkpoint is not None
    found = load_checkpoint(fabric, checkpoint, method=method, optimizer=optimizer)
    assert found.keys() == sums.keys()
    assert all(torch.equal(found[name], value) for name, value in sums.items())


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_named(fabric: Fabric, tmp_path: Path, name: str) -> None:
    folder = save(fabric, tmp_path, 5)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"is not a complete checkpoint: .*{name}"):
        read_checkpoint(folder)


@pytest.mark.parametrize("manifest", ["", "{", "[]", '{"model.safetensors": 3}', "null"])
def test_a_broken_manifest_is_refused(fabric: Fabric, tmp_path: Path, manifest: str) -> None:
    folder = save(fabric, tmp_path, 5)
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match="is not a complete checkpoint"):
        read_checkpoint(folder)


def test_another_schema_is_refused(
    fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kinetics400.engine.checkpoint.SCHEMA", 2)
    folder = save(fabric, tmp_path, 5)
    monkeypatch.undo()
    with pytest.raises(InputError, match="has schema 2, this version reads 1"):
        read_checkpoint(folder)


def test_other_settings_are_refused_and_all_listed(fabric: Fabric, tmp_path: Path) -> None:
    method, optimizer = build()
    save(fabric, tmp_path / "checkpoints", 5, method, optimizer)
    checkpoint, _ = find_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    check_agreement(checkpoint, AGREED)  # a tuple has become a list on disk: no difference
    other = {**AGREED, "lr": 1e-3, "mask_ratio": 0.9}
    del other["model_name"]
    with pytest.raises(InputError) as failure:
        check_agreement(checkpoint, other)
    message = str(failure.value)
    assert f"the run in {tmp_path} was started with other settings" in message
    assert "lr was 0.0003, now 0.001; mask_ratio was None, now 0.9; " in message
    assert "model_name was 'tiny', now None" in message and "seed" not in message
    assert "--save_dir" in message


def test_other_versions_are_told_apart(
    fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = read_checkpoint(save(fabric, tmp_path, 5))
    assert made_otherwise(checkpoint, fabric.device) == []
    before = torch.__version__
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert made_otherwise(checkpoint, fabric.device) == [f"torch 9.9 instead of {before}"]


def test_the_loss_scale_of_float16_continues(fabric: Fabric, tmp_path: Path) -> None:
    """A fresh scale would skip other steps than the uninterrupted run."""
    precision = MixedPrecision("16-mixed", "cpu")
    assert precision.scaler is not None
    half = Fabric(accelerator="cpu", devices=1, plugins=[precision])
    method, optimizer = build()
    wanted = {**precision.scaler.state_dict(), "scale": 512.0, "_growth_tracker": 7}
    precision.scaler.load_state_dict(wanted)
    train(method, optimizer, range(1))
    folder = save(half, tmp_path, 1, method, optimizer)
    fresh = MixedPrecision("16-mixed", "cpu")
    again = Fabric(accelerator="cpu", devices=1, plugins=[fresh])
    load_checkpoint(again, read_checkpoint(folder), method=method, optimizer=optimizer)
    assert fresh.scaler is not None and fresh.scaler.state_dict() == wanted
