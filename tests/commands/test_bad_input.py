"""Bad input: exit code 2, one message that names it, and nothing written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kinetics400.__main__ import run_command
from kinetics400.methods.classification import Classification
from kinetics400.models.architectures import ARCHITECTURES
from kinetics400.models.huggingface import hf_config, save_pretrained
from kinetics400.models.vit import VitConfig

ROOT = Path(__file__).resolve().parents[2]
SIZES = ("--input_size", "32", "--patch_size", "8", "--num_frames", "4", "--sampling_rate", "2")
# A run that would start at once if nothing were wrong with it.
SOUND = (
    *("--model_name", "tiny", *SIZES, "--save_dir", "run", "--batch_size", "8", "--n_epoch", "1"),
    *("--warmup_epochs", "0", "--accelerator", "cpu", "--n_worker", "0"),
)
BOTH = ("pretrain", "train")

Refused = Callable[..., str]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; what a case needs may be put there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(place: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must refuse; return its message."""

    def run(name: str, *flags: str, data: Path | str = library) -> str:
        before = sorted(str(path) for path in place.rglob("*"))
        capsys.readouterr()
        try:
            code = run_command(name, ["--data_dir", str(data), *SOUND, *flags])
        except SystemExit as stopped:  # the parser's own way out
            code = stopped.code
        told = capsys.readouterr()
        assert code == 2, told.err
        assert told.out == ""
        assert "Traceback" not in told.err
        assert sorted(str(path) for path in place.rglob("*")) == before
        return told.err

    return run


