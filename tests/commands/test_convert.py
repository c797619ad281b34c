"""`kinetics400 convert`: weights and outputs survive every way round; what is wrong is refused."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification

from kinetics400.__main__ import run_command
from kinetics400.batch import normalize
from kinetics400.commands import convert
from kinetics400.commands.evaluate import load_classifier
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.huggingface import hf_config, save_pretrained
from kinetics400.models.vit import DecoderConfig, VitConfig

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TENSORS = load_file(GOLDEN / "tiny.tensors.safetensors")
# Heads and pixels, which the golden weights do not tell (tests/golden/tiny.json).
TOLD = {
    "pretrain": ("--num_heads", "3", "--decoder_num_heads", "2", "--input_size", "48"),
    "finetune": ("--num_heads", "3", "--input_size", "48"),
}
CLASSES = {"pretrain": VideoMAEForPreTraining, "finetune": VideoMAEForVideoClassification}

Refused = Callable[..., str]


def state_of(kind: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"tiny.{kind}_official.safetensors")


def save_pth(file: Path, state: dict[str, Tensor], wrapper: str = "model") -> Path:
    torch.save({wrapper: state} if wrapper else state, file)
    return file


@pytest.fixture
def pth(tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: save_pth(tmp_path / f"{kind}.pth", state_of(kind))


def run(source: Path, target: Path, *flags: str) -> Path:
    assert run_command("convert", [str(source), str(target), *flags]) == 0
    return target


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Convert to `out`, expect exit code 2 and nothing written; return the one message."""

    def convert_to(source: Path, *flags: str, target: Path = tmp_path / "out") -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()  # of conversions before this one
        assert run_command("convert", [str(source), str(target), *flags]) == 2
        assert sorted(tmp_path.rglob("*")) == before
        told = capsys.readouterr()
        assert told.out == "" and told.err.startswith("convert: ") and told.err.count("\n") == 1
        return told.err

    return convert_to


