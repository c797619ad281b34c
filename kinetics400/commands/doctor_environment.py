"""What the doctor says of the machine: one fact per line, each with a verdict."""

import os
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import av
from av.codec.codec import UnknownCodecError

from kinetics400.data import shared_memory
from kinetics400.data.findings import ERROR, NOTE, WARNING
from kinetics400.data.isolation import cpu_count

GOOD = "ok"
REINSTALL = "pip install --force-reinstall av"
CODECS: tuple[tuple[str, Literal["r", "w"]], ...] = (("h264", "r"), ("libx264", "w"))
# tarfile's filters keep members inside the folder from these on (CVE-2026-82049).
TARFILE_FIXED = {(3, 11): 17, (3, 12): 15, (3, 13): 16}
ROOT = Path(__file__).parents[2]
LEAST_FREE = 10e9  # bytes: a run's checkpoints, logs and final model
# Each batch on its way holds a descriptor per tensor: clips, labels and keys.
DESCRIPTORS_PER_BATCH, OTHER_DESCRIPTORS = 3, 256
# The README's two commands: clips per device, at 16 frames of 224×224.
README_COMMANDS = {"pretraining": 64, "train": 32}
README_WORKERS, README_DEVICES = 16, 8


@dataclass(frozen=True)
class Fact:
    """One thing about the machine."""

    name: str
    value: str
    verdict: str = GOOD
    """GOOD, or a level of a finding."""
    remedy: str = ""


