"""`kinetics400 bench`: flags, errors, and what is printed where. What is measured: tests/bench."""

import json
from pathlib import Path
from typing import Any

import pytest

from kinetics400.bench import augment as bench_augmentation
from kinetics400.bench.loader import FULL, QUICK
from kinetics400.commands import bench, bench_report
from kinetics400.data.transcode import EncodeSettings
from kinetics400.errors import InputError


def contender(task: str, name: str, rate: float | None, **more: Any) -> dict[str, Any]:
    return {
        "task": task,
        "contender": name,
        "meaning": f"meaning of {name}",
        "unit": "clips",
        "per_sec": rate,
        "least_per_sec": rate and rate - 1,
        "most_per_sec": rate and rate + 1,
        "ratio_to_decord": None,
        "share_of_floor": None,
        "unavailable": None,
        **more,
    }


RESULT: dict[str, Any] = {
    "machine": {"pinned_to": 3, "cores": 8, "cpu": "A processor"},
    "versions": {"torch": "2.15.0", "decord": None},
    "videos_made": True,
    "videos": [
        {
            "path": "/tmp/made_0.mp4",
            "codec": "h264",
            "width": 340,
            "height": 256,
            "fps": 30.0,
            "num_frames": 300,
            "kbit_per_sec": 712.3,
            "keyframes": [0, 250, 260, 270],
        }
    ],
    "contenders": [
        contender("pretrain", "decord", None, unavailable="decord: not installed"),
        contender("pretrain", "pyramid", 108.04, ratio_to_decord=10.83, share_of_floor=0.788),
    ],
    "scaling": [{"workers": 2, "clips_per_sec": 201.25}],
    "excluded": {"/tmp/bad.mp4": "truncated"},
    "store_bytes_ratio": 0.8123,
    "psnr_luma_db": 38.912,
    "preprocess_seconds_per_video": 0.704,
    "preprocess_share_of_bare_loop": 0.931,
    "wall_share_of_cpu": 1.01,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the benchmark was asked to measure; it answers at once."""
    asked: dict[str, Any] = {}

    def measure(videos: Any, folder: Path, **options: Any) -> dict[str, Any]:
        asked.update(options, videos=videos, folder=folder)
        assert list(folder.iterdir()) == []
        options["say"]("working")
        return RESULT

    monkeypatch.setattr(bench, "bench_loader", measure)
    return asked


def test_the_table_goes_to_standard_output_and_progress_does_not(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["loader"]) == 0
    told = capsys.readouterr()
    assert told.err == "working\n"
    for line in (
        "core 3 of 8, A processor",
        "torch 2.15.0",
        "made: made_0.mp4, h264 340×256, 10.0 s, 30 frames/s, 712 kbit/s, keyframes at 0, 250, "
        "260 …",
        "loader with 2 workers: 201.2 pretraining clips/s",
        "left out: /tmp/bad.mp4: truncated",
    ):
        assert line in told.out.splitlines()
    assert "store of 1 videos: 81.2 % of the originals' bytes, luma PSNR 38.91 dB" in told.out
    assert "0.70 s per video and core, 93 % of the throughput of a bare" in told.out
    assert "shared" not in told.out
    (row,) = [line.split() for line in told.out.splitlines() if "meaning of pyramid" in line]
    assert row[4:] == ["108.0", "clips", "107.0–109.0", "10.8", "×", "79", "%"]
    (row,) = [line for line in told.out.splitlines() if "meaning of decord" in line]
    assert row.endswith("unavailable: decord: not installed")
    assert not asked["folder"].exists()


def test_a_shared_core_is_mentioned() -> None:
    assert "clock ran 25 % longer" in bench_report.loader_table(
        {**RESULT, "wall_share_of_cpu": 1.25}
    )


def test_a_psnr_that_nobody_knows_is_a_dash() -> None:
    assert "luma PSNR – against" in bench_report.loader_table({**RESULT, "psnr_luma_db": None})


def test_json_on_standard_output_is_alone_there(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["loader", "--json", "-"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == RESULT
    assert "core 3 of 8, A processor" in told.err


def test_json_goes_into_a_file(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["loader", "--json", str(tmp_path / "result.json")]) == 0
    assert json.loads((tmp_path / "result.json").read_text()) == RESULT
    assert "core 3 of 8, A processor" in capsys.readouterr().out


def test_flags_reach_the_measurement(asked: dict[str, Any], tmp_path: Path) -> None:
    bench.main(["loader"])
    assert (asked["videos"], asked["amount"], asked["scaling"]) == (None, FULL, False)
    assert asked["settings"] == EncodeSettings()
    (tmp_path / "v.mp4").touch()
    encode = ["--short_side", "128", "--crf", "30", "--preset", "slow", "--keyframe_interval", "16"]
    bench.main(["loader", "--quick", "--scaling", "--videos", str(tmp_path), *encode])
    assert (asked["videos"], asked["scaling"]) == ([str(tmp_path / "v.mp4")], True)
    assert asked["amount"] == QUICK
    assert asked["settings"] == EncodeSettings(128, 30, "slow", 16)
    bench.main(["loader", "--repeats", "7"])
    amount = asked["amount"]
    assert {amount.repeats, amount.side_repeats, amount.eval_repeats, amount.store_repeats} == {7}
    assert amount.num_made == FULL.num_made


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--repeats 0", "--repeats 0 must be at least 1"),
        ("--crf 52", "--crf 52 is not between 1 and 51"),
        ("--crf 0", "--crf 0 is not between 1 and 51"),
        ("--short_side 8", "--short_side 8 is not between 16 and 4320"),
        ("--keyframe_interval 30", "--keyframe_interval 30 is not a multiple of 4"),
        ("--keyframe_interval 0", "--keyframe_interval 0 is not a multiple of 4"),
        ("--videos /nowhere", "--videos /nowhere is not a folder"),
    ],
)
def test_bad_flags_are_refused(asked: dict[str, Any], flags: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        bench.main(["loader", *flags.split()])
    assert caught.value.exit_code == 2
    assert asked == {}


def test_all_bad_flags_are_named_at_once(asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"(?s)--repeats.*--crf"):
        bench.main(["loader", "--crf", "99", "--repeats", "0"])


def test_an_unknown_benchmark_is_refused_with_the_choice() -> None:
    with pytest.raises(InputError, match=r"(?s)no benchmark 'lodaer'.*loader") as caught:
        bench.main(["lodaer"])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_the_benchmarks(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(argv) == 0
    assert "  loader  " in capsys.readouterr().out


# --- augmentation ---------------------------------------------------------------------------------

AUGMENT_RESULT: dict[str, Any] = {
    "machine": {"pinned_to": 1, "cores": 2, "cpu": "A processor"},
    "cpu_ms_per_clip": {
        "Invert": {"ours": 0.512, "torchvision": 0.2, "timm": 1.9},
        "batch 0": {"ours": 20.0, "torchvision": 50.0, "timm": 60.0},
        "reading": {"crop in the worker": 9.5, "crop after the worker": 11.25},
    },
    "ratio_torchvision": 2.5,
    "ratio_timm": 3.0,
}
FIDELITY_RESULT: dict[str, Any] = {
    "passed": True,
    "least_p_value": 0.001,
    "pixels": [
        {"rule": "Invert", "largest": 0.0, "unit": "levels", "share": 0.0, "holds": True},
        {"rule": "Rotate", "largest": 1.0, "unit": "levels", "share": 0.0001, "holds": True},
    ],
    "draws": [{"quantity": "flip", "test": "binomial", "p_value": 0.0147}],
}


def test_augment_prints_its_table_and_writes_its_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    amounts = []

    def measure(folder: Path, *, amount: object, say: Any) -> dict[str, Any]:
        amounts.append(amount)
        assert folder.is_dir()
        say("working")
        return AUGMENT_RESULT

    monkeypatch.setattr(bench_augmentation, "bench_augment", measure)
    assert bench.main(["augment", "--json", str(tmp_path / "result.json")]) == 0
    told = capsys.readouterr()
    assert told.err == "working\n"
    rows = [line.split() for line in told.out.splitlines()]
    assert ["Invert", "0.51", "0.20", "1.90"] in rows
    assert ["crop", "after", "the", "worker", "11.25"] in rows
    assert "torchvision takes 2.50 times, timm 3.00 times as long as ours" in told.out
    assert json.loads((tmp_path / "result.json").read_text()) == AUGMENT_RESULT
    assert bench.main(["augment", "--quick"]) == 0
    assert amounts == [bench_augmentation.FULL, bench_augmentation.QUICK]


def test_fidelity_decides_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads(json.dumps(FIDELITY_RESULT))
    answer = "kinetics400.bench.augment_fidelity.augment_fidelity"
    monkeypatch.setattr(answer, lambda: result)
    assert bench.main(["augment-fidelity"]) == 0
    told = capsys.readouterr().out
    assert "all agree" in told and "FAILED" not in told and "p = 0.0147" in told
    result["passed"] = result["pixels"][1]["holds"] = False
    result["draws"][0]["p_value"] = 0.0009
    assert bench.main(["augment-fidelity"]) == 1
    failed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    assert failed == ["Rotate", "flip"]


def test_fidelity_without_scipy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="scipy: install the extra `dev`"):
        bench.main(["augment-fidelity"])


# --- a step ---------------------------------------------------------------------------------------


def test_step_tells_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "step.json"
    sizes = "--model_name tiny --input_size 32 --num_frames 4 --batch_size 2 --repeats 1"
    assert bench.main(["step", "--quick", "--json", str(target), *sizes.split()]) == 0
    result = json.loads(target.read_text())
    for key in ("ratio_transformers", "ratio_reference", "memory_ratio"):
        assert 0 < result[key] < 100
    assert 0 < result["loss_difference"] < 1e-5
    rows = {row["side"]: row for row in result["rows"]}
    assert rows.keys() == {"ours", "transformers", "plain"}
    ours = rows["ours"]
    assert ours["step"] == pytest.approx(sum(ours[p] for p in ("forward", "backward", "optimizer")))
    told = capsys.readouterr().out
    assert "pretraining, width 128, depth 4, 2 clips of 4 × 32², 32-true, on CPU, one core" in told
    assert "first losses differ by" in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--repeats 0 --batch_size 0", r"(?s)--batch_size 0 must be at least 1.*--repeats 0 must"),
        ("--input_size 100", "--input_size 100 is not a positive multiple of --patch_size 16"),
        ("--model_name videomae", "--model_name 'videomae' is unknown"),
    ],
)
def test_step_refuses_bad_flags(flags: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench.main(["step", *flags.split()])
