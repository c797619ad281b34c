"""`benchmarks/gpu.sh`, with a stand-in for Python: all commands that it would run parse."""

import os
import subprocess
import sys
from pathlib import Path

from kinetics400.config.bench import BenchRunConfig, BenchStepConfig
from kinetics400.config.finetuning import TrainConfig
from kinetics400.config.parse import parse
from kinetics400.config.pretraining import PretrainConfig

ROOT = Path(__file__).parents[1]
# Writes its words, one a line, and a result where --json points; a word in $FAILING makes it fail.
STANDIN = """#!/bin/bash
[[ $1 == -c ]] && exec "$PYTHON" "$@"
[[ $1 == */ffmpeg_libraries.py ]] && mkdir -p "$2"
printf '%s\\n' "$@" "" >> "$CALLS"
for word in "$@"; do [[ $word == *"${FAILING:-nothing}"* ]] && exit 1; done
while (($#)); do [[ $1 == --json ]] && echo '{"largest_batch": {"ours": 400}}' > "$2"; shift; done
"""


def run_script(folder: Path, failing: str = "nothing") -> tuple[list[list[str]], str]:
    """Its calls of Python, and what it says of those that failed."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "bin" / "python").write_text(STANDIN)
    (folder / "bin" / "python").chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    standin = {"PATH": path, "CALLS": str(calls), "FAILING": failing, "PYTHON": sys.executable}
    ran = subprocess.run(
        [str(ROOT / "benchmarks/gpu.sh"), str(folder / "results")],
        env={**os.environ, **standin},
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == (1 if ran.stderr else 0)
    return [call.splitlines() for call in calls.read_text().split("\n\n") if call], ran.stderr


def test_every_command_parses_and_none_is_repeated(tmp_path: Path) -> None:
    calls, _ = run_script(tmp_path)
    assert len({" ".join(call) for call in calls}) == len(calls) > 20
    names = set()
    *benchmarks, libraries, decoding, tests = calls
    assert libraries[0] == "benchmarks/ffmpeg_libraries.py" and tests[:2] == ["-m", "pytest"]
    assert decoding[0] == "benchmarks/gpu_decode.py"
    assert all((ROOT / name).is_file() for name in (libraries[0], decoding[0], *tests[3:]))
    for call in benchmarks:
        assert call[:3] == ["-m", "kinetics400", "bench"]
        name, *flags = call[3:]
        names.add(name)
        if name == "step":
            parse(BenchStepConfig, flags, prog="step", description="")
            continue
        split = flags.index("--")
        config = parse(BenchRunConfig, flags[:split], prog="run", description="")
        command = {"pretraining": PretrainConfig, "finetuning": TrainConfig}[config.method]
        assert parse(command, flags[split + 1 :], prog="run", description="").device
    assert names == {"step", "run"}
    # Three quarters of the largest batch that the first result found.
    batches = [call[call.index("--batch_size") + 1] for call in benchmarks if call[3] == "step"]
    assert batches.count("300") == 4
    hours_of = [call for call in benchmarks if "run_pretraining" in " ".join(call)]
    assert sum(call[-2:] == ["--n_epoch", "400"] for call in hours_of) == 4
    (tmp_path / "results" / "run_finetuning_base.json").unlink()
    (again, *_), _ = run_script(tmp_path)
    assert "run_finetuning_base.json" in " ".join(again)


def test_what_fails_is_named_and_the_rest_is_measured(tmp_path: Path) -> None:
    whole, _ = run_script(tmp_path / "whole")
    calls, told = run_script(tmp_path / "some", failing="step_pretraining_base_bf16-mixed_64.json")
    # Without that result nobody knows how large a batch fits.
    assert len(calls) == len(whole) - 1
    assert told == "failed: step_pretraining_base_bf16-mixed_64\n"


def test_a_folder_is_asked_for() -> None:
    ran = subprocess.run(
        [str(ROOT / "benchmarks/gpu.sh")], capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0 and "a folder for the results" in ran.stderr