def test_nothing_is_wrong_with_the_flags_used_here(
    place: Path, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else every case below would pass for a wrong reason."""
    for name in BOTH:
        assert run_command(name, ["--data_dir", str(library), *SOUND, "--dry_run"]) == 0
        assert json.loads(capsys.readouterr().out)["missing"] == []


# --- flags ----------------------------------------------------------------------------------------

CASES = [
    (
        BOTH,
        ["--model_name", "MCG-NJU/videomae-bsae"],
        "'MCG-NJU/videomae-bsae' is unknown. Perhaps",
    ),
    (BOTH, ["--model_name", "MCG-NJU/videomae-bsae"], "MCG-NJU/videomae-base,"),
    (BOTH, ["--model_name", "resnet"], "--model_name 'resnet' is unknown. Perhaps you meant"),
    (BOTH, ["--bacth_size", "3"], "--bacth_size"),
    (BOTH, ["--n_epoch", "many"], "many"),
    (BOTH, ["surplus"], "surplus"),
    (("train",), ["--mask_ratio", "0.9"], "--mask_ratio"),
    (BOTH, ["--precision", "bf16-mixed", "--dtype", "float16"], "--dtype float16 contradicts"),
    (BOTH, ["--precision", "32-true", "--dtype", "bfloat16"], "--precision 32-true, which takes"),
    (BOTH, ["--precision", "bf16-true", "--dtype", "float32"], "--dtype float32 contradicts"),
    (BOTH, ["--strategy", "fsdp"], "--strategy fsdp spreads the model over several devices, and"),
    (
        BOTH,
        ["--strategy", "fsdp", "--n_device", "2", "--precision", "bf16-true"],
        "--strategy fsdp takes --precision 32-true or bf16-mixed, not bf16-true",
    ),
    (BOTH, ["--precision", "half"], "half"),
    (("pretrain",), ["--mask_ratio", "0"], "--mask_ratio 0.0 must lie between 0 and 1"),
    (("pretrain",), ["--mask_ratio", "1"], "--mask_ratio 1.0 must lie between 0 and 1"),
    (("pretrain",), ["--mask_ratio", "1.5"], "--mask_ratio 1.5 must lie between 0 and 1"),
    (("pretrain",), ["--mask_ratio", "-0.1"], "--mask_ratio -0.1 must lie between 0 and 1"),
    (("pretrain",), ["--mask_ratio", "nan"], "--mask_ratio nan must lie between 0 and 1"),
    (("pretrain",), ["--mask_ratio", "0.001"], "0.001 hides 0 of 16 places"),
    (BOTH, ["--input_size", "36"], "--input_size 36 is not a positive multiple of --patch_size 8"),
    (BOTH, ["--input_size", "0"], "--input_size 0 is not a positive multiple"),
    (BOTH, ["--num_frames", "5"], "--num_frames 5 is not a positive multiple of --tubelet_size 2"),
    (BOTH, ["--patch_size", "0"], "--patch_size 0"),
    (BOTH, ["--lr", "1e-3", "--base_lr", "1e-3"], "--lr and --base_lr contradict each other"),
    (BOTH, ["--lr", "-1"], "--lr -1.0 must be at least 0"),
    (BOTH, ["--lr", "nan"], "--lr nan"),
    (BOTH, ["--n_epoch", "0"], "--n_epoch 0 must be at least 1"),
    (BOTH, ["--batch_size", "0"], "--batch_size 0 must be at least 1"),
    (BOTH, ["--accumulate", "0"], "--accumulate 0 must be at least 1"),
    (BOTH, ["--n_device", "0"], "--n_device 0 must be at least 1"),
    (BOTH, ["--n_worker", "-1"], "--n_worker -1 must be at least 0"),
    (BOTH, ["--save_frequency", "0"], "--save_frequency 0 must be at least 1"),
    (BOTH, ["--seed", "-1"], "--seed -1 must be at least 0"),
    (BOTH, ["--warmup_epochs", "1"], "warm-up of 1 epochs is not shorter than --n_epoch 1"),
    (BOTH, ["--warmup_epochs", "40"], "set --warmup_epochs"),
    (BOTH, ["--batch_size", "25"], "24 training videos do not fill one global batch of 25"),
    (BOTH, ["--accumulate", "4"], "24 training videos do not fill one global batch of 32"),
    (
        BOTH,
        ["--accelerator", "cuda", "--n_device", "24", "--batch_size", "1"],
        "--n_device 24 asked for, this machine has",
    ),
    (BOTH, ["--recipe", "absent.yaml"], "--recipe absent.yaml: cannot be read"),
    (("train",), ["--views", "5"], "--views '5' must be segments x crops"),
    (("train",), ["--views", "0x3"], "--views '0x3' must be segments x crops"),
    (("train",), ["--views", "5x"], "--views '5x' must be segments x crops"),
    (("train",), ["--num_classes", "0"], "--num_classes 0 must be positive"),
    (("train",), ["--label_smoothing", "1"], "--label_smoothing 1.0 must lie in [0, 1)"),
    (("train",), ["--drop_path_rate", "-0.1"], "--drop_path_rate -0.1 must lie in [0, 1)"),
    (("train",), ["--layer_decay", "0"], "--layer_decay 0.0 must lie in (0, 1]"),
    (("train",), ["--crop_scale", "0.9", "0.1"], "--crop_scale 0.9 0.1 must lie in (0, 1]"),
    (("train",), ["--flip", "2"], "--flip 2.0 must lie in [0, 1]"),
    (("pretrain",), ["--flip", "-0.5"], "--flip -0.5 must lie in [0, 1]"),
    (("train",), ["--ema_decay", "1"], "--ema_decay 1.0 must lie between 0 and 1"),
    (("train",), ["--ema_decay", "0"], "--ema_decay 0.0 must lie between 0 and 1"),
    (("pretrain",), ["--ema_decay", "0.9"], "--ema_decay"),
    (("pretrain",), ["--label_smoothing", "0.1"], "--label_smoothing"),
    (("pretrain",), ["--optimizer", "sgd"], "sgd"),
    (BOTH, ["--warmup_lr", "-1"], "--warmup_lr -1.0 must be at least 0"),
    (
        ("train",),
        ["--mixup_mode", "pair", "--batch_size", "3"],
        "--mixup_mode pair needs pairs: 3 clips (--batch_size x --num_sample) are an odd number",
    ),
    (("train",), ["--label_names", "absent.txt"], "--label_names absent.txt cannot be read"),
    (
        ("train",),
        ["--pretrained"],
        "--pretrained needs --pretrained_dir, --pretrained_name or both",
    ),
]


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        pytest.param(name, flags, message, id=" ".join([name, *flags]))
        for names, flags, message in CASES
        for name in names
    ],
)
def test_wrong_flag(refused: Refused, name: str, flags: list[str], message: str) -> None:
    assert message in " ".join(refused(name, *flags).split())


def test_pairs_may_come_of_repeats_and_nobody_needs_them_without_mixing(
    place: Path, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = ("--mixup_mode", "pair", "--batch_size", "3")
    for flags in (("--num_sample", "2"), ("--mixup", "0", "--cutmix", "0"), ("--mixup_prob", "0")):
        argv = ["--data_dir", str(library), *SOUND, *pairs, *flags, "--dry_run"]
        assert run_command("train", argv) == 0


def test_all_that_is_wrong_is_said_at_once(refused: Refused) -> None:
    told = refused("pretrain", "--mask_ratio", "2", "--n_epoch", "0", "--dtype", "float16")
    for part in ("--mask_ratio 2.0", "--n_epoch 0", "--dtype float16"):
        assert part in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_half_precision_on_a_cpu(refused: Refused) -> None:
    """Fabric would quietly take bfloat16."""
    assert "16-mixed needs a CUDA device" in refused("train", "--precision", "16-mixed")


def test_unknown_key_in_a_recipe(refused: Refused, place: Path) -> None:
    (place / "r.yaml").write_text("n_epocs: 3\n")
    told = refused("pretrain", "--recipe", "r.yaml")
    assert "unknown keys 'n_epocs' (perhaps 'n_epoch')" in told


def test_names_that_do_not_fit_the_number_of_classes(refused: Refused, place: Path) -> None:
    (place / "names.txt").write_text("run\njump\n")
    told = refused("train", "--num_classes", "4", "--label_names", "names.txt")
    assert "names.txt has 2 names, --num_classes is 4" in told


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_absent_data(refused: Refused, place: Path, name: str) -> None:
    told = refused(name, data="nowhere")
    for part in ("nowhere/kinetics400_train_list_videos.txt", "python -m data.preprocess"):
        assert part in told


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train_03.mp4", "line 4: no label"),
        ("train_03.mp4 one", "line 4: label 'one' is not a whole number"),
        ("train_03.mp4 -1", "line 4: label '-1' is not a whole number"),
        ("train_02.mp4 3", "line 4: 'train_02.mp4' is already on line 3"),
        ("../train_03.mp4 3", "line 4: '..' in the path"),
        ("train_03.txt 3", "line 4: path 'train_03.txt' does not end in"),
    ],
)
def test_bad_line_of_a_list(
    refused: Refused, place: Path, library: Path, name: str, line: str, message: str
) -> None:
    lines = (library / "kinetics400_train_list_videos.txt").read_text().splitlines()
    lines[3] = line
    (place / "mine.txt").write_text("\n".join(lines))
    told = refused(name, "--train_list", "mine.txt")
    assert "list file mine.txt has 1 bad line(s) of 24" in told
    assert message in told


def test_label_out_of_range(refused: Refused) -> None:
    """The library's labels are 0 to 3."""
    told = refused("train", "--num_classes", "3")
    assert "label 3 is not in 0 … 2" in told


def test_bad_line_of_the_validation_list(refused: Refused, place: Path) -> None:
    (place / "val.txt").write_text("val_00.mp4\n")
    assert "list file val.txt has 1 bad line" in refused("train", "--val_list", "val.txt")


@pytest.mark.parametrize("name", BOTH)
def test_empty_list(refused: Refused, place: Path, name: str) -> None:
    (place / "mine.txt").write_text("\n")
    assert "list file mine.txt is empty" in refused(name, "--train_list", "mine.txt")


def test_absent_list(refused: Refused) -> None:
    assert "mine.txt" in refused("train", "--train_list", "mine.txt")


# --- pretrained weights ---------------------------------------------------------------------------


TINY = ARCHITECTURES["tiny"]


def vit(depth: int = TINY.depth) -> VitConfig:
    return VitConfig(
        embed_dim=TINY.embed_dim,
        depth=depth,
        num_heads=TINY.num_heads,
        image_size=32,
        patch_size=8,
        num_frames=4,
        tubelet_size=2,
    )


@pytest.fixture
def weights(place: Path) -> Path:
    """A sound finetuned model of the architecture asked for, with 4 classes."""
    folder = place / "weights"
    config = hf_config(vit(), label_names=["a", "b", "c", "d"])
    state = Classification(vit(), 4).state_dict()
    save_pretrained(folder, state=state, config=config, card="")
    return folder


PRETRAINED = ("--pretrained", "--pretrained_dir", "weights")


@pytest.mark.filterwarnings("error:for .*copying from a non-meta parameter")
def test_sound_weights_are_taken(weights: Path, library: Path) -> None:
    flags = ["--data_dir", str(library), *SOUND, *PRETRAINED, "--num_classes", "4", "--dry_run"]
    assert run_command("train", flags) == 0


def test_no_weights(refused: Refused, place: Path) -> None:
    (place / "weights").mkdir()
    (place / "weights" / "notes.txt").write_text("nothing")
    told = refused("train", *PRETRAINED, "--pretrained_name", "MCG-NJU/videomae-base")
    assert "--pretrained_dir weights holds no weights" in told
    assert "MCG-NJU/videomae-base" in told


def test_absent_folder_of_weights(refused: Refused) -> None:
    assert "--pretrained_dir weights holds no weights" in refused("train", *PRETRAINED)


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--input_size", "64"], "image_size is 32, asked for 64"),
        (["--num_frames", "8"], "num_frames is 4, asked for 8"),
        (["--tubelet_size", "4"], "tubelet_size is 2, asked for 4"),
        (
            ["--model_name", "MCG-NJU/videomae-small"],
            f"embed_dim is {TINY.embed_dim}, asked for 384",
        ),
    ],
)
def test_weights_of_another_architecture(
    refused: Refused, weights: Path, flags: list[str], difference: str
) -> None:
    told = refused("train", *PRETRAINED, *flags)
    assert "another architecture" in told
    assert difference in told


