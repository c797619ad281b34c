"""The pages are true: their commands parse, their tables are generated, their links lead on."""

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from kinetics400.config.doctor import DoctorConfig
from kinetics400.config.evaluation import EvaluateConfig
from kinetics400.config.finetuning import TrainConfig
from kinetics400.config.parse import parse
from kinetics400.config.preprocess import PreprocessConfig
from kinetics400.config.pretraining import PretrainConfig
from kinetics400.data.manifest import Manifest, manifest_path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DATA_PAGE = (ROOT / "docs/data.md").read_text(encoding="utf-8")
PAGES = [README, *(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))]
CONFIGS = {
    "python -m data.preprocess": PreprocessConfig,
    "python -m train": TrainConfig,
    "python -m pretraining": PretrainConfig,
    "kinetics400 evaluate": EvaluateConfig,
    "kinetics400 doctor": DoctorConfig,
}


def commands(page: str) -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", page, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.startswith(tuple(CONFIGS))]


@pytest.mark.parametrize("command", commands("".join(PAGES)))
def test_commands_parse(command: str) -> None:
    prefix = next(prefix for prefix in CONFIGS if command.startswith(prefix))
    config = parse(
        CONFIGS[prefix], shlex.split(command)[len(prefix.split()) :], prog="", description=""
    )
    assert isinstance(config, CONFIGS[prefix])


def test_readme_shows_every_command() -> None:
    shown = {
        prefix for prefix in CONFIGS for command in commands(README) if command.startswith(prefix)
    }
    assert shown == set(CONFIGS)


@pytest.mark.parametrize(
    "promised",
    [
        "python -m data.preprocess",
        "python -m train --save_dir weights --model_name "
        "MCG-NJU/videomae-base-finetuned-kinetics --pretrained --pretrained_name "
        "MCG-NJU/videomae-base --pretrained_dir pretrained_weights --n_epoch 100 --batch_size 32 "
        "--lr 3e-4 --n_worker 16 --n_device 8 --precision bf16-mixed --dtype bfloat16 "
        "--strategy ddp --save_frequency 5 --label_smoothing 0.1 --input_size 224",
        "python -m pretraining --save_dir pretrained_weights --model_name MCG-NJU/videomae-base "
        "--n_epoch 400 --batch_size 64 --lr 5e-4 --n_worker 16 --n_device 8 "
        "--precision bf16-mixed --dtype bfloat16 --strategy ddp --save_frequency 20 "
        "--input_size 224 --mask_ratio 0.9 --tubelet_size 2 --norm_pix_loss",
        "make demo",
        "make test",
    ],
)
def test_readme_promises_word_for_word(promised: str) -> None:
    assert re.search(rf"^{re.escape(promised)}( +#.*)?$", README, flags=re.MULTILINE)


def test_tables_come_from_results() -> None:
    tables = runpy.run_path(str(ROOT / "docs/tables"))
    for name in tables["PAGES"]:
        page = (ROOT / name).read_text(encoding="utf-8")
        assert tables["filled"](page) == page, f"run `make docs`: {name}"
    assert "78.64" in tables["inherited"]() and "decord" in tables["loader"]()
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in tables["PAGES"]]
    blocks = re.findall(r"<!-- (\w+) -->", "".join(pages))
    assert sorted(blocks) == sorted(tables["TABLES"])


def test_what_a_gpu_has_measured_is_shown_and_the_rest_named(tmp_path: Path) -> None:
    gpu = runpy.run_path(str(ROOT / "docs/tables"))["gpu"]
    nothing = gpu(tmp_path)
    assert "No GPU has measured" in nothing and nothing.count(";") == 2
    step = json.loads((ROOT / "benchmarks/results/step_cpu.json").read_text())
    step |= {"datasheet_tflops": 4 * step["matrix_tflops"], "ratio_transformers": 2.125}
    step["largest_batch"] = {"ours": 448, "transformers": 320, "plain": None}
    (tmp_path / "step_pretraining.json").write_text(json.dumps(step))
    rates = {"clips_per_sec": {"CPU cores, as stored": 1400.4}, "missing": {"NVDEC": "no driver"}}
    (tmp_path / "decode.json").write_text(json.dumps(rates))
    # A figure of another kind: profiling slows steps down.
    (tmp_path / "run_pretraining_base_profile.json").write_text("{}")
    some = gpu(tmp_path)
    mfu = step["sides"][step["ours"]]["mfu"]
    assert f"| {mfu:.0%} | {mfu / 4:.0%} |" in some
    assert "| 2.12 |" in some and "| 448, 320, – |" in some
    assert "CPU cores, as stored: 1,400 clips/s; NVDEC cannot be used: no driver." in some
    assert "Not measured yet: whole runs" in some and "step times" not in some
    run = {
        **{"clips_per_sec": 1113.4, "data_share": 0.014, "mfu": 0.47, "memory_gib": 61.3},
        **{"n_epoch": 400, "hours": 24.0, "device_hours": 24.0, "clips_per_step": 128},
        **{"model": "MCG-NJU/videomae-base", "machine": {"device": "H200"}},
        "settings": {"method": "pretraining", "n_worker": "14"},
    }
    (tmp_path / "run_pretraining_base.json").write_text(json.dumps(run))
    whole = gpu(tmp_path)
    assert "| 1,113 | 1.4% | 47% | 61.3 | 400 | 24.0 | 24.0 |" in whole
    assert "easured yet" not in whole and "Missing" not in whole


def test_python_on_the_data_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"path": "a b.mp4", "source": "a b.mp4", "n_frames": 300, "fps": 30.0, "width": 340}
    row |= {"height": 256, "n_bytes": 10**6, "sha256": "00" * 32, "kind": "pyramid"}
    file = manifest_path(tmp_path / "data/Kinetics-400", "val")
    file.parent.mkdir(parents=True)
    file.write_bytes(Manifest.from_rows([row], [7]).to_bytes())
    monkeypatch.chdir(tmp_path)
    shown = []
    for code in re.findall(r"```python\n(.*?)```", DATA_PAGE, re.DOTALL):
        exec(code, {"print": lambda *values: shown.append(values)})
    assert shown == [(300, 10**6), ("a b.mp4", 7, 300, 30.0)]


@pytest.mark.parametrize(
    "page",
    sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")) + ["README.md"],
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    broken = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not broken
