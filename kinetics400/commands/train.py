"""`python -m train`: finetune a video classifier and evaluate it."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from lightning.fabric import Fabric

from kinetics400.commands.augmentation import (
    check_augmentation,
    device_augment,
    on_whole_frames,
)
from kinetics400.commands.clips import check_clips, finetuning_sampler, test_sampler
from kinetics400.commands.evaluate import parse_views, score
from kinetics400.commands.evaluation_report import outcome, summarize
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
from kinetics400.commands.starting_weights import load_encoder
from kinetics400.commands.telling import model_card, say
from kinetics400.config.defaults import FINETUNING
from kinetics400.config.finetuning import TrainConfig
from kinetics400.config.parse import parse
from kinetics400.data import sampling
from kinetics400.data.dataset import ClipDataset
from kinetics400.data.library import PUBLISHED_COUNTS
from kinetics400.data.listing import read_names
from kinetics400.data.storage import write_atomic
from kinetics400.methods.base import Method
from kinetics400.methods.classification import Classification
from kinetics400.models.architectures import model_size
from kinetics400.models.huggingface import hf_config, save_pretrained

BETAS = (0.9, 0.999)  # MCG-NJU/VideoMAE run_class_finetuning.py
CROP_RATIO = (0.75, 4 / 3)


def main(argv: Sequence[str]) -> int:
    """Run the command; see kinetics400.__main__ for exit codes."""
    config = parse(
        TrainConfig,
        argv,
        prog="python -m train",
        description="Finetune a video classifier on the preprocessed dataset and evaluate it.",
    )
    run = prepare(config)
    if config.run.dry_run:
        print(plan_as_json(run))
        return 0
    run.refuse_what_is_missing()
    finetune(run)
    return 0


# --- preparing ------------------------------------------------------------------------------------


def prepare(config: TrainConfig) -> Run:
    """Check the flags and build everything but the data workers.

    Raises:
        InputError: what is wrong, all of it.
    """
    problems = Problems()
    check_shared(config, problems)
    check_clips(config.clips, problems)
    check_own(config, problems)
    size = problems.catch(lambda: model_size(config.model.model_name))
    problems.raise_any()
    published = FINETUNING[size]
    flags = config.classifier
    drop_path = published.drop_path_rate if flags.drop_path_rate is None else flags.drop_path_rate
    dropout = published.head_dropout if flags.head_dropout is None else flags.head_dropout
    vit = problems.catch(lambda: vit_config(config.model, drop_path))
    problems.raise_any()
    torch.manual_seed(config.run.seed)
    with meta_device(config):
        method = Classification(
            vit,
            flags.num_classes,
            label_smoothing=flags.label_smoothing,
            head_dropout=dropout,
            head_init_scale=flags.head_init_scale,
            dtype=input_dtype(config.device),
        )
    missing = missing_devices(config.device)
    missing += missing_memory(config, math.prod(parse_views(config.evaluation.views)))
    if config.pretrained.pretrained:
        load_encoder(method, config.pretrained, missing, dry_run=config.run.dry_run)
    train_videos = open_table(config, "train", config.data.train_list, flags.num_classes, missing)
    val_videos = open_table(config, "val", config.data.val_list, flags.num_classes, missing)
    num_videos = PUBLISHED_COUNTS["train"] if train_videos is None else len(train_videos)
    return Run(
        config=config,
        method=method,
        groups=method.param_groups(config.optimization.weight_decay, flags.layer_decay),
        betas=BETAS,
        schedule=make_schedule(config, published, num_videos),
        train_videos=train_videos,
        val_videos=val_videos,
        tokens_visible=vit.num_tokens,
        tokens_total=vit.num_tokens,
        ema_decay=config.optimization.ema_decay,
        missing=missing,
    )


def check_own(config: TrainConfig, problems: Problems) -> None:
    """Check the flags that only finetuning has."""
    flags = config.classifier
    shares = {
        "label_smoothing": flags.label_smoothing,
        "drop_path_rate": flags.drop_path_rate,
        "head_dropout": flags.head_dropout,
    }
    for name, share in shares.items():
        problems.require(share is None or 0 <= share < 1, f"--{name} {share} must lie in [0, 1)")
    problems.require(flags.num_classes >= 1, f"--num_classes {flags.num_classes} must be positive")
    problems.require(
        0 < flags.layer_decay <= 1, f"--layer_decay {flags.layer_decay} must lie in (0, 1]"
    )
    decay = config.optimization.ema_decay
    problems.require(
        decay is None or 0 < decay < 1, f"--ema_decay {decay} must lie between 0 and 1"
    )
    clips = config.optimization.batch_size * config.data.num_sample
    check_augmentation(config.augmentation, clips, problems)
    problems.require(
        config.evaluation.eval_frequency >= 1,
        f"--eval_frequency {config.evaluation.eval_frequency} must be at least 1",
    )
    weights = config.pretrained
    problems.require(
        weights.pretrained or not (weights.pretrained_dir or weights.pretrained_name),
        "--pretrained_dir and --pretrained_name need --pretrained",
    )
    problems.require(
        weights.pretrained or not (weights.pos_embed or weights.resize_patch_embed),
        "--pos_embed and --resize_patch_embed need --pretrained",
    )
    problems.catch(lambda: parse_views(config.evaluation.views))
    problems.catch(lambda: class_names(config))


def class_names(config: TrainConfig) -> tuple[str, ...]:
    """Names of the classes, by label.

    Raises:
        InputError: the file cannot be read or has another number of names.
    """
    flags = config.classifier
    names = read_names(flags.label_names, flags.num_classes)
    return names or tuple(f"class {label}" for label in range(flags.num_classes))


# --- running --------------------------------------------------------------------------------------


def finetune(run: Run) -> None:
    """Train to the end, leave `model/`, evaluate, leave `results.json`."""
    config, method = run.config, run.method
    assert isinstance(config, TrainConfig) and isinstance(method, Classification)
    assert run.train_videos is not None and run.val_videos is not None
    save_dir, model, data = config.saving.save_dir, config.model, config.data
    results_file = save_dir / "results.json"
    checkpoint = open_run(run)
    done = checkpoint is not None and checkpoint.step == run.schedule.total_steps
    if done and results_file.exists():
        results = json.loads(results_file.read_text(encoding="utf-8"))
        say(f"{save_dir} is finished: {outcome(results)}")
        return
    sample_frames, num_frame_draws = finetuning_sampler(
        config.clips, model.num_frames, exact=data.exact_frames
    )
    guard = VideoGuard(save_dir, num_workers=data.n_worker, timeout=data.decode_timeout)
    dataset = ClipDataset(
        run.train_videos,
        sample_frames=sample_frames,
        num_frame_draws=num_frame_draws,
        num_frames=model.num_frames,
        sample_box=partial(_box, config.augmentation.crop_scale),
        num_box_draws=sampling.RESIZED_CROP_DRAWS,
        size=model.input_size,
        antialias=False,  # the published crop is scaled with F.interpolate
        seed=config.run.seed,
        num_sample=data.num_sample,
        augment_frames=on_whole_frames(config.augmentation),
        beats=guard.beats(),
        quarantined=guard.quarantined("train", run.train_videos),
    )

    scored = partial(
        score,
        videos=run.val_videos,
        segment_frames=test_sampler(config.clips, model.num_frames),
        clips_per_forward=config.optimization.batch_size,
        num_workers=data.n_worker,
        merge=config.evaluation.merge,
        guard=guard,
    )

    def centre_view(fabric: Fabric, method: Method) -> Mapping[str, float]:
        result = scored(fabric, method, views=(1, 1))
        return {"val_top1_acc": result.top1_acc, "val_top5_acc": result.top5_acc}

    def finish(fabric: Fabric) -> None:
        protocol = config.evaluation
        result = scored(fabric, method, views=parse_views(protocol.views))
        if not fabric.is_global_zero:
            return
        results = summarize(result, views=protocol.views, merge=protocol.merge, clips=config.clips)
        save_pretrained(
            save_dir / "model",
            state=method.state_dict(),
            config=hf_config(method.encoder.config, label_names=class_names(config)),
            card=model_card("VideoMAE, finetuned", run, f"{outcome(results)}."),
        )
        write_atomic(results_file, json.dumps(results, indent=2) + "\n")
        say(f"{outcome(results)}; the model lies in {save_dir / 'model'}")

    train(
        run,
        dataset,
        guard=guard,
        augment=device_augment(config.augmentation, method.num_classes),
        checkpoint=checkpoint,
        evaluate=centre_view,
        finish=finish,
    )


def _box(scale: tuple[float, float], height: int, width: int, u: Sequence[float]) -> sampling.Box:
    return sampling.random_resized_box(height, width, scale, CROP_RATIO, u)
