"""The doctor's command: exit codes, what it prints and writes, and what it says of a machine."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import pytest

from kinetics400 import __main__ as console
from kinetics400.commands import doctor_environment as environment
from kinetics400.commands.doctor_environment import Fact
from kinetics400.commands.doctor_report import SHOWN, format_findings
from kinetics400.commands.preprocess import preprocess
from kinetics400.config.doctor import DoctorConfig
from kinetics400.config.parse import parse
from kinetics400.config.preprocess import PreprocessConfig
from kinetics400.data import shared_memory
from kinetics400.data.checkup import Rules, check_library
from kinetics400.data.findings import KINDS, Finding

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def raw(library: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(library, tmp_path / "Kinetics-400"))


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command on a machine that is in order; returns exit code and output."""
    monkeypatch.setattr(
        console.import_module("kinetics400.commands.doctor"),
        "check_environment",
        lambda folder, n_worker: [Fact("Python", "3.11.17")],
    )

    def run(*argv: object) -> tuple[int, str]:
        code = console.run_command("doctor", [str(word) for word in argv])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


FLAGS = ("--num_classes", 4, "--num_frames", 4, "--sampling_rate", 1, "--n_worker", 1)


def test_nothing_wrong_is_exit_0(doctor: Run, raw: Path) -> None:
    code, told = doctor("--data_dir", raw, *FLAGS)
    assert code == 0 and "nothing is wrong" in told and "24 videos" in told


def test_the_folder_above_will_do(doctor: Run, raw: Path) -> None:
    assert doctor("--data_dir", raw.parent, *FLAGS)[0] == 0


def test_a_bad_video_is_exit_1_and_named(doctor: Run, raw: Path, tmp_path: Path) -> None:
    (raw / "videos_train/train_05.mp4").write_bytes(b"")
    code, told = doctor("--data_dir", raw, "--json", tmp_path / "r.json", *FLAGS)
    assert code == 1 and "train: train_05.mp4" in told and "empty file: 1 (error)" in told
    report = json.loads((tmp_path / "r.json").read_text())
    (row,) = report["findings"]
    assert (row["reason"], row["split"], row["path"]) == ("empty file", "train", "train_05.mp4")
    assert row["remedy"] and report["counts"] == {"empty file": 1}


def test_warnings_alone_are_exit_0(doctor: Run, raw: Path) -> None:
    shutil.copy(raw / "videos_val/val_02.mp4", raw / "videos_val/more.mp4")
    code, told = doctor("--data_dir", raw, *FLAGS)
    assert code == 0 and "unlisted: 1 (warning)" in told


