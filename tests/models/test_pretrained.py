"""Weights on disk: which are found, what is refused and how it is said, what is loaded."""

import argparse
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor
from transformers import VideoMAEConfig

from kinetics400.errors import InputError
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models import pretrained
from kinetics400.models.huggingface import hf_config, save_pretrained
from kinetics400.models.keymaps import from_hf, to_hf
from kinetics400.models.pretrained import (
    check_architecture,
    find_weights,
    load_pretrained,
    read_weights,
)
from kinetics400.models.vit import DecoderConfig, VitConfig

ENCODER = VitConfig(
    embed_dim=24, depth=2, num_heads=3, image_size=32, patch_size=16, num_frames=4, tubelet_size=2
)
DECODER = DecoderConfig(embed_dim=12, depth=1, num_heads=2)
# What finetuning may leave unused of a pretraining checkpoint, and may start afresh.
DECODER_KEYS = ("decoder.", "encoder_to_decoder.", "mask_token", "encoder.norm.")
HEAD_KEYS = ("fc_norm.", "head.")
NAME = "MCG-NJU/videomae-base"


def videomae(config: VitConfig = ENCODER) -> VideoMAE:
    return VideoMAE(config, DECODER, mask_ratio=0.5)


def save_folder(folder: Path, method: VideoMAE | Classification | None = None) -> Path:
    method = method or videomae()
    names = [f"class {i}" for i in range(getattr(method, "num_classes", 0))]
    decoder = DECODER if isinstance(method, VideoMAE) else None
    config = hf_config(method.encoder.config, decoder=decoder, label_names=names)
    save_pretrained(folder, state=method.state_dict(), config=config, card="")
    return folder


def save_pth(file: Path, state: dict[str, Tensor] | None = None) -> Path:
    torch.save({"model": videomae().state_dict() if state is None else state}, file)
    return file


# --- find -----------------------------------------------------------------------------------------


def touch_folder(folder: Path, file: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).touch()
    return folder


def test_find_prefers_the_folder_then_model_then_the_name_then_its_last_part(
    tmp_path: Path,
) -> None:
    save_pth(tmp_path / "checkpoint.pth")
    assert find_weights(tmp_path, NAME) == tmp_path / "checkpoint.pth"
    for inner in (
        "videomae-base/model",
        "videomae-base",
        "MCG-NJU/videomae-base/model",
        "MCG-NJU/videomae-base",
        "model",
        ".",
    ):
        expected = touch_folder(tmp_path / inner)
        assert find_weights(tmp_path, NAME) == expected


def test_find_needs_weights_not_just_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert find_weights(tmp_path, NAME) is None
    touch_folder(tmp_path / "model", "pytorch_model.bin")
    assert find_weights(tmp_path, NAME) == tmp_path / "model"


def test_find_without_a_name_does_not_look_below(tmp_path: Path) -> None:
    touch_folder(tmp_path / NAME)
    assert find_weights(tmp_path, None) is None


def test_find_accepts_a_file(tmp_path: Path) -> None:
    file = save_pth(tmp_path / "a.pth")
    save_pth(tmp_path / "b.pth")
    assert find_weights(file, None) == file
    assert find_weights(None, str(file)) == file


def test_find_refuses_several_pth_files(tmp_path: Path) -> None:
    save_pth(tmp_path / "b.pth")
    save_pth(tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"several \.pth files \(a\.pth, b\.pth\)"):
        find_weights(tmp_path, None)
    touch_folder(tmp_path)
    assert find_weights(tmp_path, None) == tmp_path


def test_find_needs_a_name_or_a_folder() -> None:
    with pytest.raises(InputError, match="--pretrained_dir, --pretrained_name or both"):
        find_weights(None, None)


def test_find_looks_in_the_hub_cache_only_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = touch_folder(tmp_path / "cache")
    asked: list[tuple[str, str, str | None]] = []

    def cache(name: str, file: str, revision: str | None) -> str | None:
        asked.append((name, file, revision))
        return str(cached / file) if file == "model.safetensors" else None

    monkeypatch.setattr(pretrained, "try_to_load_from_cache", cache)
    (tmp_path / "empty").mkdir()
    assert find_weights(tmp_path / "empty", NAME) is None and not asked
    assert find_weights(None, NAME) == cached
    assert asked[0] == (NAME, "model.safetensors", None)
    assert find_weights(None, f"{NAME}@v1") == cached
    assert asked[1] == (NAME, "model.safetensors", "v1")
    assert find_weights(touch_folder(tmp_path / "own" / NAME).parents[1], f"{NAME}@v1") is not None
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *_, **__: None)
    assert find_weights(None, NAME) is None