def assert_same_state(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype and torch.equal(value, theirs[key]), key


def official_state(file: Path) -> dict[str, Tensor]:
    content = torch.load(file, weights_only=True)
    assert set(content) == {"model"}
    return content["model"]


@torch.no_grad()
def assert_golden_outputs(folder: Path, kind: str) -> None:
    """Run transformers on a folder and compare with the official code's outputs."""
    model, info = CLASSES[kind].from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    clips = normalize(TENSORS[f"{kind}.input.video_uint8_bcthw"]).transpose(1, 2)
    mask = (TENSORS["pretrain.input.mask"],) if kind == "pretrain" else ()
    golden = TENSORS[f"{kind}.output.{'pred_masked' if mask else 'logits'}"]
    assert (model(clips, *mask).logits - golden).abs().max() <= 1e-5
    # Its last norm has an eps of 1e-5 whatever config.json says, ten times the official code's.
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    assert (model(clips, *mask).logits - golden).abs().max() <= 1e-5 * golden.abs().max()


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_official_weights_survive_the_whole_way_round(
    tmp_path: Path, pth: Callable[[str], Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """To ours, to transformers and what it saves, to ours again, to a .pth: the same bits."""
    ours = run(pth(kind), tmp_path / "ours", *TOLD[kind])
    assert "largest difference 0)" in capsys.readouterr().err
    assert_golden_outputs(ours, kind)
    theirs = tmp_path / "theirs"
    CLASSES[kind].from_pretrained(ours).save_pretrained(theirs)
    again = run(theirs, tmp_path / "again")
    assert_golden_outputs(again, kind)
    if kind == "finetune":
        with torch.no_grad():
            clips = normalize(TENSORS["finetune.input.video_uint8_bcthw"])
            logits = load_classifier(again).eval().predict(clips)
        golden = TENSORS["finetune.output.logits"]
        assert (logits - golden).abs().max() <= 1e-5 * golden.abs().max()
    assert_same_state(load_file(again / "model.safetensors"), load_file(ours / "model.safetensors"))
    back = run(again, tmp_path / "back.pth")
    assert_same_state(official_state(back), state_of(kind))


@torch.no_grad()
def test_videomae_v2_weights_give_the_official_dual_masking_outputs(tmp_path: Path) -> None:
    """Official VideoMAE V2: the decoder predicts the tokens of its running-cell mask."""
    state = load_file(GOLDEN / "videomae_v2_tiny.official.safetensors")
    source = save_pth(tmp_path / "v2.pth", state)
    flags = ("--num_heads", "3", "--decoder_num_heads", "2", "--input_size", "64")
    folder = run(source, tmp_path / "ours", *flags)
    assert_same_state(official_state(run(folder, tmp_path / "back.pth")), state)
    golden = load_file(GOLDEN / "videomae_v2_tiny.tensors.safetensors")
    method = VideoMAE(
        VitConfig(embed_dim=48, depth=2, num_heads=3, image_size=64),
        DecoderConfig(embed_dim=24, depth=1, num_heads=2),
    )
    method.load_state_dict(state)
    keep, decoded = (
        torch.stack([(~row).nonzero()[:, 0] for row in golden[f"input.{name}_mask"]])
        for name in ("encoder", "decoder")
    )
    clips = normalize(golden["input.video_uint8_bcthw"])
    predicted = method.reconstruct(clips, keep, decoded)
    expected = golden["output.pred_decoded"]
    assert (predicted - expected).abs().max() <= 1e-5 * expected.abs().max()


def giant(depth: int) -> VitConfig:
    """VideoMAE V2's ViT-g but for its depth (40): patches of 14, an MLP of 48/11 the width."""
    return VitConfig(
        embed_dim=1408, depth=depth, num_heads=16, patch_size=14, image_size=28, num_frames=2,
        mlp_ratio=48 / 11,
    )  # fmt: skip


def test_videomae_v2_giant_is_recognised_by_its_shapes(tmp_path: Path) -> None:
    decoder = DecoderConfig(embed_dim=512, depth=1, num_heads=8)
    state = VideoMAE(giant(1), decoder, mask_ratio=0.5).half().state_dict()
    assert state["encoder.blocks.0.mlp.fc1.weight"].shape == (6144, 1408)
    assert state["decoder.blocks.0.mlp.fc1.weight"].shape == (2234, 512)
    source = save_pth(tmp_path / "g.pth", state)
    folder = run(source, tmp_path / "g", "--num_frames", "2", "--input_size", "28")
    config = json.loads((folder / "config.json").read_text())
    stated = {
        "hidden_size": 1408, "num_attention_heads": 16, "intermediate_size": 6144,
        "patch_size": 14, "decoder_hidden_size": 512, "decoder_num_attention_heads": 8,
        "decoder_intermediate_size": 2234, "num_frames": 2, "image_size": 28,
    }  # fmt: skip
    assert {name: config[name] for name in stated} == stated
    theirs = VideoMAEForPreTraining.from_pretrained(folder, output_loading_info=True)[1]
    assert not theirs["missing_keys"] and not theirs["mismatched_keys"]


def test_a_finetuned_videomae_v2_checkpoint_of_deepspeed_is_read(tmp_path: Path) -> None:
    """Weights under `module`, beside what DeepSpeed and the training script put there."""
    state = state_of("finetune")
    file = tmp_path / "v2.pth"
    extra = {"dp_world_size": 8, "optimizer": None, "args": argparse.Namespace(lr=1e-3)}
    torch.save({"module": state, **extra}, file)
    folder = run(file, tmp_path / "ours", *TOLD["finetune"])
    assert_same_state(official_state(run(folder, tmp_path / "back.pth")), state)


def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in state_of("finetune").items()}
    folder = run(save_pth(tmp_path / "a.pth", state, ""), tmp_path / "ours", *TOLD["finetune"])
    assert_same_state(official_state(run(folder, tmp_path / "b.pth")), state)


def test_bare_weights_with_hugging_face_names_are_recognised(
    tmp_path: Path, pth: Callable[[str], Path]
) -> None:
    folder = run(pth("finetune"), tmp_path / "ours", *TOLD["finetune"])
    bare = save_pth(tmp_path / "hf.pth", load_file(folder / "model.safetensors"), "")
    back = run(bare, tmp_path / "back.pth", *TOLD["finetune"])
    assert_same_state(official_state(back), state_of("finetune"))


def test_a_run_directory_is_a_source(tmp_path: Path, pth: Callable[[str], Path]) -> None:
    run(pth("finetune"), tmp_path / "run" / "model", *TOLD["finetune"])
    back = run(tmp_path / "run", tmp_path / "back.pth")
    assert_same_state(official_state(back), state_of("finetune"))


def test_views_are_saved_without_what_they_are_views_of(tmp_path: Path) -> None:
    """Tensors that are slices of one buffer would each bring all of it."""
    state = state_of("finetune")
    buffer = torch.cat([value.flatten() for value in state.values()])
    parts = buffer.split([value.numel() for value in state.values()])
    views = {key: part.view(state[key].shape) for key, part in zip(state, parts, strict=True)}
    source = save_pth(tmp_path / "a.pth", views)
    target = run(source, tmp_path / "b.pth", *TOLD["finetune"])
    assert_same_state(official_state(target), state)
    stored = [value.untyped_storage().nbytes() for value in official_state(target).values()]
    assert sum(stored) == 4 * len(buffer)


# --- what a folder says ---------------------------------------------------------------------------


def names_of(folder: Path) -> list[str]:
    return list(json.loads((folder / "config.json").read_text())["id2label"].values())


def test_class_names_come_from_the_file_then_the_folder_then_numbers(
    tmp_path: Path, pth: Callable[[str], Path]
) -> None:
    numbered = run(pth("finetune"), tmp_path / "a", *TOLD["finetune"])
    assert names_of(numbered) == [f"class {index}" for index in range(10)]
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij"))
    named = run(numbered, tmp_path / "b", "--label_names", str(tmp_path / "names.txt"))
    assert names_of(named) == names_of(run(named, tmp_path / "c")) == list("abcdefghij")


def test_400_classes_are_those_of_kinetics(tmp_path: Path) -> None:
    state = state_of("finetune")
    state |= {"head.weight": torch.randn(400, 48), "head.bias": torch.randn(400)}
    folder = run(save_pth(tmp_path / "k.pth", state), tmp_path / "out", *TOLD["finetune"])
    names = names_of(folder)
    assert (len(names), names[0], names[116], names[399]) == (
        *(400, "abseiling"),
        *("eating spaghetti", "zumba"),
    )


def test_raw_pixel_loss_is_carried_over(tmp_path: Path, pth: Callable[[str], Path]) -> None:
    folder = run(pth("pretrain"), tmp_path / "a", *TOLD["pretrain"])
    config = json.loads((folder / "config.json").read_text())
    assert config["norm_pix_loss"] is True
    (folder / "config.json").write_text(json.dumps({**config, "norm_pix_loss": False}))
    copy = run(folder, tmp_path / "b")
    assert json.loads((copy / "config.json").read_text())["norm_pix_loss"] is False


# --- heads ----------------------------------------------------------------------------------------

SMALL = VitConfig(embed_dim=384, depth=1, num_heads=6, image_size=32, num_frames=2)


def small_folder(folder: Path, num_heads: int) -> Path:
    state = Classification(SMALL, 3).state_dict()
    config = hf_config(replace(SMALL, num_heads=num_heads), label_names=["a", "b", "c"])
    save_pretrained(folder, state=state, config=config, card="")
    return folder


def heads_of(folder: Path) -> int:
    stated = json.loads((folder / "config.json").read_text())["num_attention_heads"]
    assert load_classifier(folder).encoder.config.num_heads == stated
    return stated


def test_published_widths_have_their_heads_built_in(tmp_path: Path) -> None:
    state = Classification(SMALL, 3).state_dict()
    source = save_pth(tmp_path / "s.pth", {k.removeprefix("encoder."): v for k, v in state.items()})
    folder = run(source, tmp_path / "a", "--num_frames", "2", "--input_size", "32")
    assert heads_of(folder) == 6


def test_sixteen_heads_for_the_small_model_are_refused_unless_said(
    tmp_path: Path, refused: Refused
) -> None:
    """The hub's small configuration, which costs half of the accuracy (transformers #25868)."""
    source = small_folder(tmp_path / "hub", 16)
    told = refused(source)
    assert "states 16 heads" in told and "width 384 have 6" in told
    assert "give --num_heads 6, or --num_heads 16" in told
    assert heads_of(run(source, tmp_path / "a", "--num_heads", "6")) == 6
    assert heads_of(run(source, tmp_path / "b", "--num_heads", "16")) == 16


def test_wrong_heads_of_a_decoder_are_refused_unless_said(tmp_path: Path, refused: Refused) -> None:
    decoder = DecoderConfig(embed_dim=192, depth=1, num_heads=6)
    config = hf_config(SMALL, decoder=decoder)
    state = VideoMAE(SMALL, decoder, mask_ratio=0.5).state_dict()
    save_pretrained(tmp_path / "hub", state=state, config=config, card="")
    told = refused(tmp_path / "hub")
    assert "states 6 heads" in told and "width 192 have 3" in told
    folder = run(tmp_path / "hub", tmp_path / "a", "--decoder_num_heads", "3")
    config = json.loads((folder / "config.json").read_text())
    assert config["decoder_num_attention_heads"] == 3
    assert run(tmp_path / "hub", tmp_path / "b", "--decoder_num_heads", "6")


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("finetune", (), "width 48 is none of the published ones: give --num_heads"),
        ("pretrain", ("--num_heads", "3"), "give --decoder_num_heads"),
        ("finetune", ("--num_heads", "5"), "embed_dim 48 is not a positive multiple of num_heads"),
        ("finetune", ("--num_heads", "0"), "--num_heads 0 must be positive"),
        (
            "pretrain",
            ("--num_heads", "3", "--decoder_num_heads", "5"),
            "decoder embed_dim 24 is not a multiple of num_heads 5",
        ),
        (
            "finetune",
            ("--num_heads", "3", "--decoder_num_heads", "2"),
            "is a classifier and has no decoder",
        ),
    ],
)
def test_heads_that_cannot_be(
    pth: Callable[[str], Path], refused: Refused, kind: str, flags: tuple[str, ...], message: str
) -> None:
    assert message in refused(pth(kind), *flags)