def test_an_error_of_the_machine_is_exit_1(
    doctor: Run, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = console.import_module("kinetics400.commands.doctor")
    facts = [Fact("av", "missing", "error", "pip install av")]
    monkeypatch.setattr(module, "check_environment", lambda folder, n_worker: facts)
    code, told = doctor("--data_dir", raw, *FLAGS)
    assert code == 1 and "pip install av" in told


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--data_dir", "nowhere"], "--data_dir nowhere is not a folder"),
        (["--data_dir", "."], "holds no dataset"),
        (["--n_worker", "0"], "--n_worker 0"),
        (["--num_classes", "0"], "--num_classes 0"),
        (["--sampling_rate", "-1"], "--sampling_rate -1"),
        (["--json", "no/folder/r.json"], "--json no/folder/r.json"),
        (["--label_names", "none.txt"], "--label_names none.txt"),
    ],
)
def test_wrong_usage_is_exit_2(
    argv: Sequence[str], hint: str, doctor: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, told = doctor(*argv)
    assert code == 2 and hint in told


def test_the_machine_is_checked_before_there_is_data(doctor: Run, tmp_path: Path) -> None:
    code, told = doctor("--data_dir", tmp_path / "later/Kinetics-400", *FLAGS)
    assert code == 2 and "3.11.17" in told and "is not a folder" in told
    assert environment.disk_fact(tmp_path / "later/Kinetics-400") == environment.disk_fact(tmp_path)


def test_full_decodes(doctor: Run, raw: Path) -> None:
    path = raw / "videos_train/train_05.mp4"
    data = path.read_bytes()
    start, end = data.index(b"mdat") + 4, data.rindex(b"moov") - 4
    middle = (start + end) // 2
    path.write_bytes(data[:middle] + bytes(end - middle) + data[end:])
    assert doctor("--data_dir", raw, *FLAGS)[0] == 0
    code, told = doctor("--data_dir", raw, "--full", *FLAGS)
    assert code == 1 and "damaged: 1 (error)" in told


def test_a_folder_that_cannot_be_written_is_said_once(
    doctor: Run, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    code, told = doctor("--data_dir", raw, *FLAGS)
    assert code == 0 and told.count("cannot be written") == 1
    assert not (raw / ".preprocess").exists()


def test_sigterm_is_exit_75_and_the_next_run_continues(raw: Path) -> None:
    """A slow check-up is stopped when it has read 9 headers, two batches and one more."""
    code = (
        "import time, sys\n"
        "from kinetics400.data import checkup\n"
        "from kinetics400 import __main__ as console\n"
        "checkup.BATCH = 4\n"
        "real = checkup.read_header\n"
        "def read(path):\n"
        "    print('reading', flush=True)\n"
        "    time.sleep(0.3)\n"
        "    return real(path)\n"
        "checkup.read_header = read\n"
        f"sys.exit(console.run_command('doctor', {['--data_dir', str(raw), *map(str, FLAGS)]!r}))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        n_read = 0
        while n_read < 9:
            line = process.stdout.readline()
            assert line, "the check-up ended before it was stopped"
            n_read += line.startswith("reading")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 75
    rows = (raw / ".preprocess/doctor_headers.jsonl").read_text().splitlines()
    assert 4 <= len(rows) < 32


def test_few_findings_are_all_shown_and_many_are_cut(tmp_path: Path) -> None:
    many = [Finding("absent", "train", f"{i:03}.mp4") for i in range(40)]
    few = [Finding("empty file", "val", f"v{i}.mp4") for i in range(12)]
    told = format_findings(many + few, tmp_path / "r.json")
    assert told.count("train: ") == SHOWN and "35 more; all in" in told
    assert told.count("val: ") == 12
    assert "--json FILE" in format_findings(many, None)


def test_names_cannot_write_to_the_terminal() -> None:
    told = format_findings([Finding("unlisted", "val", "\x1b[2Ja\udce9.mp4")], None)
    assert "\\x1b[2Ja\\udce9.mp4" in told and told.encode("ascii", "ignore").isascii()
    assert "\x1b" not in told


def test_errors_come_before_warnings_and_notes() -> None:
    told = format_findings(
        [
            Finding("short", "val", "a"),
            Finding("unlisted", "val", "b"),
            Finding("absent", "val", "c"),
        ],
        None,
    )
    assert told.index("absent") < told.index("unlisted") < told.index("short")


def test_every_reason_has_a_level_and_a_remedy() -> None:
    assert all(
        kind.level in ("error", "warning", "note") and kind.remedy for kind in KINDS.values()
    )


# --- after preprocessing --------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["pyramid", "original"])
def test_what_preprocessing_leaves_is_in_order(
    store: str, corpus, write_archive: Callable, inline, tmp_path: Path
) -> None:
    write_archive(tmp_path / "Kinetics-400.tar.gz", corpus.members)
    preprocess(PreprocessConfig(data_dir=tmp_path, max_bad_share=0.5, n_worker=1, store=store))
    checkup = check_library(tmp_path / "Kinetics-400", Rules(num_classes=6, clip_frames=2))
    notes = {
        (f.path, f.detail.split(":")[0]) for f in checkup.findings if f.reason == "quarantined"
    }
    assert notes == {("bad.mp4", "truncated"), ("gone.mp4", "absent")}
    others = {f.reason for f in checkup.findings} - {"quarantined"}
    assert others == {"class without videos"}  # the validation list lacks some of the six


# --- the machine ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        ((3, 11, 16), "warning"),
        ((3, 11, 17), "ok"),
        ((3, 12, 14), "warning"),
        ((3, 12, 15), "ok"),
        ((3, 13, 15), "warning"),
        ((3, 13, 16), "ok"),
        ((3, 14, 0), "ok"),
    ],
)
def test_python_with_the_old_tarfile_is_a_warning(version: tuple, verdict: str) -> None:
    assert environment.python_fact(version).verdict == verdict


def verdict_of(line: str, version: str | None) -> str:
    def installed(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    (fact,) = environment.package_facts([line], installed)
    return fact.verdict


@pytest.mark.parametrize(
    ("line", "version", "verdict"),
    [
        ("av>=18", "18.1.0", "ok"),
        ("av>=18", "17.9", "error"),
        ("av>=18", None, "error"),
        ("torch>=2.11", "2.15.0+cpu", "ok"),
        ("lightning>=2.6,!=2.6.2,!=2.6.3,<3", "2.6.2", "error"),
        ("lightning>=2.6,!=2.6.2,!=2.6.3,<3", "2.6.4", "ok"),
        ("lightning>=2.6,!=2.6.2,!=2.6.3,<3", "3.0", "error"),
    ],
)
def test_packages_are_held_against_the_requirements(
    line: str, version: str | None, verdict: str
) -> None:
    assert verdict_of(line, version) == verdict


def test_a_compromised_release_is_called_one() -> None:
    (fact,) = environment.package_facts(
        [line for line in environment.requirement_lines() if line.startswith("lightning")],
        lambda name: "2.6.3",
    )
    assert fact.verdict == "error" and "secret" in fact.remedy


def test_all_core_packages_are_looked_at() -> None:
    names = [fact.name for fact in environment.package_facts()]
    assert {"torch", "lightning", "av", "numpy"} <= set(names) and len(names) == 13


def test_shared_memory_of_the_readme_is_asked_for_on_eight_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: 20e9)
    here = list(environment.shared_memory_facts(2, 1))
    assert [fact.verdict for fact in here] == ["ok", "ok"]
    # 8 × (16 × 2 + 1) batches × 64 clips × 3 × 16 × 224² bytes = 40.69 GB
    large = list(environment.shared_memory_facts(16, 8))
    assert large[0].value.startswith("40.69 GB") and large[0].verdict == "warning"
    assert "--shm-size" in large[0].remedy and len(large) == 4


def test_too_few_descriptors_cores_and_disk_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.descriptor_fact(16, 256).verdict == "warning"
    assert environment.descriptor_fact(16, 65536).verdict == "ok"
    assert environment.core_fact(8, 2, 8) == Fact(
        "cores", "8 for 8 workers × 2", "warning", "--n_worker 4 is enough"
    )
    assert environment.core_fact(4, 2, 8).verdict == "ok"
    usage = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert environment.disk_fact(Path("/")).verdict == "warning"


def test_a_missing_compiler_matters_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert environment.compiler_fact(has_gpu=True).verdict == "warning"
    assert environment.compiler_fact(has_gpu=False).verdict == "note"


def test_missing_codecs_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.codec_fact().verdict == "ok"
    monkeypatch.setattr(environment, "CODECS", (("libno264", "w"),))
    fact = environment.codec_fact()
    assert fact.verdict == "error" and "no encoder libno264" in fact.value


def test_this_machine_is_described(tmp_path: Path) -> None:
    facts = environment.check_environment(tmp_path, 1)
    names = {fact.name for fact in facts}
    assert {
        "Python",
        "torch",
        "free disk",
        "open files",
        "cores",
        "C++ compiler",
        "codecs",
    } <= names


def test_commands_on_the_page_parse() -> None:
    page = (Path(__file__).parents[2] / "docs/doctor.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("kinetics400 doctor")]
    assert len(lines) == 3
    for line in lines:
        flags = shlex.split(line.split("#")[0])[2:]
        assert parse(DoctorConfig, flags, prog="", description="").data_dir.name
