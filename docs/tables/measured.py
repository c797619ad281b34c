"""Where measurements lie, and what all tables know of the dataset."""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the package, from a checkout that is not installed

BENCH = "benchmarks/results"
# Of Kinetics-400: the published copy's counts and bytes (data/README.md).
COPY_VIDEOS, COPY_GB = 240_436 + 19_796, 436


def result(name: str) -> dict[str, Any]:
    """A JSON file in results/."""
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


def bench(name: str) -> dict[str, Any]:
    """A JSON file in benchmarks/results/."""
    return json.loads((ROOT / BENCH / name).read_text(encoding="utf-8"))