# --- refused --------------------------------------------------------------------------------------


def test_an_existing_target_is_refused(
    tmp_path: Path, pth: Callable[[str], Path], refused: Refused
) -> None:
    source = pth("finetune")
    (tmp_path / "out").mkdir()
    assert "out exists: remove it, or give another name" in refused(source)
    target = tmp_path / "out.pth"
    target.write_text("mine")
    assert "out.pth exists" in refused(source, target=target)
    assert target.read_text() == "mine"


def test_targets_that_cannot_be(
    tmp_path: Path, pth: Callable[[str], Path], refused: Refused
) -> None:
    source = pth("finetune")
    told = refused(source, target=tmp_path / "out.safetensors")
    assert ".safetensors files are not written" in told
    assert "finetune.pth is not a folder" in refused(source, target=source / "below" / "out")


def test_a_missing_source_is_refused(tmp_path: Path, refused: Refused) -> None:
    assert "absent.pth does not exist" in refused(tmp_path / "absent.pth")
    (tmp_path / "empty").mkdir()
    assert "empty holds no weights" in refused(tmp_path / "empty")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"encoder.patch_embed.proj.weight": 3}}, "other things than tensors"),
        ([1, 2], "holds no state dict"),
        ({"model": {"layer1.weight": torch.ones(1)}}, "is not a VideoMAE checkpoint"),
        ({"model": {"patch_embed.proj.weight": torch.ones(8, 3, 2, 4, 4)}}, "neither decoder nor"),
        (
            {"model": {"patch_embed.proj.weight": torch.ones(8), "head.weight": torch.ones(1, 8)}},
            "without fc_norm",
        ),
    ],
)
def test_a_pth_without_a_videomae_is_refused(
    tmp_path: Path, refused: Refused, content: object, message: str
) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert message in refused(tmp_path / "w.pth")


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, refused: Refused) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.mkdir, (tmp_path / "executed",)

    torch.save({"model": Evil()}, tmp_path / "w.pth")
    assert "cannot be loaded safely" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_embed.proj.weight": torch.ones(48)}, "no weight encoder.patch_embed.proj.weight"),
        ({"patch_embed.proj.weight": torch.ones(48, 3, 2, 16, 8)}, "16 x 8 pixels are not square"),
        ({"blocks.0.mlp.fc1.weight": None}, "no weight encoder.blocks.0.mlp.fc1.weight"),
        ({"blocks.1.attn.q_bias": None}, "missing keys: encoder.blocks.1.attn.q_bias"),
        ({"blocks.0.gamma_1": torch.ones(48)}, "unexpected keys: encoder.blocks.0.gamma_1"),
        ({"cls_token": torch.ones(1, 1, 48)}, "unexpected keys: encoder.cls_token"),
        ({"encoder_to_decoder.weight": torch.ones(24, 48)}, "it has both"),
    ],
)
def test_weights_of_another_architecture_are_refused(
    tmp_path: Path, refused: Refused, change: dict[str, Tensor | None], message: str
) -> None:
    state = {**state_of("finetune"), **change}
    if "encoder_to_decoder.weight" in change:
        state = {f"encoder.{k}" if not k.startswith(("head", "enc")) else k: v
                 for k, v in state.items()}  # fmt: skip
    state = {key: value for key, value in state.items() if value is not None}
    assert message in refused(save_pth(tmp_path / "w.pth", state), *TOLD["finetune"])