def test_weights_that_contradict_their_own_config(refused: Refused, weights: Path) -> None:
    """What the folder states is right, what it holds is not."""
    state = Classification(vit(depth=TINY.depth - 1), 4).state_dict()
    config = hf_config(vit(), label_names=["a", "b", "c", "d"])
    save_pretrained(weights, state=state, config=config, card="")
    assert "missing keys" in refused("train", *PRETRAINED, "--num_classes", "4")


def test_damaged_weights(refused: Refused, weights: Path) -> None:
    file = weights / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors does not hold the tensors it should" in refused("train", *PRETRAINED)


def test_weights_of_another_kind_of_model(refused: Refused, weights: Path) -> None:
    (weights / "config.json").write_text('{"model_type": "vit"}')
    assert "is not a VideoMAE model's" in refused("train", *PRETRAINED)


def test_pickled_code_is_not_run(refused: Refused, place: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, ("executed",)

    (place / "weights").mkdir()
    torch.save({"model": Evil()}, place / "weights" / "model.pth")
    assert "cannot be loaded safely" in refused("train", *PRETRAINED)


# --- the run directory ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_never_resume_into_a_folder_that_is_not_empty(
    refused: Refused, place: Path, name: str
) -> None:
    (place / "run").mkdir()
    (place / "run" / "notes.txt").write_text("mine")
    assert "--resume never: run is not empty" in refused(name, "--resume", "never")


