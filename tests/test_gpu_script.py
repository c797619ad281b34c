"""`benchmarks/gpu.sh`, with a stand-in for Python: all commands that it would run parse."""

import os
import subprocess
from pathlib import Path

from kinetics400.config.bench import BenchRunConfig, BenchStepConfig
from kinetics400.config.finetuning import TrainConfig
from kinetics400.config.parse import parse
from kinetics400.config.pretraining import PretrainConfig

ROOT = Path(__file__).parents[1]
# Writes its words, one a line, and an empty file where --json points; makes the folder of links.
STANDIN = """#!/bin/bash
[[ $1 == */ffmpeg_libraries.py ]] && mkdir -p "$2"
printf '%s\\n' "$@" "" >> "$CALLS"
while (($#)); do [[ $1 == --json ]] && echo '{}' > "$2"; shift; done
"""


def run_script(folder: Path) -> list[list[str]]:
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "python").write_text(STANDIN)
    (folder / "bin" / "python").chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    subprocess.run(
        [str(ROOT / "benchmarks/gpu.sh"), str(folder / "results")],
        env={**os.environ, "PATH": path, "CALLS": str(calls)},
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return [call.splitlines() for call in calls.read_text().split("\n\n") if call]


def test_every_command_parses_and_none_is_repeated(tmp_path: Path) -> None:
    calls = run_script(tmp_path)
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
    (tmp_path / "results" / "run_finetuning_base.json").unlink()
    again, *_ = run_script(tmp_path)
    assert "run_finetuning_base.json" in " ".join(again)


def test_a_folder_is_asked_for() -> None:
    ran = subprocess.run(
        [str(ROOT / "benchmarks/gpu.sh")], capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0 and "a folder for the results" in ran.stderr