def test_a_folder_that_contradicts_itself_is_refused(
    tmp_path: Path, pth: Callable[[str], Path], refused: Refused
) -> None:
    folder = run(pth("finetune"), tmp_path / "ours", *TOLD["finetune"])
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"num_hidden_layers": 3}, "depth is 2, config.json says 3"),
        ({"patch_size": 8}, "patch_size is 16, config.json says 8"),
        ({"intermediate_size": 96}, "mlp_ratio is 4, config.json says 2"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not a VideoMAE's"),
        ({"pos_grid": [8, 14]}, "pos_grid [8, 14] is not three whole numbers"),
        ({"pos_grid": [8, 14, 0]}, "pos_grid (8, 14, 0) has sizes that are not positive"),
        ({"id2label": {"0": "a"}}, "names 1 classes, its head has 10: give --label_names"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        assert message in refused(folder), change


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num_frames", "8"), "--num_frames 8: "),
        (("--input_size", "32"), "--input_size 32: "),
    ],
)
def test_clips_that_a_folder_states_cannot_be_said_otherwise(
    tmp_path: Path,
    pth: Callable[[str], Path],
    refused: Refused,
    flags: tuple[str, str],
    message: str,
) -> None:
    folder = run(pth("finetune"), tmp_path / "ours", *TOLD["finetune"])
    assert message in refused(folder, *flags)


