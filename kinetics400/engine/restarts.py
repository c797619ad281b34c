"""A supervisor restarts what has failed; what fails again and again at one place is stopped."""

import json
from collections.abc import Mapping
from pathlib import Path

from kinetics400.data.storage import write_atomic
from kinetics400.errors import Failure

MOST_RESTARTS = 2  # without a new checkpoint
COUNTERS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
SUPERVISORS = (COUNTERS[0], "SLURM_JOB_ID")  # SLURM counts from the first restart on


def require_progress(save_dir: Path, step: int, environment: Mapping[str, str]) -> None:
    """Count the restarts from one checkpoint that a supervisor has made.

    Args:
        save_dir: where they are counted, in `.restarts.json`.
        step: of the checkpoint; 0 without one.
        environment: says whether torchrun or SLURM has restarted this run.

    Raises:
        Failure: the third restart without a new checkpoint.
    """
    path = save_dir / ".restarts.json"
    if not any(name in environment for name in SUPERVISORS):
        path.unlink(missing_ok=True)
        return
    is_restart = any(int(environment.get(name) or 0) > 0 for name in COUNTERS)
    before = _read(path) if is_restart else {}
    restarts = before.get("restarts", 0) + 1 if before.get("step") == step else 0
    if restarts > MOST_RESTARTS:
        raise Failure(
            f"{MOST_RESTARTS} restarts have not come further than step {step}: the reason stands "
            f"above, or in their logs. Repeating the command by hand tries again; what is saved in "
            f"{save_dir / 'checkpoints'} is as it was"
        )
    write_atomic(path, json.dumps({"step": step, "restarts": restarts}))


def _read(path: Path) -> dict[str, int]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
