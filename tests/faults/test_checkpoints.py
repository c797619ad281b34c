"""Many injections into checkpoints. `make faults` runs them, with and without their guards."""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric

from kinetics400.batch import Batch, normalize
from kinetics400.engine import checkpoint
from kinetics400.engine.agreement import Agreement
from kinetics400.engine.optim import build_adamw, set_lr
from kinetics400.engine.retention import step_folders
from kinetics400.errors import Failure, StorageError
from kinetics400.methods.classification import Classification
from kinetics400.models.vit import VitConfig

pytestmark = pytest.mark.campaign

VIT = VitConfig(embed_dim=32, depth=2, num_heads=2, image_size=16, patch_size=8, num_frames=2)
Record = Callable[[str, object], None]


class Run:
    """A model that learns a little at every step, and saves after each."""

    def __init__(self, root: Path) -> None:
        torch.manual_seed(0)
        self.root, self.step = root, 0
        self.method = Classification(VIT, 3, head_init_scale=1.0)
        groups = self.method.param_groups(0.05, 0.75)
        self.optimizer = build_adamw(groups, betas=(0.9, 0.999), fused=True)
        self.fabric = Fabric(accelerator="cpu", devices=1)

    def learn(self) -> None:
        generator = torch.Generator().manual_seed(self.step)
        clips = torch.randint(0, 256, (4, 3, 2, 16, 16), dtype=torch.uint8, generator=generator)
        labels = torch.arange(4) % 3
        set_lr(self.optimizer, 1e-3)
        self.method.train()(Batch(normalize(clips), labels, labels), {})["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def save(self) -> None:
        checkpoint.save_checkpoint(
            self.fabric,
            self.root,
            step=self.step,
            method=self.method,
            optimizer=self.optimizer,
            agreed={},
            agreement=Agreement(self.fabric),
        )

    def resume(self) -> bool:
        found, _ = checkpoint.find_checkpoint(self.root)
        if found is None:
            return False
        checkpoint.load_checkpoint(self.fabric, found, method=self.method, optimizer=self.optimizer)
        self.step = found.step
        return True

    def weights(self) -> bytes:
        return b"".join(value.numpy().tobytes() for value in self.method.state_dict().values())


def in_child(act: Callable[[], None], kill_after: float | None = None) -> bool:
    """Run in a forked process that is killed after a while; whether it was, before it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def killed_at_change(number: int) -> None:
    """From here on, die before the given change to the disk."""
    left = [number]

    def count(event: str, args: tuple) -> None:
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree") or writes:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def steps_saved(root: Path, done: Path, change: int = 0) -> None:
    """Five steps, each saved; killed before a change to the disk if one is given."""
    run = Run(root)
    if change:
        killed_at_change(change)
    while run.step < 5:
        run.learn()
        run.save()
        done.write_text(str(run.step))


def test_a_run_killed_200_times_loses_at_most_one_interval(
    tmp_path: Path, record_property: Record
) -> None:
    """Before a change to the disk, or after a random time; only those count that were killed."""
    torch.set_num_threads(1)
    whole, weights = Run(tmp_path / "whole"), {}
    for _ in range(6):
        whole.learn()
        weights[whole.step] = whole.weights()
    rng, n_killed, n_survived, n_late, number = random.Random(0), 0, 0, 0, 0
    started = time.monotonic()
    in_child(lambda: steps_saved(tmp_path / "timed", tmp_path / "timed.done"))
    span = time.monotonic() - started
    while n_killed < 200:
        number += 1
        root, done = tmp_path / str(number), tmp_path / f"{number}.done"
        change = rng.randrange(1, 66) if number % 2 else 0
        was_killed = in_child(
            partial(steps_saved, root, done, change),
            None if change else rng.uniform(0, span),
        )
        if not was_killed:
            continue
        n_killed += 1
        saved = int(done.read_text() or 0) if done.exists() else 0
        again = Run(root)
        try:
            again.resume()
        except Failure:
            continue
        n_late += again.step < saved
        intact = again.step == 0 or again.weights() == weights[again.step]
        again.learn()
        n_survived += intact and again.step > saved and again.weights() == weights[again.step]
        shutil.rmtree(root, ignore_errors=True)
    record_property("injected", 200)
    record_property("survived", n_survived)
    record_property("figure", f"{200 - n_survived} torn or late of 200, {n_late} lost a saved step")
    assert n_survived == 200


def test_64_flipped_bits_and_64_truncations_are_all_detected(
    tmp_path: Path, record_property: Record
) -> None:
    """Spread over all files; the one before is taken, and a path that is asked for refused."""
    run = Run(tmp_path)
    for _ in range(2):
        run.learn()
        run.save()
    newest = list(step_folders(tmp_path).values())[-1]
    rng, n_detected, n_fallen_back = random.Random(0), 0, 0
    files = sorted(newest.iterdir())
    for number in range(128):
        file = files[number % len(files)]
        content = file.read_bytes()
        place = rng.randrange(len(content))
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(flipped) if number < 64 else content[:place])
        try:
            checkpoint.read_checkpoint(newest)
        except Failure as error:
            n_detected += newest.name in str(error)
        try:
            found, _ = checkpoint.find_checkpoint(tmp_path)
            n_fallen_back += found is not None and found.step == 1
        except Failure:
            pass
        file.write_bytes(content)
    record_property("injected", 128)
    record_property("survived", min(n_detected, n_fallen_back))
    record_property("figure", f"{n_detected} of 128 detected, {n_fallen_back} fell back one")
    assert n_detected == n_fallen_back == 128


def test_a_disk_that_is_full_at_any_byte_leaves_the_last_one_and_the_run(
    tmp_path: Path, record_property: Record
) -> None:
    """Files may not grow beyond a limit (RLIMIT_FSIZE), from nothing to a whole checkpoint."""
    run = Run(tmp_path / "run")
    run.learn()
    run.save()
    (before,) = step_folders(run.root).values()
    content = {file.name: file.read_bytes() for file in before.iterdir()}
    largest = max(map(len, content.values()))
    n_survived, verdict = 0, tmp_path / "verdict"
    for number in range(40):
        verdict.unlink(missing_ok=True)

        def act(number: int = number) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            again = Run(run.root)
            again.resume()
            again.learn()
            old = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (number * largest // 42, old[1]))
            try:
                again.save()
                told = False
            except StorageError:
                told = True
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            again.learn()  # the run is alive
            verdict.write_text(json.dumps(told))

        in_child(act)
        left = {path.name for path in run.root.iterdir()}
        same = before.exists() and content == {
            file.name: file.read_bytes() for file in before.iterdir()
        }
        told = verdict.exists() and json.loads(verdict.read_text())
        n_survived += bool(told and same and left == {before.name})
    record_property("injected", 40)
    record_property("survived", n_survived)
    record_property("figure", f"{n_survived} of 40: told, the old one unchanged, nothing left")
    assert n_survived == 40


def test_a_thousand_altered_checkpoints_never_crash_and_never_load_in_silence(
    tmp_path: Path, record_property: Record
) -> None:
    """Bytes changed, cut, or repeated in any file; in half of them the manifest is made to fit."""
    run = Run(tmp_path / "run")
    run.learn()
    run.save()
    (folder,) = step_folders(run.root).values()
    rng, counts = (
        random.Random(1),
        {"refused": 0, "crashed": 0, "silent": 0, "harmless": 0, "resealed": 0},
    )
    original = run.weights()
    content = {file.name: file.read_bytes() for file in folder.iterdir()}
    for number in range(1000):
        name = rng.choice(sorted(content))
        data = bytearray(content[name])
        # Mostly in what describes the tensors: there a parser can be led astray.
        place = rng.randrange(min(len(data), 600 if number % 3 else len(data)))
        change = number % 4
        if change == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[place : place + 8] = rng.randbytes(8)
        elif change == 2:
            del data[place:]
        else:
            data[place:place] = data[: rng.randrange(64)]
        (folder / name).write_bytes(data)
        is_resealed = number % 2 == 1 and name != "manifest.json"
        if is_resealed:
            manifest = json.loads(content["manifest.json"])
            digest = checkpoint._sha256(folder / name)
            manifest[name] = {"bytes": len(data), "sha256": digest}
            (folder / "manifest.json").write_text(json.dumps(manifest))
        again = Run(run.root)
        try:
            again.resume()
            if is_resealed:
                counts["resealed"] += 1  # whoever writes the manifest may write the weights
            elif name == "manifest.json" and again.weights() == original:
                counts["harmless"] += 1  # a space more
            else:
                counts["silent"] += 1
        except Failure:
            counts["refused"] += 1
        except Exception as error:
            counts["crashed"] += 1
            print(name, change, type(error), str(error)[:200])
        for each in (name, "manifest.json"):
            (folder / each).write_bytes(content[each])
    record_property("injected", 1000)
    record_property("survived", 1000 - counts["crashed"] - counts["silent"])
    record_property("figure", ", ".join(f"{value} {key}" for key, value in counts.items()))
    assert counts["crashed"] == counts["silent"] == 0