def test_clips_that_do_not_fit_the_tubelets(pth: Callable[[str], Path], refused: Refused) -> None:
    heads = ("--num_heads", "3")
    assert "num_frames 5 is not a positive multiple" in refused(
        pth("finetune"), *heads, "--num_frames", "5"
    )
    assert "num_frames 0 is not a positive multiple" in refused(
        pth("finetune"), *heads, "--num_frames", "0"
    )
    assert "image_size 40 is not a positive multiple" in refused(
        pth("finetune"), *heads, "--input_size", "40"
    )


def test_names_where_there_is_no_place_for_them(
    tmp_path: Path, pth: Callable[[str], Path], refused: Refused
) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    names = ("--label_names", str(tmp_path / "names.txt"))
    assert "has no classes" in refused(pth("pretrain"), *TOLD["pretrain"], *names)
    assert "has 2 names" in refused(pth("finetune"), *TOLD["finetune"], *names)
    target = tmp_path / "out.pth"
    assert "holds no names" in refused(pth("finetune"), *TOLD["finetune"], *names, target=target)


def test_interpolated_positions_stay_in_folders(tmp_path: Path, refused: Refused) -> None:
    config = replace(SMALL, pos_grid=(2, 3, 3))
    state = Classification(config, 3).state_dict()
    names = ["a", "b", "c"]
    source = tmp_path / "ours"
    save_pretrained(source, state=state, config=hf_config(config, label_names=names), card="")
    told = refused(source, target=tmp_path / "out.pth")
    assert "has interpolated positions (pos_grid (2, 3, 3))" in told
    copy = run(source, tmp_path / "copy")
    assert load_classifier(copy).encoder.config.pos_grid == (2, 3, 3)
    assert "transformers does not read that key" in (copy / "README.md").read_text()


