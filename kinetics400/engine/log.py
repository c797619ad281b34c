"""What a run says: metrics.jsonl, TensorBoard events and the console. Rank 0 only.

Units: times in seconds, memory in GiB, rates in clips per second over all ranks.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kinetics400.data.storage import write_atomic

FORMATS = {
    "loss": "loss {:.4f}",
    "lr": "lr {:.3g}",
    "clips_per_sec": "{:.1f} clips/s",
    "step_time": "step {:.3f} s",
    "data_share": "waiting for data {:.0%}",
    "mfu": "MFU {:.0%}",
    "memory": "mem {:.1f} GiB",
    "val_top1_acc": "val top-1 {:.2f} %",
    "val_top5_acc": "top-5 {:.2f} %",
}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a last line torn by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def is_evaluated(path: Path, step: int) -> bool:
    """Whether a metrics.jsonl has an evaluation after this many steps."""
    return any(row["step"] == step and "loss" not in row for row in read_metrics(path))


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(3723.4)
    '1:02:03'
    """
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}"


def memory_gib(device: torch.device) -> float:
    """Peak memory: of the accelerator's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, else KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class RunLog:
    """Write a run's metrics and tell the console.

    Use as a context manager.

    Args:
        save_dir: the run directory; None for ranks that stay silent.
        total_steps: of the whole run.
        start_step: rows of earlier attempts from this step on are cut off.
        title: what the run is called on the console.
    """

    def __init__(
        self, save_dir: Path | None, *, total_steps: int, start_step: int = 0, title: str = ""
    ) -> None:
        self.total_steps = total_steps
        self._start_step = start_step
        self._started = time.monotonic()
        self._file = None
        self._writer = None
        self._bar: Progress | None = None
        if save_dir is None:
            return
        # Heavy (it imports protobuf), and only rank 0 needs it.
        from torch.utils.tensorboard import SummaryWriter

        path = save_dir / "metrics.jsonl"
        kept = [row for row in read_metrics(path) if row["step"] <= start_step]
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self._writer = SummaryWriter(str(save_dir), purge_step=start_step + 1)
        console = Console()
        if console.is_terminal:
            columns = (
                TextColumn("{task.fields[title]}", markup=False),
                BarColumn(bar_width=12),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(
                "", total=total_steps, completed=start_step, title=title
            )
            self._bar.start()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def say(self, text: str) -> None:
        """Print a line."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self._file is not None:
            print(text, flush=True)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars after `step` steps, and tell the console in one line."""
        if self._file is None or self._writer is None:
            return
        # JSON knows neither infinity nor NaN (a gradient norm in float16 may be).
        row = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._show(step, values)

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        parts = [text.format(values[name]) for name, text in FORMATS.items() if name in values]
        if "loss" not in values:  # an evaluation, not a training line
            self.say(f"epoch {values['epoch']:g}  " + "  ".join(parts))
            return
        rate = (time.monotonic() - self._started) / max(step - self._start_step, 1)
        parts.append(f"ETA {duration(rate * (self.total_steps - step))}")
        line = f"step {step}/{self.total_steps}  " + "  ".join(parts)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=line)
        else:
            print(line, flush=True)
