"""`python -m pretraining`: pretrain a video model without labels."""

from collections.abc import Sequence
from functools import partial

import torch
from lightning.fabric import Fabric

from kinetics400.augment.pipeline import training_augment
from kinetics400.commands.clips import check_clips, pretraining_sampler
from kinetics400.commands.guard import VideoGuard
from kinetics400.commands.plan import (
    Problems,
    Run,
    check_shared,
    input_dtype,
    make_schedule,
    missing_devices,
    missing_memory,
    open_table,
    plan_as_json,
    vit_config,
)
from kinetics400.commands.session import meta_device, open_run, train
from kinetics400.commands.telling import model_card, say
from kinetics400.config.defaults import PRETRAINING
from kinetics400.config.parse import parse
from kinetics400.config.pretraining import PretrainConfig
from kinetics400.data import sampling
from kinetics400.data.dataset import ClipDataset
from kinetics400.data.library import PUBLISHED_COUNTS
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.architectures import ARCHITECTURES, model_size
from kinetics400.models.huggingface import hf_config, save_pretrained

BETAS = (0.9, 0.95)  # MCG-NJU/VideoMAE scripts/kinetics/*/pretrain.sh
# Labels are not used, so any number will do: the list may be another dataset's.
ANY_LABEL = 2**31


def main(argv: Sequence[str]) -> int:
    """Run the command; see kinetics400.__main__ for exit codes."""
    config = parse(
        PretrainConfig,
        argv,
        prog="python -m pretraining",
        description="Pretrain a video model on the preprocessed dataset (VideoMAE).",
    )
    run = prepare(config)
    if config.run.dry_run:
        print(plan_as_json(run))
        return 0
    run.refuse_what_is_missing()
    pretrain(run)
    return 0


def prepare(config: PretrainConfig) -> Run:
    """Check the flags and build everything but the data workers.

    Raises:
        InputError: what is wrong, all of it.
    """
    problems = Problems()
    check_shared(config, problems)
    check_clips(config.clips, problems)
    ratio = config.masking.mask_ratio
    problems.require(0 < ratio < 1, f"--mask_ratio {ratio} must lie between 0 and 1")
    flip = config.augmentation.flip
    problems.require(0 <= flip <= 1, f"--flip {flip} must lie in [0, 1]")
    vit = problems.catch(lambda: vit_config(config.model))
    problems.raise_any()
    torch.manual_seed(config.run.seed)
    size = model_size(config.model.model_name)
    with meta_device(config):
        method = problems.catch(
            lambda: VideoMAE(
                vit,
                ARCHITECTURES[size].decoder,
                mask_ratio=ratio,
                norm_pix_loss=config.masking.norm_pix_loss,
                dtype=input_dtype(config.device),
            )
        )
    problems.raise_any()
    missing = missing_devices(config.device) + missing_memory(config)
    table = open_table(config, "train", config.data.train_list, ANY_LABEL, missing)
    val_table = None
    if config.run.dry_run:
        val_table = open_table(config, "val", config.data.val_list, ANY_LABEL, [])
    num_videos = PUBLISHED_COUNTS["train"] if table is None else len(table)
    return Run(
        config=config,
        method=method,
        groups=method.param_groups(config.optimization.weight_decay),
        betas=BETAS,
        schedule=make_schedule(config, PRETRAINING[size], num_videos),
        train_videos=table,
        val_videos=val_table,
        tokens_visible=method.num_visible,
        tokens_total=vit.num_tokens,
        optimizer=config.optimization.optimizer,
        missing=missing,
    )


def pretrain(run: Run) -> None:
    """Train to the end and leave `model/`; a finished run says so and does nothing."""
    config, method = run.config, run.method
    assert isinstance(config, PretrainConfig) and isinstance(method, VideoMAE)
    assert run.train_videos is not None
    model_dir = config.saving.save_dir / "model"
    checkpoint = open_run(run)
    done = checkpoint is not None and checkpoint.step == run.schedule.total_steps
    if done and model_dir.exists():
        say(f"{config.saving.save_dir} is finished: the model lies in {model_dir}")
        return
    size, model, data = config.model.input_size, config.model, config.data
    guard = VideoGuard(
        config.saving.save_dir, num_workers=data.n_worker, timeout=data.decode_timeout
    )
    dataset = ClipDataset(
        run.train_videos,
        sample_frames=pretraining_sampler(config.clips, model.num_frames, exact=data.exact_frames),
        num_frame_draws=1,
        num_frames=model.num_frames,
        sample_box=partial(_box, size),
        num_box_draws=2,
        size=size,
        antialias=True,  # the published crop is scaled with PIL
        seed=config.run.seed,
        num_sample=data.num_sample,
        beats=guard.beats(),
        quarantined=guard.quarantined("train", run.train_videos),
    )

    def finish(fabric: Fabric) -> None:
        if not fabric.is_global_zero:
            return
        save_pretrained(
            model_dir,
            state=method.state_dict(),
            config=hf_config(
                method.encoder.config,
                decoder=method.decoder_config,
                norm_pix_loss=method.norm_pix_loss,
            ),
            card=model_card("VideoMAE, pretrained", run, "Finetune it with `python -m train`."),
        )
        say(f"the pretrained model lies in {model_dir}")

    train(
        run,
        dataset,
        guard=guard,
        augment=training_augment(flip_probability=config.augmentation.flip),
        checkpoint=checkpoint,
        finish=finish,
    )


def _box(size: int, height: int, width: int, u: Sequence[float]) -> sampling.Box:
    return sampling.multi_scale_box(height, width, size, u)