def test_find_says_what_is_wrong_with_an_impossible_name() -> None:
    with pytest.raises(InputError, match="neither a path that exists nor a hub name"):
        find_weights(None, "no/such/folder/here")


class Hub:
    """A hub that has some files of one model; what is fetched lies in `folder`."""

    def __init__(self, folder: Path, *files: str) -> None:
        self.folder, self.files, self.asked = folder, files, []

    def __call__(self, name: str, file: str, revision: str | None) -> str:
        self.asked.append((name, file, revision))
        if file not in self.files:
            response: Any = SimpleNamespace(headers={}, request=None)
            raise RemoteEntryNotFoundError(file, response=response)
        self.folder.mkdir(exist_ok=True)
        (self.folder / file).touch()
        return str(self.folder / file)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_download_takes_the_configuration_and_one_weights_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    files = {"config.json", file, "pytorch_model.bin"}
    hub = Hub(tmp_path / "snapshot", *files)
    monkeypatch.setattr(pretrained, "hf_hub_download", hub)
    assert pretrained.download_weights(NAME) == tmp_path / "snapshot"
    assert {path.name for path in hub.folder.iterdir()} == {"config.json", file}
    assert {(name, revision) for name, _, revision in hub.asked} == {(NAME, None)}
    hub.asked.clear()
    assert pretrained.download_weights(f"{NAME}@1234abc") == tmp_path / "snapshot"
    assert {(name, revision) for name, _, revision in hub.asked} == {(NAME, "1234abc")}


def test_download_of_a_model_without_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "hf_hub_download", Hub(tmp_path / "snapshot", "config.json"))
    with pytest.raises(InputError, match=r"without any of model\.safetensors, pytorch_model\.bin"):
        pretrained.download_weights(NAME)


def test_a_failed_download_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(pretrained, "hf_hub_download", offline)
    with pytest.raises(InputError, match=r"ConnectionError\)\. .*--pretrained_dir"):
        pretrained.download_weights(NAME)


# --- read -----------------------------------------------------------------------------------------