@pytest.mark.parametrize("name", BOTH)
def test_a_file_as_save_dir(refused: Refused, place: Path, name: str) -> None:
    (place / "run").write_text("mine")
    assert "--save_dir run is not a folder" in refused(name)


@pytest.mark.parametrize("name", BOTH)
def test_resuming_from_what_is_no_checkpoint(refused: Refused, place: Path, name: str) -> None:
    assert "--resume absent is not a complete checkpoint" in refused(name, "--resume", "absent")
    (place / "torn").mkdir()
    assert "--resume torn is not a complete checkpoint" in refused(name, "--resume", "torn")
    (place / "torn" / "manifest.json").write_text("{")
    assert "torn is not a complete checkpoint" in refused(name, "--resume", "torn")


# --- from outside ---------------------------------------------------------------------------------


def test_the_process_exits_with_2(library: Path, tmp_path: Path) -> None:
    """As a user starts it, from a folder of its own."""
    shutil.copy(ROOT / "pretraining.py", tmp_path)
    flags = ["--data_dir", str(library), *SOUND, "--mask_ratio", "1"]
    ran = subprocess.run(
        [sys.executable, "-m", "pretraining", *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    assert ran.stderr == "pretrain: --mask_ratio 1.0 must lie between 0 and 1\n"
    assert os.listdir(tmp_path) == ["pretraining.py"]
