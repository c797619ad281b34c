"""`kinetics400 evaluate` on real files: against numpy, from every kind of checkpoint, and refusing.

Videos are 48 x 64 pixels and the model takes 48, so nothing is scaled and frames can be counted.
"""

import csv
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file, save_file

from kinetics400.__main__ import run_command
from kinetics400.batch import normalize
from kinetics400.commands import evaluation_subject
from kinetics400.commands.evaluation_report import FILES, as_csv
from kinetics400.data.decode import VideoReader
from kinetics400.data.sampling import Box
from kinetics400.engine.agreement import Agreement
from kinetics400.engine.checkpoint import save_checkpoint
from kinetics400.methods.base import Method
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.architectures import ARCHITECTURES
from kinetics400.models.huggingface import hf_config, save_pretrained
from kinetics400.models.vit import VitConfig

TINY = ARCHITECTURES["tiny"]
SIZE, NUM_FRAMES, CLASSES = 48, 4, 4
VIT = VitConfig(
    embed_dim=TINY.embed_dim,
    depth=TINY.depth,
    num_heads=TINY.num_heads,
    image_size=SIZE,
    patch_size=16,
    num_frames=NUM_FRAMES,
)
NAMES = ("plain", "with, comma", 'with "quotes"', "=two\nlines")
CPU = ("--accelerator", "cpu", "--n_worker", "0")

Evaluated = Callable[..., dict[str, Any]]


def classifier(seed: int = 0, config: VitConfig = VIT) -> Classification:
    """Random, but with opinions: the views of a video do not agree, nor do the videos."""
    torch.manual_seed(seed)
    method = Classification(config, CLASSES, head_init_scale=15.0)
    with torch.no_grad():
        method.encoder.patch_embed.proj.weight.mul_(30)
        method.head.bias[0] -= 3.5
    return method


def optimizer_of(method: Method) -> torch.optim.Optimizer:
    names, parameters = zip(*method.named_parameters(), strict=True)
    return torch.optim.AdamW([{"params": list(parameters), "names": list(names)}])


