"""Our folders in transformers and its folders in ours, with the same numbers out of both."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoVideoProcessor,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    VideoMAEVideoProcessor,
)

from kinetics400.batch import Batch, normalize
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.huggingface import hf_config, save_pretrained
from kinetics400.models.pretrained import check_architecture, load_pretrained, read_weights
from kinetics400.models.vit import DecoderConfig, VitConfig

ENCODER = VitConfig(
    embed_dim=48, depth=2, num_heads=3, image_size=32, patch_size=16, num_frames=8, tubelet_size=2
)
DECODER = DecoderConfig(embed_dim=24, depth=1, num_heads=2)
NAMES = ("abseiling", "massaging person's head", "zumba")
MASKED = [[0, 3], [1, 2]]  # places hidden in each of two samples


def randomise(module: nn.Module) -> nn.Module:
    """Move every parameter off its initial value: zero biases would hide a lost one."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def videomae(*, norm_pix_loss: bool = True) -> VideoMAE:
    return VideoMAE(ENCODER, DECODER, mask_ratio=0.5, norm_pix_loss=norm_pix_loss)


def clips() -> Tensor:
    generator = torch.Generator().manual_seed(6)
    shape = (2, 3, 8, 32, 32)
    return normalize(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))


def masks() -> tuple[Tensor, dict[str, Tensor]]:
    """The same mask for transformers (boolean, True hidden) and for us (indices)."""
    hidden = torch.zeros(2, 4, 4, dtype=torch.bool)  # sample, time, place
    for sample, places in enumerate(MASKED):
        hidden[sample, :, places] = True
    hidden = hidden.flatten(1)
    drawn = {
        "keep_indices": torch.stack([(~row).nonzero()[:, 0] for row in hidden]),
        "mask_indices": torch.stack([row.nonzero()[:, 0] for row in hidden]),
    }
    return hidden, drawn