# --- self-check -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["out", "out.pth"])
@pytest.mark.parametrize("fault", ["a weight", "a type", "a key", "heads"])
def test_nothing_is_left_of_what_is_not_read_back_alike(
    tmp_path: Path,
    pth: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
    fault: str,
) -> None:
    original = convert.read_weights

    def faulty(path: Path) -> convert.Weights:
        weights = original(path)
        if "unchecked" not in path.name:
            return weights
        state = dict(weights.state)
        if fault == "a weight":
            state["head.bias"] = state["head.bias"] + 1e-6
        elif fault == "a type":
            state["head.bias"] = state["head.bias"].double()
        elif fault == "a key":
            del state["head.bias"]
        return replace(weights, state=state)

    monkeypatch.setattr(convert, "read_weights", faulty)
    if fault == "heads":
        told = convert.Told(num_heads=4, num_frames=16, input_size=48)
        monkeypatch.setattr(convert, "told_of", lambda *_: told)
    source = pth("finetune")
    before = sorted(tmp_path.iterdir())
    flags = [str(source), str(tmp_path / target), *TOLD["finetune"]]
    assert run_command("convert", flags) == 1
    assert sorted(tmp_path.iterdir()) == before
    told_user = capsys.readouterr().err
    expected = "outputs of what was written differ" if fault == "heads" else "['head.bias']"
    assert expected in told_user


def test_weights_that_give_no_numbers_are_not_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = state_of("finetune")
    state["patch_embed.proj.bias"][0] = torch.inf
    source = save_pth(tmp_path / "w.pth", state)
    assert run_command("convert", [str(source), str(tmp_path / "out"), *TOLD["finetune"]]) == 1
    assert "differ by nan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(
    tmp_path: Path,
    pth: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "fsync_file", full)
    source = pth("finetune")
    flags = [str(source), str(tmp_path / "out.pth"), *TOLD["finetune"]]
    assert run_command("convert", flags) == 74
    assert sorted(tmp_path.iterdir()) == [source]
    assert "No space left on device" in capsys.readouterr().err


def test_what_a_killed_run_left_is_overwritten(tmp_path: Path, pth: Callable[[str], Path]) -> None:
    (tmp_path / ".out.unchecked").mkdir()
    (tmp_path / ".out.unchecked" / "model.safetensors").write_text("torn")
    run(pth("finetune"), tmp_path / "out", *TOLD["finetune"])
    assert not (tmp_path / ".out.unchecked").exists()


def test_a_safetensors_file_is_a_source(tmp_path: Path) -> None:
    """Recognised by content: official names in another container."""
    save_file(state_of("finetune"), tmp_path / "official.safetensors")
    target = run(tmp_path / "official.safetensors", tmp_path / "b.pth", *TOLD["finetune"])
    assert_same_state(official_state(target), state_of("finetune"))
