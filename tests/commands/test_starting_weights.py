"""Starting from weights of other clips: every size trains, is saved, and starts from 16 x 224."""

import json
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kinetics400.__main__ import run_command
from kinetics400.batch import Batch
from kinetics400.commands.evaluate import load_classifier
from kinetics400.commands.starting_weights import load_encoder
from kinetics400.config.finetuning import PretrainedFlags
from kinetics400.errors import InputError
from kinetics400.methods.base import Method
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.describe import Told, describe
from kinetics400.models.huggingface import hf_config, save_pretrained
from kinetics400.models.pretrained import load_pretrained, read_weights
from kinetics400.models.resize import resize_kernel
from kinetics400.models.vit import DecoderConfig, VitConfig, interpolate_positions, sinusoid_table

PUBLISHED = VitConfig(embed_dim=32, depth=1, num_heads=2)  # tubelets of 2 x 16 x 16, 16 x 224
DECODER = DecoderConfig(embed_dim=16, depth=1, num_heads=1)
NAMES = ("a", "b", "c")
# Frames, pixels, frames of a tubelet, pixels of a patch.
VALUES = ((8, 16, 32, 64), (112, 224, 336, 384), (1, 2, 4), (14, 16))
GRID = [
    *((8, 112, 4, 16), (8, 224, 4, 14), (8, 336, 1, 16), (8, 336, 2, 16), (8, 384, 1, 16)),
    *((16, 112, 2, 16), (16, 224, 1, 16), (16, 336, 4, 14), (16, 384, 2, 16)),
    *((32, 112, 1, 16), (32, 224, 2, 14), (32, 336, 4, 16), (32, 384, 4, 16)),
    *((64, 112, 1, 14), (64, 112, 2, 16), (64, 224, 4, 16), (64, 336, 4, 16), (64, 384, 4, 16)),
]


def test_the_sizes_tried_hold_every_pair_of_values() -> None:
    """But 384 pixels in patches of 14, which do not divide them."""
    for first, second in combinations(range(4), 2):
        wanted = set(product(VALUES[first], VALUES[second])) - {(384, 14)}
        assert {(sizes[first], sizes[second]) for sizes in GRID} == wanted


