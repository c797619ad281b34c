"""Which weights finetuning starts from: found, read, checked, loaded."""

from dataclasses import replace

from kinetics400.commands.telling import say
from kinetics400.config.finetuning import PretrainedFlags
from kinetics400.errors import MissingInput
from kinetics400.methods.classification import Classification
from kinetics400.models.pretrained import (
    Weights,
    check_architecture,
    download_weights,
    find_weights,
    load_pretrained,
    read_weights,
)
from kinetics400.models.resize import starting_grid, with_kernel

# What a pretraining checkpoint has and a classifier does not: the decoder, and the encoder's norm,
# which the classifier replaces by its own after pooling.
ONLY_IN_PRETRAINING = ("decoder.", "encoder_to_decoder.", "mask_token", "encoder.norm.")
ONLY_IN_CLASSIFIER = ("fc_norm.", "head.")


def load_encoder(
    method: Classification, flags: PretrainedFlags, missing: list[str], *, dry_run: bool
) -> None:
    """Start from pretrained weights; those not on this machine go to `missing` in a dry run.

    Raises:
        InputError: they are nowhere, damaged, or of another architecture.
    """
    try:
        weights = _weights(flags, download=not dry_run)
    except MissingInput as error:
        missing.append(f"weights: {error}")
        return
    weights = _adapted(method, weights, flags)
    classes = weights.state.get("head.weight")
    if classes is not None and len(classes) != method.num_classes:
        say(f"the head of {weights.source} has {len(classes)} classes: starting with a fresh one")
        state = {key: v for key, v in weights.state.items() if not key.startswith("head.")}
        weights = replace(weights, state=state)
    load_pretrained(method, weights, may_miss=ONLY_IN_CLASSIFIER, may_drop=ONLY_IN_PRETRAINING)


def _adapted(method: Classification, weights: Weights, flags: PretrainedFlags) -> Weights:
    """Take positions as asked for; return the weights, resized if asked for.

    Raises:
        InputError: they are of another architecture, or of other clips and nothing was asked for.
    """
    config = method.encoder.config
    allowed = () if flags.pos_embed is None else ("image_size", "num_frames")
    kernel = ("patch_size", "tubelet_size") if flags.resize_patch_embed else ()
    check_architecture(weights, config, may_differ=(*allowed, *kernel))
    pos_grid = starting_grid(weights, config, flags.pos_embed)
    if pos_grid is not None:
        grids = (" x ".join(map(str, grid)) for grid in (pos_grid, config.grid))
        say("positions: those of {} tokens, interpolated to {}".format(*grids))
        method.encoder.set_pos_grid(pos_grid)
    return with_kernel(weights, config) if flags.resize_patch_embed else weights


def _weights(flags: PretrainedFlags, *, download: bool) -> Weights:
    found = find_weights(flags.pretrained_dir, flags.pretrained_name)
    if found is None and flags.pretrained_dir is not None:
        inner = f" (also below it as {flags.pretrained_name})" if flags.pretrained_name else ""
        raise MissingInput(
            f"--pretrained_dir {flags.pretrained_dir} holds no weights{inner}: expected "
            "model.safetensors in it or in its model/, or a single .pth"
        )
    if found is None:
        assert flags.pretrained_name is not None
        if not download:
            raise MissingInput(
                f"--pretrained_name {flags.pretrained_name} is not on this machine; a run would "
                "fetch it from the hub"
            )
        found = download_weights(flags.pretrained_name)
    return read_weights(found)
