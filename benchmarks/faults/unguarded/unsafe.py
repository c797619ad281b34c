"""How it is done where nobody guards: negative controls of the fault campaign."""

import json
import os
import shutil
from pathlib import Path

from kinetics400.engine import checkpoint as safe
from kinetics400.engine.optim import optimizer_state
from kinetics400.engine.retention import step_folders
from kinetics400.tensors import save_tensors


def save_checkpoint(fabric, root, *, step, method, optimizer, agreed, **_):
    """In place: the old one goes first, nothing is synced, the manifest is not the last."""
    for folder in step_folders(root).values():
        shutil.rmtree(folder)
    folder = root / f"step-{step:010}"
    folder.mkdir(parents=True, exist_ok=True)
    state = {"schema": safe.SCHEMA, "step": step, "precision": {}, "agreed": dict(agreed)}
    (folder / "state.json").write_text(json.dumps(state))
    tensors = {
        "rank-00000.safetensors": safe.random_state(),
        "model.safetensors": method.state_dict(),
        "optimizer.safetensors": optimizer_state(optimizer),
    }
    for name, values in tensors.items():
        save_tensors(folder / name, values)
    manifest = {
        file.name: {"bytes": file.stat().st_size, "sha256": safe._sha256(file)}
        for file in folder.iterdir()
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def read_checkpoint(folder):
    """Whatever is there."""
    state = json.loads((folder / "state.json").read_text())
    return safe.Checkpoint(folder, state["step"], state)


def place_in_place(shelf, staged, parts, aside=None):
    """Half of a file under its final name, and then the other half."""
    library, staging = (
        Path(os.readlink(f"/proc/self/fd/{folder}")) for folder in (shelf._root, shelf._staging)
    )
    data = (staging / staged).read_bytes()
    path = library.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        os.fsync(file.fileno())
        file.write(data[len(data) // 2 :])
    return len(data)
