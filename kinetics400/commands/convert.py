"""`kinetics400 convert`: official weights to a model folder, and back."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from kinetics400 import __version__
from kinetics400.commands.telling import say
from kinetics400.config.convert import ConvertConfig
from kinetics400.config.parse import parse
from kinetics400.data.listing import read_names
from kinetics400.data.storage import disk_errors, fsync_file, fsync_folder
from kinetics400.errors import Failure, InputError
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.describe import Description, Told, describe
from kinetics400.models.huggingface import hf_config, save_pretrained
from kinetics400.models.keymaps import to_official
from kinetics400.models.pretrained import Weights, find_weights, load_pretrained, read_weights

# Names that promise a format this command does not write.
OTHER_FILES = (".pt", ".bin", ".ckpt", ".safetensors")


def main(argv: Sequence[str]) -> int:
    """Run the command; see kinetics400.__main__ for exit codes."""
    config = parse(
        ConvertConfig,
        argv,
        prog="kinetics400 convert",
        description="Convert VideoMAE weights: official .pth to a model folder, and back.",
    )
    check_target(config.target)
    weights = read_source(config.source)
    told = Told(
        num_heads=config.num_heads,
        decoder_num_heads=config.decoder_num_heads,
        num_frames=config.num_frames,
        input_size=config.input_size,
    )
    model = describe(weights.state, weights.config, weights.source, told)
    expected = run_model(model, weights)
    pth = is_pth(config.target)
    if pth:
        refuse_what_a_pth_cannot_hold(model, config)
    names = () if pth else class_names(model, config.label_names)
    with staged(config.target) as staging:
        if pth:
            write_pth(staging, weights.state)
        else:
            write_folder(staging, weights, model, names)
        difference = self_check(weights, model, expected, staging)
    say(f"{weights.source}: {summary(model)}")
    say(
        f"{config.target}: read back, every weight is the same, and so are the outputs on random "
        f"input (largest difference {difference:g})"
    )
    if pth:
        vit = model.encoder
        say(
            f"A .pth states neither heads nor clips: num_heads {vit.num_heads}, num_frames "
            f"{vit.num_frames}, input_size {vit.image_size}"
            + (f", decoder_num_heads {model.decoder.num_heads}" if model.decoder else "")
        )
    return 0


# --- what goes in ---------------------------------------------------------------------------------


def check_target(target: Path) -> None:
    """Refuse what exists, places below a file, and names of formats that are not written.

    Raises:
        InputError: any of these.
    """
    if target.exists() or target.is_symlink():
        raise InputError(f"TARGET {target} exists: remove it, or give another name")
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"TARGET {target}: {above} is not a folder")
    if target.suffix in OTHER_FILES:
        raise InputError(
            f"TARGET {target}: a name ending in .pth becomes an official checkpoint, one without "
            f"an ending a folder; {target.suffix} files are not written"
        )


def read_source(source: Path) -> Weights:
    """Read a file, a model folder, or a run directory.

    Raises:
        InputError: it is absent, holds no weights, or none of a VideoMAE.
    """
    if not source.exists():
        raise InputError(f"SOURCE {source} does not exist (names of the hub are not fetched)")
    found = find_weights(source, None)
    if found is None:
        raise InputError(
            f"SOURCE {source} holds no weights: expected model.safetensors in it or in its model/, "
            "or a single .pth"
        )
    return read_weights(found)


def class_names(model: Description, file: Path | None) -> tuple[str, ...]:
    """Names of the classes: the file's, the source's, Kinetics-400's, or numbers.

    Raises:
        InputError: there are not as many names as classes.
    """
    if model.num_classes is None:
        if file is not None:
            raise InputError(f"--label_names {file}: a pretraining model has no classes")
        return ()
    if file is None and model.label_names:
        if len(model.label_names) != model.num_classes:
            raise InputError(
                f"SOURCE's config.json names {len(model.label_names)} classes, its head has "
                f"{model.num_classes}: give --label_names"
            )
        return model.label_names
    names = read_names(file, model.num_classes)
    return names or tuple(f"class {label}" for label in range(model.num_classes))


def refuse_what_a_pth_cannot_hold(model: Description, config: ConvertConfig) -> None:
    """Refuse to lose what the official code would not find in a `.pth`.

    Raises:
        InputError: class names, or interpolated positions.
    """
    if config.label_names is not None:
        raise InputError(f"--label_names: TARGET {config.target} is a .pth and holds no names")
    if model.encoder.pos_grid is not None:
        raise InputError(
            f"{config.source} has interpolated positions (pos_grid {model.encoder.pos_grid}): a "
            ".pth cannot say so, and the official code would compute others and give other outputs"
        )


# --- what comes out -------------------------------------------------------------------------------


def is_pth(target: Path) -> bool:
    """Whether the name asks for an official checkpoint."""
    return target.suffix == ".pth"


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield another name beside the target, which it takes when the block succeeds.

    Raises:
        StorageError: the disk is full, read-only or failing; nothing is left.
    """
    staging = target.with_name(f".{target.name}.unchecked")
    with disk_errors(f"writing {target}"):
        _remove(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield staging
            os.rename(staging, target)
            fsync_folder(target.parent)
        finally:
            _remove(staging)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_pth(file: Path, state: dict[str, Tensor]) -> None:
    """Write an official checkpoint: plain tensors, loadable with weights_only=True."""
    # Clones: a view would take its whole storage with it.
    plain = {key: value.clone() for key, value in to_official(state).items()}
    with open(file, "wb") as stream:  # torch's own writer hides which error the disk gave
        torch.save({"model": plain}, stream)
    fsync_file(file)


def write_folder(folder: Path, weights: Weights, model: Description, names: Sequence[str]) -> None:
    """Write a model folder in Hugging Face layout, with a card."""
    config = hf_config(
        model.encoder,
        decoder=model.decoder,
        norm_pix_loss=model.norm_pix_loss,
        label_names=names,
    )
    card = (
        f"# VideoMAE, converted\n\nConverted from `{Path(weights.source).name}` by kinetics400 "
        f"{__version__}: {summary(model)}.\n\n"
        "Input: RGB frames, ImageNet mean and standard deviation (`preprocessor_config.json`).\n"
    )
    save_pretrained(folder, state=weights.state, config=config, card=card)


def summary(model: Description) -> str:
    """One line on a model."""
    vit = model.encoder
    kind = f"classifier of {model.num_classes} classes"
    if model.decoder is not None:
        decoder = model.decoder
        kind = (
            f"pretraining model, decoder {decoder.embed_dim} wide, {decoder.depth} deep, "
            f"{decoder.num_heads} heads"
        )
    return (
        f"{kind}; encoder {vit.embed_dim} wide, {vit.depth} deep, {vit.num_heads} heads; tubelets "
        f"{vit.tubelet_size} x {vit.patch_size} x {vit.patch_size}; {vit.num_frames} frames of "
        f"{vit.image_size} pixels"
    )


# --- self-check -----------------------------------------------------------------------------------


def told_of(written: Weights, model: Description) -> Told:
    """What the user would have to say of the file just written; a folder states its own."""
    decoder = model.decoder
    if written.config is None:
        return Told(
            num_heads=model.encoder.num_heads,
            decoder_num_heads=None if decoder is None else decoder.num_heads,
            num_frames=model.encoder.num_frames,
            input_size=model.encoder.image_size,
        )
    # Said again, because a number of heads that is not the published one must be.
    heads = written.config["num_attention_heads"]
    decoder_heads = written.config.get("decoder_num_attention_heads")
    return Told(num_heads=heads, decoder_num_heads=decoder_heads)


def self_check(weights: Weights, model: Description, expected: Tensor, written: Path) -> float:
    """Read back what was written and compare weights, then outputs; return their difference.

    Raises:
        Failure: anything differs.
    """
    again = read_weights(written)
    theirs = weights.state
    changed = [
        key
        for key in theirs.keys() | again.state.keys()
        if key not in theirs or key not in again.state or not _same(theirs[key], again.state[key])
    ]
    if changed:
        raise Failure(f"the weights read back are not those written: {sorted(changed)[:5]}")
    told = told_of(again, model)
    as_read = describe(again.state, again.config, again.source, told)
    difference = (run_model(as_read, again) - expected).abs().max().item()
    if difference != 0:  # also NaN, which no model should give
        raise Failure(
            f"the outputs of what was written differ by {difference:g} on random input; nothing "
            "was kept"
        )
    return difference


def _same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


@torch.no_grad()
def run_model(model: Description, weights: Weights) -> Tensor:
    """Outputs on random input: logits, or the pixels of nine tenths of the tokens.

    Raises:
        InputError: the weights are not those of the model described.
    """
    vit = model.encoder
    generator = torch.Generator().manual_seed(0)
    shape = (1, vit.in_channels, vit.num_frames, vit.image_size, vit.image_size)
    clips = torch.randn(shape, generator=generator)
    if model.decoder is None:
        assert model.num_classes is not None
        classifier = Classification(vit, model.num_classes)
        load_pretrained(classifier, weights)
        return classifier.eval().predict(clips)
    try:
        method = VideoMAE(vit, model.decoder)
    except ValueError as error:
        raise InputError(f"{weights.source}: these sizes make no model: {error}") from error
    load_pretrained(method, weights)
    tokens = torch.arange(vit.num_tokens)
    keep, mask = tokens[tokens % 10 == 0][None], tokens[tokens % 10 != 0][None]
    return method.eval().reconstruct(clips, keep, mask)
