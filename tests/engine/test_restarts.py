"""Restarts by a supervisor that come no further."""

from pathlib import Path

import pytest

from kinetics400.engine.restarts import require_progress
from kinetics400.errors import Failure

NAMES = ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"]


SLURM = {"SLURM_JOB_ID": "77"}


@pytest.mark.parametrize(
    ("first", "name", "others"),
    [({NAMES[0]: "0"}, NAMES[0], {}), (SLURM, NAMES[1], SLURM)],
    ids=["torchrun", "slurm"],
)
def test_the_third_restart_from_one_checkpoint_is_refused(
    first: dict[str, str], name: str, others: dict[str, str], tmp_path: Path
) -> None:
    require_progress(tmp_path, 40, first)
    for count in ("1", "2"):
        require_progress(tmp_path, 40, {**others, name: count})
    with pytest.raises(Failure, match="2 restarts have not come further than step 40"):
        require_progress(tmp_path, 40, {**others, name: "3"})


def test_a_new_checkpoint_starts_the_count_anew(tmp_path: Path) -> None:
    for count, step in enumerate([0, 0, 0, 10, 10, 10, 20]):
        require_progress(tmp_path, step, {NAMES[0]: str(count)})


@pytest.mark.parametrize("environment", [{}, {NAMES[0]: "0"}, SLURM])
def test_a_start_by_hand_is_never_refused(environment: dict[str, str], tmp_path: Path) -> None:
    for _ in range(6):
        require_progress(tmp_path, 40, environment)
    assert environment or not list(tmp_path.iterdir())
    for count in (1, 2):
        require_progress(tmp_path, 40, {NAMES[0]: str(count)})


def test_a_torn_count_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".restarts.json").write_text("{")
    require_progress(tmp_path, 40, {NAMES[0]: "1"})