def save(folder: Path, method: VideoMAE | Classification) -> Path:
    vit = method.encoder.config
    if isinstance(method, VideoMAE):
        config = hf_config(vit, decoder=method.decoder_config)
    else:
        config = hf_config(vit, label_names=NAMES)
    save_pretrained(folder, state=method.state_dict(), config=config, card="")
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining model of 16 frames of 224 pixels, away from its initial values."""
    torch.manual_seed(3)
    method = VideoMAE(PUBLISHED, DECODER)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return save(tmp_path_factory.mktemp("published") / "model", method)


def one_step(method: Method, config: VitConfig) -> None:
    """A training step, after which every parameter has moved."""
    side = config.image_size
    clips = torch.rand(1, 3, config.num_frames, side, side)
    batch = Batch(clips, *torch.ones(2, 1, dtype=torch.int64))
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    before = {name: value.detach().clone() for name, value in method.named_parameters()}
    loss = method(batch, method.draw(batch.keys))["loss"]
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    still = [name for name, value in method.named_parameters() if torch.equal(value, before[name])]
    assert still == []


def assert_same_state(ours: Method, theirs: Method) -> None:
    first, second = ours.state_dict(), theirs.state_dict()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert torch.equal(ours.encoder.pos_embed, theirs.encoder.pos_embed)


@pytest.mark.parametrize("sizes", GRID, ids=lambda sizes: "x".join(map(str, sizes)))
def test_every_size_trains_is_saved_and_starts_from_16_frames_of_224(
    tmp_path: Path, published: Path, sizes: tuple[int, int, int, int]
) -> None:
    num_frames, image_size, tubelet_size, patch_size = sizes
    config = replace(
        PUBLISHED,
        num_frames=num_frames,
        image_size=image_size,
        tubelet_size=tubelet_size,
        patch_size=patch_size,
    )
    # Pretraining, from scratch, on positions of another grid as finetuning would leave them.
    pretraining = VideoMAE(replace(config, pos_grid=(8, 14, 14)), DECODER)
    one_step(pretraining, config)
    weights = read_weights(save(tmp_path / "pretrained", pretraining))
    model = describe(weights.state, weights.config, weights.source, Told())
    assert model.encoder == replace(config, pos_grid=(8, 14, 14)) and model.decoder == DECODER
    again = VideoMAE(model.encoder, model.decoder)
    load_pretrained(again, weights)
    assert_same_state(pretraining, again)
    assert torch.equal(pretraining.decoder_pos_embed, again.decoder_pos_embed)
    # Finetuning, from the published clips.
    method = Classification(config, len(NAMES))
    flags = PretrainedFlags(
        pretrained=True,
        pretrained_dir=published,
        pos_embed="interpolate",
        resize_patch_embed=True,
    )
    load_encoder(method, flags, [], dry_run=False)
    theirs = load_file(published / "model.safetensors")
    positions = interpolate_positions(sinusoid_table(8 * 14 * 14, 32), (8, 14, 14), config.grid)
    assert torch.equal(method.encoder.pos_embed, positions)
    kernel = theirs["videomae.embeddings.patch_embeddings.projection.weight"]
    expected = resize_kernel(kernel, (tubelet_size, patch_size, patch_size))
    assert torch.equal(method.encoder.patch_embed.proj.weight, expected)
    name = "videomae.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(method.encoder.blocks[0].mlp.fc1.weight, theirs[name])
    one_step(method, config)
    assert_same_state(method, load_classifier(save(tmp_path / "finetuned", method)))


# --- what is asked for ----------------------------------------------------------------------------


def start(published: Path, *, dry_run: bool = False, **asked: object) -> Classification:
    """A classifier of 32 frames in tubelets of 4, unless asked otherwise."""
    flags = {name: asked.pop(name) for name in ("pos_embed", "resize_patch_embed") if name in asked}
    config = replace(PUBLISHED, **asked)
    with torch.device("meta" if dry_run else "cpu"):
        method = Classification(config, len(NAMES))
    flags = PretrainedFlags(pretrained=True, pretrained_dir=published, **flags)
    load_encoder(method, flags, [], dry_run=dry_run)
    return method


def test_without_a_word_the_weights_clips_are_asked_for(published: Path) -> None:
    assert start(published).encoder.config == PUBLISHED
    with pytest.raises(InputError) as refused:
        start(published, num_frames=32, image_size=112)
    assert str(refused.value).endswith(
        "is another architecture: image_size is 224, asked for 112; num_frames is 16, asked for "
        "32. For clips of other numbers of frames or pixels say where positions come from: "
        "--pos_embed interpolate or sinusoid (docs/weights.md)"
    )


def test_asked_for_neither_flag_allows_what_the_other_does(published: Path) -> None:
    with pytest.raises(InputError, match=r"tubelet_size is 2, asked for 4.*--resize_patch_embed"):
        start(published, tubelet_size=4, pos_embed="interpolate")
    with pytest.raises(InputError, match=r"8 x 14 x 14 tokens, asked for 4 x 14 x 14"):
        start(published, tubelet_size=4, resize_patch_embed=True)
    with pytest.raises(InputError, match="num_frames is 16, asked for 32"):
        start(published, num_frames=32, tubelet_size=4, resize_patch_embed=True)
    with pytest.raises(InputError, match="embed_dim is 32, asked for 64"):
        start(published, embed_dim=64, pos_embed="interpolate", resize_patch_embed=True)


def test_sinusoid_computes_the_positions_of_the_new_grid(published: Path) -> None:
    method = start(published, num_frames=32, pos_embed="sinusoid")
    assert method.encoder.config.pos_grid is None
    assert torch.equal(method.encoder.pos_embed, sinusoid_table(16 * 14 * 14, 32))


def test_the_user_is_told_what_happens_to_positions(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(published, num_frames=32, pos_embed="interpolate")
    told = capsys.readouterr().err
    assert told == "positions: those of 8 x 14 x 14 tokens, interpolated to 16 x 14 x 14\n"


def test_a_dry_run_interpolates_without_memory(published: Path) -> None:
    method = start(published, num_frames=32, pos_embed="interpolate", dry_run=True)
    assert method.encoder.pos_embed.is_meta
    assert method.encoder.pos_embed.shape == (1, 16 * 14 * 14, 32)


def test_wrong_heads_are_refused_with_the_way_out(published: Path) -> None:
    with pytest.raises(InputError, match=r"num_heads is 2, asked for 4.*convert --num_heads N"):
        start(published, num_heads=4)


@pytest.mark.parametrize("flag", [("--pos_embed", "sinusoid"), ("--resize_patch_embed",)])
def test_without_weights_there_is_nothing_to_adapt(
    flag: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("train", ["--model_name", "tiny", *flag, "--dry_run"]) == 2
    assert "--resize_patch_embed need --pretrained" in capsys.readouterr().err


# --- the command ----------------------------------------------------------------------------------


def test_a_model_finetuned_on_longer_clips_keeps_its_positions(
    library: Path, tmp_path: Path
) -> None:
    """From `train` to `model/`, to `evaluate`, and on to yet other clips."""
    tiny = VitConfig(embed_dim=128, depth=4, num_heads=4, image_size=32, patch_size=8, num_frames=4)
    source = save(tmp_path / "source", Classification(tiny, len(NAMES)))
    flags = ["--data_dir", str(library), "--accelerator", "cpu", "--n_worker", "0"]
    flags += ["--sampling_rate", "2", "--views", "1x1"]
    own = ["--model_name", "tiny", "--input_size", "32", "--patch_size", "8", "--num_classes", "4"]
    own += ["--batch_size", "12", "--n_epoch", "1", "--warmup_epochs", "0"]
    where = ["--save_dir", str(tmp_path / "run"), "--num_frames", "8"]
    start = ["--pretrained", "--pretrained_dir", str(source), "--pos_embed", "interpolate"]
    assert run_command("train", [*flags, *own, *where, *start]) == 0
    trained = load_classifier(tmp_path / "run").encoder
    assert trained.config == replace(tiny, num_frames=8, pos_grid=(2, 4, 4))
    expected = interpolate_positions(sinusoid_table(32, 128), (2, 4, 4), (4, 4, 4))
    assert torch.equal(trained.pos_embed, expected)
    subject = ["--checkpoint", str(tmp_path / "run"), "--output_dir", str(tmp_path / "again")]
    assert run_command("evaluate", [*flags, *subject]) == 0
    again, own_results = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("again", "run")
    )
    assert all(again[name] == value for name, value in own_results.items() if "acc" in name)
    # The repeated command finds nothing to do: its settings are those of the run.
    assert run_command("train", [*flags, *own, *where, *start]) == 0