def leave_model(folder: Path, method: Classification, names: tuple[str, ...] = NAMES) -> Path:
    save_pretrained(
        folder, state=method.state_dict(), config=hf_config(VIT, label_names=names), card=""
    )
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without a run around it."""
    return leave_model(tmp_path_factory.mktemp("zoo") / "finetuned", classifier())


@pytest.fixture
def evaluated(library: Path, tmp_path: Path) -> Evaluated:
    """Evaluate; return results.json."""

    def run(checkpoint: Path, *flags: str, data: Path | None = library) -> dict[str, Any]:
        where = ("--data_dir", str(data)) if data is not None else ()
        out = ("--output_dir", str(tmp_path / "out"))
        assert (
            run_command("evaluate", ["--checkpoint", str(checkpoint), *CPU, *where, *out, *flags])
            == 0
        )
        return json.loads((tmp_path / "out" / "results.json").read_text())

    return run


def table(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


# --- scores ---------------------------------------------------------------------------------------


def dense_starts(length: int, segments: int) -> list[list[int]]:
    """Every second frame, padded with the last of them; starts spread evenly, or the centre."""
    strided = [*range(0, length, 2)]
    strided += [strided[-1]] * (NUM_FRAMES - len(strided))
    free = len(strided) - NUM_FRAMES
    starts = (
        [free // 2]
        if segments == 1
        else [math.floor(k * (free / (segments - 1))) for k in range(segments)]
    )
    return [strided[start : start + NUM_FRAMES] for start in starts]


def sparse_halves(length: int) -> list[list[int]]:
    """The beginnings of NUM_FRAMES equal parts, and their middles (SSv2)."""
    part = length / NUM_FRAMES
    return [
        [int(part * i) for i in range(NUM_FRAMES)],
        [int(part / 2 + part * i) for i in range(NUM_FRAMES)],
    ]


def brute_force(
    method: Classification,
    video: Path,
    clips: Callable[[int], list[list[int]]],
    crops: int,
    merge: str,
) -> np.ndarray:
    """Scores of one video: each view cut by hand and given to the model alone, merged by numpy."""
    with VideoReader(str(video)) as reader:
        length, height, width = len(reader), reader.height, reader.width
        frames = reader.read([*range(length)], Box(0, 0, height, width))
    free = max(height, width) - SIZE
    offsets = [free // 2] if crops == 1 else [0, free // 2, free]
    logits = []
    for indices in clips(length):
        for offset in offsets:
            top, left = (offset, 0) if height >= width else (0, offset)
            view = frames[indices][:, top : top + SIZE, left : left + SIZE]
            pixels = torch.from_numpy(view.copy()).permute(3, 0, 1, 2)[None]
            with torch.no_grad():
                logits.append(method.predict(normalize(pixels))[0].double().numpy())
    values = np.stack(logits)
    if merge == "prob":
        values = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    return values.mean(axis=0)


@pytest.mark.parametrize("merge", ["prob", "logit"])
@pytest.mark.parametrize(
    ("views", "sampling"),
    [("5x3", "dense"), ("10x3", "dense"), ("1x1", "dense"), ("2x3", "sparse")],
)
def test_predictions_equal_a_brute_force_evaluation(
    model: Path,
    library: Path,
    tmp_path: Path,
    evaluated: Evaluated,
    views: str,
    sampling: str,
    merge: str,
) -> None:
    flags = ("--views", views, "--sampling", sampling, "--merge", merge, "--sampling_rate", "2")
    results = evaluated(model, *flags)
    segments, crops = map(int, views.split("x"))
    method = classifier().eval()

    def clips(length: int) -> list[list[int]]:
        return sparse_halves(length) if sampling == "sparse" else dense_starts(length, segments)

    rows = table(tmp_path / "out" / "predictions.csv")
    assert [row["path"] for row in rows] == [f"val_{i:02}.mp4" for i in range(8)]
    right = 0
    for index, row in enumerate(rows):
        scores = brute_force(method, library / "videos_val" / row["path"], clips, crops, merge)
        label = index % 4
        order = sorted(range(CLASSES), key=lambda k: -scores[k])
        share = scores if merge == "prob" else np.exp(scores) / np.exp(scores).sum()
        assert (int(row["index"]), int(row["label"])) == (index, label)
        assert row["top5"] == " ".join(map(str, order))
        assert int(row["prediction"]) == order[0]
        assert float(row["label_probability"]) == pytest.approx(share[label], rel=1e-4)
        assert row["failure"] == ""
        right += order[0] == label
    assert results["top1_acc"] == 100 * right / 8
    assert (results["num_videos"], results["num_scored"], results["views"]) == (8, 8, views)


def test_the_merges_differ_where_brute_force_says_so(
    model: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    """The model is such that averaging softmaxes and averaging logits order classes differently."""
    orders = []
    for merge in ("prob", "logit"):
        evaluated(model, "--merge", merge)
        orders.append([row["top5"] for row in table(tmp_path / "out" / "predictions.csv")])
    assert orders[0] != orders[1]


def shares_of(folder: Path) -> list[float]:
    return [float(row["label_probability"]) for row in table(folder / "predictions.csv")]


def test_workers_and_the_batch_size_change_no_score(
    model: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    evaluated(model)
    alone = (tmp_path / "out" / "predictions.csv").read_bytes()
    shares = shares_of(tmp_path / "out")
    evaluated(model, "--n_worker", "2")
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == alone
    evaluated(model, "--batch_size", "3")
    assert shares_of(tmp_path / "out") == pytest.approx(shares, rel=1e-4)


def test_an_interrupted_evaluation_continues(
    model: Path,
    library: Path,
    tmp_path: Path,
    evaluated: Evaluated,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluated(model, "--batch_size", "15")
    whole = (tmp_path / "out" / "predictions.csv").read_bytes()
    flags = ["--checkpoint", str(model), *CPU, "--data_dir", str(library)]
    flags += ["--output_dir", str(tmp_path / "again"), "--batch_size", "15"]  # a video at a time
    predict, calls = Classification.predict, []

    def stopped(self: Classification, clips: torch.Tensor) -> torch.Tensor:
        calls.append(len(clips))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return predict(self, clips)

    monkeypatch.setattr(Classification, "predict", stopped)
    assert run_command("evaluate", flags) == 75
    assert not (tmp_path / "again" / "results.json").exists()
    assert run_command("evaluate", flags) == 0
    assert "continuing: 3 of 8 videos are scored already" in capsys.readouterr().err
    assert calls == [15] * (4 + 5)
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == whole
    assert {file.name for file in (tmp_path / "again").iterdir()} == set(FILES)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_16_bits_on_the_cpu_give_nearly_the_same(
    model: Path, tmp_path: Path, evaluated: Evaluated, precision: str
) -> None:
    evaluated(model)
    exact = shares_of(tmp_path / "out")
    results = evaluated(model, "--precision", precision)
    rough = shares_of(tmp_path / "out")
    assert results["precision"] == precision
    assert rough != exact
    assert rough == pytest.approx(exact, abs=0.05)


# --- what it leaves -------------------------------------------------------------------------------


@pytest.fixture
def damaged(library: Path, tmp_path: Path) -> Path:
    """The dataset with two unreadable validation videos, of classes 1 and 3."""
    folder = shutil.copytree(library, tmp_path / "data" / "Kinetics-400")
    (folder / "videos_val" / "val_01.mp4").write_bytes(b"no video")
    (folder / "videos_val" / "val_07.mp4").unlink()
    return folder


def test_an_undecodable_video_is_wrong_and_listed_everywhere(
    model: Path,
    damaged: Path,
    tmp_path: Path,
    evaluated: Evaluated,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = evaluated(model, data=damaged)
    rows = table(tmp_path / "out" / "predictions.csv")
    assert (results["num_videos"], results["num_scored"]) == (8, 6)
    assert [Path(bad["path"]).name for bad in results["failures"]] == ["val_01.mp4", "val_07.mp4"]
    right = sum(row["prediction"] == row["label"] for row in rows)
    assert results["top1_acc"] == 100 * right / 8
    for index in (1, 7):
        row = rows[index]
        assert (row["prediction"], row["top5"], row["label_probability"]) == ("", "", "")
        assert f"val_0{index}.mp4" in row["failure"]
    assert [row["failure"] for i, row in enumerate(rows) if i not in (1, 7)] == [""] * 6
    assert "on 8 videos, 2 of them not scored and counted as wrong" in capsys.readouterr().err
    assert results["official"] is False


def test_tables_agree_with_the_predictions(
    model: Path, damaged: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    results = evaluated(model, data=damaged)
    rows = table(tmp_path / "out" / "predictions.csv")
    with open(tmp_path / "out" / "confusion.csv", encoding="utf-8", newline="") as text:
        head, *confusion = csv.reader(text)
    assert head == ["label", "name", "0", "1", "2", "3", "not_scored"]
    classes = table(tmp_path / "out" / "per_class.csv")
    assert [row["name"] for row in classes] == list(NAMES) == [row[1] for row in confusion]
    for label, (row, counts) in enumerate(zip(classes, confusion, strict=True)):
        own = [one for one in rows if one["label"] == str(label)]
        scored = [one["prediction"] for one in own if not one["failure"]]
        wanted = [scored.count(str(k)) for k in range(CLASSES)]
        assert list(map(int, counts[2:])) == [*wanted, len(own) - len(scored)]
        assert (int(row["num_videos"]), int(row["num_scored"])) == (len(own), len(scored))
        assert float(row["top1_acc"]) == pytest.approx(100 * wanted[label] / len(own))
        assert float(row["top5_acc"]) == pytest.approx(100 * len(scored) / len(own))
    mean = sum(float(row["top1_acc"]) for row in classes) / CLASSES
    assert results["mean_class_acc"] == pytest.approx(mean)


def test_results_say_how_they_came_about(model: Path, evaluated: Evaluated) -> None:
    results = evaluated(model, "--sampling_rate", "3", "--target_fps", "15")
    expected = {
        **{"checkpoint": str(model), "sampling": "dense", "sampling_rate": 3, "target_fps": 15.0},
        **{"views": "5x3", "merge": "prob", "num_frames": 4, "input_size": 48, "num_classes": 4},
        **{"precision": "32-true", "n_device": 1, "val_list": None},
    }
    assert {name: results[name] for name in expected} == expected
    low, high = results["top1_interval"]
    assert 0 <= low <= results["top1_acc"] <= high <= 100
    assert results["videos_per_sec"] == pytest.approx(8 / results["seconds"])


def test_a_class_without_videos_has_no_accuracy(
    model: Path, library: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    (tmp_path / "mine.txt").write_text("val_00.mp4 0\nval_02.mp4 2\n")
    results = evaluated(model, "--val_list", str(tmp_path / "mine.txt"))
    rows = table(tmp_path / "out" / "per_class.csv")
    assert [row["top1_acc"] == "" for row in rows] == [False, True, False, True]
    assert results["mean_class_acc"] in (0.0, 50.0, 100.0)


def test_names_of_files_survive_the_csv(
    model: Path, library: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    names = ["a,b.mp4", '"q".mp4', "=1+1.mp4", "two/same.mp4", "same.mp4", "a.b.mp4", "a.c.mp4"]
    data = tmp_path / "data"
    for number, name in enumerate(names):
        (data / "videos_val" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library / "videos_val" / f"val_{number:02}.mp4", data / "videos_val" / name)
    (data / "kinetics400_val_list_videos.txt").write_text("".join(f"{n} 0\n" for n in names))
    results = evaluated(model, data=data)
    rows = table(tmp_path / "out" / "predictions.csv")
    assert [row["path"] for row in rows] == names
    assert results["num_scored"] == len(names)
    shares = {row["label_probability"] for row in rows}
    assert len(shares) == len(names)  # each is a video of its own


def test_what_utf8_cannot_hold_is_escaped() -> None:
    assert as_csv([("é", "\ud800", 'a"b')]) == 'é,\\ud800,"a""b"\n'.encode()


def test_nothing_is_written_without_output_dir(model: Path, library: Path, tmp_path: Path) -> None:
    flags = ["--checkpoint", str(model), "--data_dir", str(library), *CPU]
    assert run_command("evaluate", flags) == 0
    assert list(tmp_path.iterdir()) == []


# --- where a model and its settings come from -----------------------------------------------------

RUN = {"sampling_rate": 2, "sampling": "dense", "views": "2x3", "merge": "logit"}


@pytest.fixture
def run_dir(library: Path, tmp_path: Path) -> Path:
    """A finished run: config.yaml, a checkpoint, and a model/ with other weights than that."""
    folder = tmp_path / "run"
    leave_model(folder / "model", classifier(1))
    model = {"model_name": "tiny", "input_size": SIZE, "patch_size": 16, "num_frames": NUM_FRAMES}
    flags = {**model, "tubelet_size": 2, "num_classes": CLASSES, **RUN}
    method = classifier()
    fabric = Fabric(accelerator="cpu", devices=1)
    save_checkpoint(
        fabric,
        folder / "checkpoints",
        step=3,
        method=method,
        optimizer=optimizer_of(method),
        agreement=Agreement(fabric),
        agreed={name: value for name, value in flags.items() if name not in ("views", "merge")},
    )
    paths = {"save_dir": str(folder), "data_dir": str(library)}
    (folder / "config.yaml").write_text("".join(f"{k}: {v}\n" for k, v in (flags | paths).items()))
    return folder


CHECKPOINT = "checkpoints/step-0000000003"


@pytest.mark.parametrize("form", ["", "model", "model/model.safetensors", CHECKPOINT])
def test_a_run_says_how_its_model_is_evaluated(
    run_dir: Path, evaluated: Evaluated, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    results = evaluated(run_dir / form, data=None)
    assert {name: results[name] for name in RUN} == RUN
    told = capsys.readouterr().err
    assert f"{run_dir}/config.yaml" in told
    assert "sampling_rate 2" in told and "assumed" not in told


def test_the_user_overrules_the_run(
    run_dir: Path, evaluated: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluated(run_dir, "--views", "1x1", "--sampling_rate=3", data=None)
    wanted = RUN | {"views": "1x1", "sampling_rate": 3}
    assert {name: results[name] for name in RUN} == wanted
    assert results["assumed"] == ["val_list", "target_fps"]
    assert "sampling_rate 3, views 1x1 (as given)" in capsys.readouterr().err


def test_what_nobody_says_is_said_to_be_assumed(
    model: Path, evaluated: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluated(model)
    told = capsys.readouterr().err
    assert "sampling dense, sampling_rate 4, views 5x3, merge prob (assumed" in told
    assert results["sampling_rate"] == 4
    assert results["assumed"] == ["val_list", "sampling", "sampling_rate", "target_fps"]


@pytest.mark.parametrize(
    ("flags", "left_out"),
    [(["--sampling", "sparse"], "target_fps"), (["--data_dir", "elsewhere"], "val_list")],
)
def test_a_flag_overrules_what_belongs_to_it(
    run_dir: Path, flags: list[str], left_out: str
) -> None:
    """Sparse frames are not timed; a list names the videos of its own folder."""
    with open(run_dir / "config.yaml", "a") as config:
        config.write("target_fps: 30.0\nval_list: mine.txt\n")
    facts = evaluation_subject.read_run(run_dir)
    names = {flag.partition("=")[0] for flag in facts.as_flags([])}
    without = {flag.partition("=")[0] for flag in facts.as_flags(flags)}
    assert names - without == {f"--{left_out}", flags[0]}


def test_a_config_that_is_not_a_runs_says_nothing(run_dir: Path, evaluated: Evaluated) -> None:
    """The name config.yaml is not ours alone."""
    (run_dir / "config.yaml").write_text("views: 9x9\nmerge: everything\n")
    assert evaluated(run_dir)["views"] == "5x3"


def test_a_checkpoint_taken_away_from_its_run_still_knows_its_clips(
    run_dir: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    moved = shutil.move(run_dir / CHECKPOINT, tmp_path / "alone")
    results = evaluated(Path(moved))
    assert (results["sampling_rate"], results["views"], results["num_frames"]) == (2, "5x3", 4)


def test_each_form_evaluates_its_own_weights(
    run_dir: Path, model: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    """The checkpoint's weights are those of `model`, the run's model/ has others."""

    def shares(checkpoint: Path) -> list[float]:
        evaluated(checkpoint, "--views", "1x1", "--sampling_rate", "2", "--merge", "prob")
        return shares_of(tmp_path / "out")

    assert shares(run_dir / CHECKPOINT) == shares(model)
    assert shares(run_dir) == shares(run_dir / "model") != shares(model)


def test_a_checkpoint_with_averaged_weights_is_evaluated_with_them(run_dir: Path) -> None:
    """As its run does at the end."""
    folder = run_dir / CHECKPOINT
    trained = load_file(folder / "model.safetensors")
    average = {name: value + 1 for name, value in trained.items() if name.startswith("head.")}
    save_file(average, folder / "average.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / "average.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    manifest["average.safetensors"] = {"bytes": len(content), "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    method = evaluation_subject.load_classifier(folder)
    assert torch.equal(method.head.bias, trained["head.bias"] + 1)
    assert torch.equal(method.fc_norm.weight, trained["fc_norm.weight"])


@pytest.mark.parametrize("wrapper", ["model", "module"])
def test_an_official_pth_is_evaluated_as_the_folder_is(
    library: Path, tmp_path: Path, evaluated: Evaluated, wrapper: str
) -> None:
    """Its names lack `encoder.`; its number of heads comes from the published sizes."""
    config = replace(VIT, num_frames=16)
    method = classifier(config=config)
    state = {name.removeprefix("encoder."): value for name, value in method.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3}, tmp_path / "official.pth")
    folder = tmp_path / "folder"
    save_pretrained(folder, state=method.state_dict(), config=hf_config(config), card="")
    flags = ("--views", "2x1", "--sampling_rate", "2")
    results = evaluated(tmp_path / "official.pth", "--input_size", str(SIZE), *flags)
    assert (results["num_frames"], results["input_size"]) == (16, SIZE)
    of_pth = (tmp_path / "out" / "predictions.csv").read_bytes()
    evaluated(folder, *flags)
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == of_pth
    of_folder = evaluation_subject.load_classifier(tmp_path, input_size=SIZE)  # the only .pth in it
    assert of_folder.encoder.config == config


def test_sizes_of_a_pth_are_the_published_ones_unless_given(tmp_path: Path) -> None:
    state = {name.removeprefix("encoder."): v for name, v in classifier().state_dict().items()}
    torch.save(state, tmp_path / "official.pth")
    load = evaluation_subject.load_classifier
    assert load(tmp_path / "official.pth").encoder.config == replace(
        VIT, num_frames=16, image_size=224
    )
    own = load(tmp_path / "official.pth", num_frames=8, input_size=96).encoder.config
    assert own == replace(VIT, num_frames=8, image_size=96)


@pytest.mark.parametrize("source", ["given", "model", "run", "nobody"])
def test_where_class_names_come_from(run_dir: Path, tmp_path: Path, source: str) -> None:
    """The user, the model's config.json, its run's config.yaml, in that order."""
    given, ran = tmp_path / "given.txt", tmp_path / "ran.txt"
    given.write_text("a\nb\nc\nd\n")
    ran.write_text("w\nx\ny\nz\n")
    if source != "nobody":
        with open(run_dir / "config.yaml", "a") as config:
            config.write(f"label_names: {ran}\n")
    checkpoint = run_dir if source in ("given", "model") else run_dir / CHECKPOINT
    names = evaluation_subject.class_names(
        checkpoint,
        given if source == "given" else None,
        evaluation_subject.read_run(checkpoint),
        CLASSES,
    )
    wanted = {"given": tuple("abcd"), "model": NAMES, "run": tuple("wxyz")}
    assert names == wanted.get(source, tuple(f"class {i}" for i in range(4)))


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def refused(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Evaluate what must be refused with exit code 2; return the message."""

    def run(checkpoint: Path, *flags: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        where = ["--checkpoint", str(checkpoint), "--data_dir", str(library)]
        assert run_command("evaluate", [*where, *CPU, *flags]) == 2
        told = capsys.readouterr()
        assert sorted(tmp_path.rglob("*")) == before
        assert "Traceback" not in told.err and told.out == ""
        return told.err

    return run


@pytest.mark.parametrize("views", ["0x3", "5x0", "5x", "x3", "5", "5*3", "-1x3", "5x3x1", "05x3"])
def test_views_that_do_not_exist(model: Path, refused: Callable[..., str], views: str) -> None:
    assert f"--views {views!r} must be segments x crops, as 5x3" in refused(
        model, f"--views={views}"
    )


@pytest.mark.parametrize("seconds", ["0", "-1", "inf", "nan"])
def test_a_timeout_that_is_none(model: Path, refused: Callable[..., str], seconds: str) -> None:
    assert "--decode_timeout" in refused(model, f"--decode_timeout={seconds}")


def test_views_that_nobody_publishes_are_allowed(model: Path, evaluated: Evaluated) -> None:
    """Four crops along the long side are well defined; only the result is not official."""
    results = evaluated(model, "--views", "2x4")
    assert (results["views"], results["official"]) == ("2x4", False)


def test_sharding_what_only_training_shards(model: Path, refused: Callable[..., str]) -> None:
    assert "--strategy fsdp is for training" in refused(model, "--strategy", "fsdp")


def test_a_pretraining_model(tmp_path: Path, refused: Callable[..., str]) -> None:
    method = VideoMAE(VIT, TINY.decoder, mask_ratio=0.5, norm_pix_loss=True)
    folder = tmp_path / "pretrained"
    config = hf_config(VIT, decoder=TINY.decoder)
    save_pretrained(folder, state=method.state_dict(), config=config, card="")
    told = refused(folder)
    assert "is a pretraining model" in told
    assert f"python -m train --pretrained --pretrained_dir {folder}" in told
    torch.save({"model": method.state_dict()}, tmp_path / "pretrained.pth")
    assert "is a pretraining model" in refused(tmp_path / "pretrained.pth")


def test_a_pretraining_checkpoint(
    run_dir: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    method = VideoMAE(VIT, TINY.decoder, mask_ratio=0.5, norm_pix_loss=True)
    fabric = Fabric(accelerator="cpu", devices=1)
    save_checkpoint(
        fabric,
        tmp_path / "pretraining" / "checkpoints",
        step=1,
        method=method,
        optimizer=optimizer_of(method),
        agreed={"mask_ratio": 0.5},
        agreement=Agreement(fabric),
    )
    folder = tmp_path / "pretraining" / "checkpoints" / "step-0000000001"
    assert "is a pretraining model" in refused(folder)


def test_an_encoder_without_any_head(tmp_path: Path, refused: Callable[..., str]) -> None:
    state = {n: v for n, v in classifier().state_dict().items() if n.startswith("encoder.")}
    save_pretrained(tmp_path / "bare", state=state, config=hf_config(VIT), card="")
    assert "is not a finetuned classifier: it has no head" in refused(tmp_path / "bare")


def test_labels_beyond_the_head(model: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "mine.txt").write_text("val_00.mp4 4\n")
    told = refused(model, "--val_list", str(tmp_path / "mine.txt"))
    assert "label 4 is not in 0 … 3" in told
    assert "the model tells 4 classes apart" in told


def test_a_folder_that_is_not_there(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "absent does not exist" in refused(tmp_path / "absent")


def test_a_folder_without_a_model(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "holds no model: expected model.safetensors" in refused(tmp_path)


def test_a_run_that_has_not_ended_names_its_newest_checkpoint(
    run_dir: Path, refused: Callable[..., str]
) -> None:
    shutil.rmtree(run_dir / "model")
    for folder in (run_dir, run_dir / "checkpoints"):
        assert f"is {run_dir / CHECKPOINT}: name that" in refused(folder)


def test_several_pth(tmp_path: Path, refused: Callable[..., str]) -> None:
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    assert f"--checkpoint {tmp_path} holds several .pth files" in refused(tmp_path)


def test_a_pth_of_unknown_size(tmp_path: Path, refused: Callable[..., str]) -> None:
    config = replace(VIT, depth=3)
    state = Classification(config, CLASSES).state_dict()
    official = {name.removeprefix("encoder."): value for name, value in state.items()}
    torch.save(official, tmp_path / "a.pth")
    assert "has width 128 and depth 3, which is no published size" in refused(tmp_path / "a.pth")


def test_a_damaged_checkpoint(run_dir: Path, refused: Callable[..., str]) -> None:
    file = run_dir / CHECKPOINT / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "model.safetensors is damaged" in refused(run_dir / CHECKPOINT)
    (run_dir / CHECKPOINT / "state.json").write_text("{}")
    assert "is not the state of a checkpoint" in refused(run_dir / CHECKPOINT)


def test_sizes_that_a_model_folder_contradicts(model: Path, refused: Callable[..., str]) -> None:
    assert "--num_frames 16" in refused(model, "--num_frames", "16")
    assert "--input_size 224" in refused(model, "--input_size", "224")


def test_a_wrong_number_of_names(model: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "names.txt").write_text("one\n")
    told = refused(model, "--label_names", str(tmp_path / "names.txt"))
    assert "has 1 names" in told


def test_an_output_dir_that_cannot_be_one(
    model: Path, run_dir: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Said before anything is scored."""
    file = tmp_path / "file"
    file.touch()
    assert f"{file} is not a folder" in refused(model, "--output_dir", str(file))
    assert f"{file} is not a folder" in refused(model, "--output_dir", str(file / "deep" / "er"))
    told = refused(model, "--output_dir", str(run_dir))
    assert "is a run directory" in told and "evaluation" in told


def test_all_problems_at_once(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "file").touch()
    flags = ("--views", "5", "--batch_size", "0", "--n_worker", "-1", "--sampling_rate", "0")
    told = refused(tmp_path, *flags, "--output_dir", str(tmp_path / "file"))
    for name in ("--views", "--batch_size", "--n_worker", "--sampling_rate", "--output_dir"):
        assert name in told