def check_environment(data_dir: Path, n_worker: int) -> list[Fact]:
    """Look at Python, packages, devices, memory, disk, limits, compiler and codecs.

    Args:
        data_dir: where the disk is asked for free space.
        n_worker: workers per device that training would have.
    """
    facts = [python_fact(sys.version_info[:3]), *package_facts()]
    n_device, device_facts = devices()
    facts += device_facts
    facts += shared_memory_facts(n_worker, n_device)
    facts += [
        disk_fact(data_dir),
        descriptor_fact(n_worker, resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        core_fact(n_worker, n_device, cpu_count()),
        compiler_fact(has_gpu=any(fact.name == "GPU" for fact in device_facts)),
        codec_fact(),
    ]
    return facts


def python_fact(version: Sequence[int]) -> Fact:
    """Python's version, and whether its tarfile is fixed."""
    major, minor, patch = version
    value = f"{major}.{minor}.{patch}"
    fixed = TARFILE_FIXED.get((major, minor))
    if fixed is None or patch >= fixed:
        return Fact("Python", value)
    return Fact(
        "Python",
        value,
        WARNING,
        f"its tarfile can be led outside the folder; {major}.{minor}.{fixed} is fixed. (This "
        "project's own unpacking refuses links and such names.)",
    )


def requirement_lines() -> list[str]:
    """Lines of requirements.txt: the checkout's, or the installed package's record of them."""
    file = ROOT / "requirements.txt"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
    else:
        lines = [line for line in metadata.requires("kinetics400") or () if "extra ==" not in line]
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def package_facts(
    lines: Sequence[str] | None = None, installed: Callable[[str], str] = metadata.version
) -> Iterator[Fact]:
    """Each core package's version against what requirements.txt asks for."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        yield Fact("packages", "not checked", WARNING, "pip install packaging")
        return
    for line in requirement_lines() if lines is None else lines:
        wanted = Requirement(line)
        try:
            version = installed(wanted.name)
        except metadata.PackageNotFoundError:
            yield Fact(wanted.name, "missing", ERROR, f"pip install '{line}'")
            continue
        if any(rule.operator == "!=" and rule.version == version for rule in wanted.specifier):
            remedy = (
                "an excluded, compromised release: remove it, change every secret this machine "
                f"knows, then pip install '{line}'"
            )
            yield Fact(wanted.name, version, ERROR, remedy)
        elif wanted.specifier.contains(version, prereleases=True):
            yield Fact(wanted.name, version)
        else:
            yield Fact(wanted.name, version, ERROR, f"pip install '{line}'")


def devices() -> tuple[int, list[Fact]]:
    """How many devices training would use, and which --precision values make sense there."""
    try:
        import torch
    except ImportError as error:  # package_facts says the rest
        return 1, [Fact("torch", "cannot be imported", ERROR, str(error))]
    if not torch.cuda.is_available():
        return 1, [Fact("devices", "CPU only", NOTE, "--precision 32-true or bf16-mixed")]
    facts = []
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        facts.append(Fact("GPU", f"{number}: {about.name}, {about.total_memory / 1e9:.0f} GB"))
    if torch.cuda.is_bf16_supported(including_emulation=False):
        facts.append(Fact("precisions", "bf16-mixed (best), bf16-true, 16-mixed, 32-true"))
    else:
        remedy = "no bf16 in hardware: --precision 16-mixed --dtype float16"
        facts.append(Fact("precisions", "16-mixed, 32-true", NOTE, remedy))
    return torch.cuda.device_count(), facts


def shared_memory_facts(n_worker: int, n_device: int) -> Iterator[Fact]:
    """What the loader's workers need of /dev/shm for the README's commands."""
    per_clip = shared_memory.clip_bytes(16, 224)
    plans = [("here", n_worker, n_device)]
    if n_device >= README_DEVICES:
        plans.append(("as in the README", README_WORKERS, README_DEVICES))
    for where, workers, loaders in plans:
        for command, batch_size in README_COMMANDS.items():
            need = shared_memory.needed_bytes(
                clips_per_batch=batch_size,
                bytes_per_clip=per_clip,
                num_workers=workers,
                num_loaders=loaders,
            )
            short = shared_memory.shortage(need)
            name = f"shared memory, {command} {where}"
            value = f"{need / 1e9:.2f} GB for {workers} workers × {loaders}"
            yield Fact(name, value, WARNING if short else GOOD, short or "")


def disk_fact(folder: Path) -> Fact:
    """Free space where the data lies, or will lie."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    enough = free >= LEAST_FREE
    remedy = "" if enough else "checkpoints may not fit: free space, or --save_dir elsewhere"
    return Fact("free disk", f"{free / 1e9:.1f} GB", GOOD if enough else WARNING, remedy)


def descriptor_fact(n_worker: int, limit: int) -> Fact:
    """`ulimit -n` against what workers hand over."""
    batches = n_worker * shared_memory.PREFETCH + 1
    need = OTHER_DESCRIPTORS + DESCRIPTORS_PER_BATCH * batches
    if limit == resource.RLIM_INFINITY or limit >= need:
        shown = "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
        return Fact("open files", f"{shown}, about {need} needed")
    remedy = f"ulimit -n {max(4096, need)}"
    return Fact("open files", f"{limit}, about {need} needed", WARNING, remedy)


def core_fact(n_worker: int, n_device: int, n_core: int) -> Fact:
    """Cores against workers."""
    total = n_worker * n_device
    value = f"{n_core} for {n_worker} workers × {n_device}"
    if total <= n_core:
        return Fact("cores", value)
    return Fact("cores", value, WARNING, f"--n_worker {max(1, n_core // n_device)} is enough")


def compiler_fact(*, has_gpu: bool) -> Fact:
    """The C++ compiler that torch.compile needs."""
    named = os.environ.get("CXX")
    found = next((c for c in (named, "c++", "g++", "clang++") if c and shutil.which(c)), None)
    if found:
        return Fact("C++ compiler", found)
    remedy = "torch.compile needs one: install g++"
    return Fact("C++ compiler", "none", WARNING if has_gpu else NOTE, remedy)


def codec_fact() -> Fact:
    """What PyAV's FFmpeg can read and write."""
    lacking = []
    for name, mode in CODECS:
        try:
            av.Codec(name, mode)
        except UnknownCodecError:
            lacking.append(f"{'decoder' if mode == 'r' else 'encoder'} {name}")
    if lacking:
        return Fact("codecs", f"no {', no '.join(lacking)}", ERROR, REINSTALL)
    version = re.sub(r"[^\d.]", "", str(av.ffmpeg_version_info))
    return Fact("codecs", f"H.264 decoder and x264 in FFmpeg {version or av.ffmpeg_version_info}")