class RunsCode:
    """Unpickled without care, this makes a folder: proof that code ran."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["weights.pth", "folder/pytorch_model.bin"])
@pytest.mark.parametrize("plain", [False, True], ids=["zip", "plain"])
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, name: str, plain: bool) -> None:
    marker = tmp_path / "ran"
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    content = {"model": {"encoder.patch_embed.proj.weight": RunsCode(marker)}}
    if plain:
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file)
    (file.parent / "config.json").write_text('{"model_type": "videomae"}')
    with pytest.raises(InputError, match=r"cannot be loaded safely as tensors") as failure:
        read_weights(file if file.suffix == ".pth" else file.parent)
    told = str(failure.value)
    assert str(file) in told and "posix.mkdir" in told
    assert "False" not in told  # torch advises to load it unsafely
    assert not marker.exists()
    pickle.loads(pickle.dumps(RunsCode(marker)))
    assert marker.exists()  # the trap itself works


def test_official_command_line_beside_the_weights_is_accepted(tmp_path: Path) -> None:
    state = videomae().state_dict()
    arguments = argparse.Namespace(lr=1.5e-4, model="pretrain_videomae_base_patch16_224", x=None)
    torch.save({"model": state, "args": arguments, "epoch": 799}, tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth")
    assert weights.state.keys() == state.keys() and weights.sizes is None
    assert torch.load(tmp_path / "w.pth", weights_only=False)["args"] == arguments
    with pytest.raises(pickle.UnpicklingError):  # the permission ended with the reading
        torch.load(tmp_path / "w.pth", weights_only=True)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_cut_weights_are_refused(tmp_path: Path, kind: str, share: float) -> None:
    if kind == "pth":
        path = file = save_pth(tmp_path / "w.pth")
    else:
        path = save_folder(tmp_path / "model")
        file = path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"cannot be loaded|does not hold") as failure:
        read_weights(path)
    assert str(file) in str(failure.value)


@pytest.mark.parametrize("content", [b"\x80\x02.", b"\x80\x02}}s.", b"\x80\x02K\x01K\x02\x93."])
def test_nonsense_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"w\.pth cannot be loaded safely"):
        read_weights(tmp_path / "w.pth")


def test_safetensors_with_a_damaged_header_is_refused(tmp_path: Path) -> None:
    file = save_folder(tmp_path / "model") / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[20] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors does not hold the tensors"):
        read_weights(file.parent)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2, 3], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"model": {}}, "holds no state dict"),
        ({"model": {"encoder.patch_embed.proj.weight": 3}}, "other things than tensors"),
        ({"model": {"w": torch.eye(2).to_sparse()}}, r"sparse tensors \('w'\)"),
        ({"model": {"layer1.weight": torch.ones(1)}}, r"is not a VideoMAE.*\(layer1\.weight\)"),
    ],
)
def test_pth_without_a_videomae_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "vivit"}', "is not a VideoMAE model's"),
        ("[]", "is not a VideoMAE model's"),
        ("{", "cannot be read"),
        ('{"model_type": "videomae", "auto_map": {"AutoModel": "m.M"}}', "asks for code"),
        ('{"model_type": "videomae", "id2label": {"first": "a"}}', "id2label"),
        (None, "cannot be read"),
    ],
)
def test_folder_of_another_model_is_refused(
    tmp_path: Path, config: str | None, message: str
) -> None:
    file = save_folder(tmp_path / "model") / "config.json"
    file.unlink()
    if config is not None:
        file.write_text(config)
    with pytest.raises(InputError, match=message):
        read_weights(file.parent)


def test_foreign_keys_of_a_folder_are_listed(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "model")
    state = to_hf(videomae().state_dict())
    state["videomae.encoder.layer.0.adapter.weight"] = torch.ones(1)
    del state["videomae.encoder.layer.1.attention.attention.key.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(InputError) as failure:
        read_weights(folder)
    assert "videomae.encoder.layer.0.adapter.weight" in str(failure.value)
    assert "encoder.blocks.1 with only ['query', 'value']" in str(failure.value)


@pytest.mark.parametrize("make", [videomae, lambda: Classification(ENCODER, 5)])
def test_names_survive_the_way_to_hugging_face_and_back(
    make: Callable[[], torch.nn.Module],
) -> None:
    state = make().state_dict()
    back = from_hf(to_hf(state), "test")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


# --- check and load -------------------------------------------------------------------------------


def test_another_architecture_is_listed_size_by_size(tmp_path: Path) -> None:
    weights = read_weights(save_folder(tmp_path / "model"))
    check_architecture(weights, ENCODER)
    other = replace(ENCODER, embed_dim=48, depth=3, num_heads=6, image_size=64, num_frames=8)
    with pytest.raises(InputError) as failure:
        check_architecture(weights, other)
    for part in (
        "is another architecture",
        "embed_dim is 24, asked for 48",
        "depth is 2, asked for 3",
        "num_heads is 3, asked for 6",
        "image_size is 32, asked for 64",
        "num_frames is 4, asked for 8",
    ):
        assert part in str(failure.value)
    for name in ("patch_size", "tubelet_size"):
        assert name not in str(failure.value)


def test_absent_sizes_are_those_of_the_hugging_face_class(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "videomae"}')
    sizes = read_weights(folder).sizes
    theirs = VideoMAEConfig()
    assert sizes == {
        "embed_dim": theirs.hidden_size,
        "depth": theirs.num_hidden_layers,
        "num_heads": theirs.num_attention_heads,
        "image_size": theirs.image_size,
        "patch_size": theirs.patch_size,
        "num_frames": theirs.num_frames,
        "tubelet_size": theirs.tubelet_size,
        "in_channels": theirs.num_channels,
        "mlp_ratio": theirs.intermediate_size / theirs.hidden_size,
        "pos_grid": None,
    }


def test_missing_unexpected_and_misshapen_keys_are_all_listed(tmp_path: Path) -> None:
    state = videomae().state_dict()
    del state["encoder.blocks.1.attn.q_bias"]
    state["encoder.blocks.2.norm1.weight"] = torch.ones(24)
    state["decoder.head.bias"] = torch.ones(7)
    method = videomae()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    with pytest.raises(InputError) as failure:
        load_pretrained(method, read_weights(save_pth(tmp_path / "w.pth", state)))
    message = str(failure.value)
    assert "missing keys: encoder.blocks.1.attn.q_bias." in message
    assert "unexpected keys: encoder.blocks.2.norm1.weight." in message
    assert "another architecture: decoder.head.bias is (7,), asked for (1536,)" in message
    after = method.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)  # nothing was copied


def test_many_keys_are_counted_not_all_listed(tmp_path: Path) -> None:
    weights = read_weights(save_pth(tmp_path / "w.pth"))
    with pytest.raises(InputError, match=r"missing keys: .*encoder\.blocks\.2\.\S+ and 3 more"):
        load_pretrained(videomae(replace(ENCODER, depth=3)), weights)


def test_weights_of_another_width_list_shapes(tmp_path: Path) -> None:
    weights = read_weights(save_pth(tmp_path / "w.pth"))
    with pytest.raises(InputError, match=r"attn\.proj\.bias is \(24,\), asked for \(48,\)"):
        load_pretrained(videomae(replace(ENCODER, embed_dim=48)), weights)


def finetune(path: Path, num_classes: int, drop: tuple[str, ...] = ()) -> Classification:
    method = Classification(ENCODER, num_classes)
    weights = read_weights(path)
    load_pretrained(method, weights, may_miss=HEAD_KEYS, may_drop=(*DECODER_KEYS, *drop))
    return method


@pytest.mark.parametrize("layout", ["folder", "pth"])
def test_pretraining_weights_start_a_classifier(tmp_path: Path, layout: str) -> None:
    torch.manual_seed(1)
    source = videomae()
    torch.nn.init.normal_(source.encoder.blocks[1].attn.v_bias)
    if layout == "folder":
        path = save_folder(tmp_path / "model", source)
    else:
        path = save_pth(tmp_path / "w.pth", source.state_dict())
    loaded = finetune(path, 5).encoder.state_dict()
    expected = source.encoder.state_dict()
    assert loaded.keys() == expected.keys() - {"norm.weight", "norm.bias"}
    assert all(torch.equal(loaded[key], expected[key]) for key in loaded)


def test_decoder_is_unexpected_unless_it_may_be_dropped(tmp_path: Path) -> None:
    weights = read_weights(save_folder(tmp_path / "model"))
    method = Classification(ENCODER, 5)
    with pytest.raises(InputError, match=r"unexpected keys: .*mask_token"):
        load_pretrained(method, weights, may_miss=HEAD_KEYS, may_drop=("decoder.",))
    with pytest.raises(InputError, match=r"missing keys: fc_norm\.weight, fc_norm\.bias, head"):
        load_pretrained(method, weights, may_drop=DECODER_KEYS)


def test_official_finetuned_weights_load_whole(tmp_path: Path) -> None:
    torch.manual_seed(2)
    source = Classification(ENCODER, 5, head_init_scale=1.0)
    state = {key.removeprefix("encoder."): value for key, value in source.state_dict().items()}
    assert "blocks.0.attn.q_bias" in state and "head.weight" in state
    method = Classification(ENCODER, 5)
    load_pretrained(method, read_weights(save_pth(tmp_path / "w.pth", state)))
    loaded = method.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in source.state_dict().items())


def test_head_of_another_class_count_is_refused_by_its_shape(tmp_path: Path) -> None:
    path = save_folder(tmp_path / "model", Classification(ENCODER, 5))
    with pytest.raises(InputError, match=r"head\.weight is \(5, 24\), asked for \(7, 24\)"):
        finetune(path, 7)
    with pytest.raises(InputError, match=r"head\.weight is \(5, 24\)"):
        finetune(path, 7, drop=("head.",))  # dropping is for what the model lacks


def test_half_precision_weights_load_as_float32(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in videomae().state_dict().items()}
    method = videomae()
    load_pretrained(method, read_weights(save_pth(tmp_path / "w.pth", state)))
    weight = method.encoder.patch_embed.proj.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["encoder.patch_embed.proj.weight"].float())