@torch.no_grad()
def assert_same_pretraining(ours: VideoMAE, theirs: VideoMAEForPreTraining) -> None:
    hidden, drawn = masks()
    nothing = torch.zeros(2, dtype=torch.int64)
    loss = ours(Batch(clips(), nothing, nothing), drawn)["loss"]
    predictions = ours.reconstruct(clips(), **drawn)
    output = theirs.eval()(clips().transpose(1, 2), bool_masked_pos=hidden)
    torch.testing.assert_close(output.logits, predictions, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.loss, loss, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def assert_same_logits(ours: Classification, theirs: VideoMAEForVideoClassification) -> None:
    logits = ours.predict(clips())
    assert logits.std() > 0.1  # something to compare
    output = theirs.eval()(clips().transpose(1, 2)).logits
    torch.testing.assert_close(output, logits, rtol=1e-4, atol=1e-4)


def assert_loaded_whole(info: dict) -> None:
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[problem], problem


def save_ours(folder: Path, method: VideoMAE | Classification) -> Path:
    if isinstance(method, VideoMAE):
        config = hf_config(ENCODER, decoder=DECODER, norm_pix_loss=method.norm_pix_loss)
    else:
        config = hf_config(ENCODER, label_names=NAMES)
    save_pretrained(folder, state=method.state_dict(), config=config, card="# Ours\n")
    return folder


# --- ours in transformers -------------------------------------------------------------------------


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_our_pretraining_folder_gives_transformers_our_numbers(
    tmp_path: Path, norm_pix_loss: bool
) -> None:
    method = videomae(norm_pix_loss=norm_pix_loss)
    randomise(method)
    folder = save_ours(tmp_path / "model", method)
    theirs, info = VideoMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert_loaded_whole(info)
    assert theirs.config.norm_pix_loss == norm_pix_loss
    # Wrong ones would change the numbers by less than the tolerance.
    assert theirs.config.layer_norm_eps == theirs.videomae.layernorm.eps == 1e-6
    assert theirs.config.hidden_act == "gelu"
    assert_same_pretraining(method, theirs)


def test_our_classifier_folder_gives_transformers_our_numbers(tmp_path: Path) -> None:
    method = Classification(ENCODER, len(NAMES))
    randomise(method)
    folder = save_ours(tmp_path / "model", method)
    theirs, info = VideoMAEForVideoClassification.from_pretrained(folder, output_loading_info=True)
    assert_loaded_whole(info)
    assert theirs.config.id2label == dict(enumerate(NAMES))
    assert theirs.config.label2id == {name: index for index, name in enumerate(NAMES)}
    assert_same_logits(method, theirs)


def test_transformers_computes_positions_of_its_own_and_the_card_says_so(tmp_path: Path) -> None:
    method = Classification(replace(ENCODER, pos_grid=(2, 2, 2)), len(NAMES))
    randomise(method)
    config = hf_config(method.encoder.config, label_names=NAMES)
    save_pretrained(tmp_path / "m", state=method.state_dict(), config=config, card="# Ours\n")
    card = (tmp_path / "m" / "README.md").read_text()
    assert card.startswith("# Ours\n") and "interpolated from a grid of 2x2x2 tokens" in card
    theirs, info = VideoMAEForVideoClassification.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert_loaded_whole(info)
    with torch.no_grad():
        output = theirs.eval()(clips().transpose(1, 2)).logits
        assert (output - method.predict(clips())).abs().max() > 1e-2
    method.encoder.set_pos_grid(None)
    assert_same_logits(method, theirs)


def test_our_pretraining_folder_starts_a_transformers_classifier(tmp_path: Path) -> None:
    method = videomae()
    randomise(method)
    folder = save_ours(tmp_path / "model", method)
    theirs, info = VideoMAEForVideoClassification.from_pretrained(
        folder, output_loading_info=True, use_mean_pooling=True, num_labels=3
    )
    missing = {key.split(".")[0] for key in info["missing_keys"]}
    assert missing == {"fc_norm", "classifier"}
    visible = theirs.videomae.eval()(clips().transpose(1, 2)).last_hidden_state
    ours = method.encoder
    ours.norm = None
    torch.testing.assert_close(ours(clips()), visible, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "auto",
    [AutoImageProcessor, AutoVideoProcessor, VideoMAEVideoProcessor],
    ids=lambda c: c.__name__,
)
def test_our_folder_tells_processors_the_imagenet_statistics(tmp_path: Path, auto: type) -> None:
    folder = save_ours(tmp_path / "model", Classification(ENCODER, len(NAMES)))
    processor = auto.from_pretrained(folder)
    assert "VideoMAE" in type(processor).__name__
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert list(processor.image_std) == [0.229, 0.224, 0.225]
    assert processor.size["shortest_edge"] == 32
    assert dict(processor.crop_size) == {"height": 32, "width": 32}


def test_their_processor_prepares_clips_as_we_do(tmp_path: Path) -> None:
    folder = save_ours(tmp_path / "model", Classification(ENCODER, len(NAMES)))
    generator = torch.Generator().manual_seed(7)
    video = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    processor = VideoMAEVideoProcessor.from_pretrained(folder)
    theirs = processor(video, return_tensors="pt")["pixel_values"]
    ours = normalize(video.transpose(0, 1)[None]).transpose(1, 2)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_ours(folder, videomae())
    (folder / "left-over.txt").write_text("old")
    save_ours(folder, Classification(ENCODER, len(NAMES)))
    expected = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {file.name for file in folder.iterdir()} == expected
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["VideoMAEForVideoClassification"]


# --- theirs in ours -------------------------------------------------------------------------------


def their_config(**changes: object) -> VideoMAEConfig:
    return VideoMAEConfig(
        **{
            "image_size": 32,
            "num_frames": 8,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 192,
            "decoder_hidden_size": 24,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 96,
            "use_mean_pooling": False,
            **changes,
        }
    )


def their_classifier() -> VideoMAEForVideoClassification:
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
    model = VideoMAEForVideoClassification(their_config(use_mean_pooling=True, **labels))
    randomise(model)
    return model


def rename_biases(folder: Path, naming: str) -> None:
    """Give the q and v biases on disk one of the two names that transformers has used."""
    file = folder / "model.safetensors"
    names = {"q_bias": "query.bias", "v_bias": "value.bias"}
    if naming == "q_bias":
        names = {new: old for old, new in names.items()}
    renamed = {}
    for key, value in load_file(file).items():
        for old, new in names.items():
            key = key.replace(f"attention.attention.{old}", f"attention.attention.{new}")
        renamed[key] = value
    assert any(key.endswith(f".attention.attention.{naming}") for key in renamed)
    save_file(renamed, file, metadata={"format": "pt"})


@pytest.mark.parametrize("naming", ["q_bias", "query.bias"])
def test_their_pretraining_folder_loads_in_ours(tmp_path: Path, naming: str) -> None:
    theirs = VideoMAEForPreTraining(their_config())
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    rename_biases(tmp_path, naming)
    weights = read_weights(tmp_path)
    check_architecture(weights, ENCODER)
    ours = videomae()
    load_pretrained(ours, weights)
    assert_same_pretraining(ours.eval(), theirs)


@pytest.mark.parametrize("naming", ["q_bias", "query.bias"])
def test_their_classifier_folder_loads_in_ours(tmp_path: Path, naming: str) -> None:
    theirs = their_classifier()
    theirs.save_pretrained(tmp_path)
    rename_biases(tmp_path, naming)
    weights = read_weights(tmp_path)
    check_architecture(weights, ENCODER)
    ours = Classification(ENCODER, len(NAMES))
    load_pretrained(ours, weights)
    assert_same_logits(ours.eval(), theirs)


def test_their_pickled_weights_load_in_ours(tmp_path: Path) -> None:
    theirs = their_classifier()
    theirs.save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    ours = Classification(ENCODER, len(NAMES))
    load_pretrained(ours, read_weights(tmp_path))
    assert_same_logits(ours.eval(), theirs)


def test_their_bare_model_loads_in_ours(tmp_path: Path) -> None:
    theirs = VideoMAEModel(their_config())
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    ours = videomae()
    decoder = ("decoder.", "encoder_to_decoder.", "mask_token")
    load_pretrained(ours, read_weights(tmp_path), may_miss=decoder)
    with torch.no_grad():
        expected = theirs(clips().transpose(1, 2)).last_hidden_state
        torch.testing.assert_close(ours.encoder(clips()), expected, rtol=1e-4, atol=1e-4)
