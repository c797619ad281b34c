"""What a run does, pretraining or finetuning: launch, train, leave a model."""

import os
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy

from kinetics400.augment.pipeline import Augment
from kinetics400.commands.bad_videos import BadVideos, format_bad_videos
from kinetics400.commands.guard import VideoGuard
from kinetics400.commands.plan import (
    PRECISION_DTYPES,
    Run,
    RunConfig,
    Schedule,
    accelerator,
    is_compiled,
    num_ranks,
    strategy,
)
from kinetics400.commands.saving import Saver
from kinetics400.commands.telling import describe, mention_originals, say
from kinetics400.config.common import DeviceFlags
from kinetics400.config.finetuning import TrainConfig
from kinetics400.config.parse import to_recipe
from kinetics400.data import keys
from kinetics400.data.dataset import ClipDataset
from kinetics400.data.loader import Layout, on_device, train_loader
from kinetics400.data.orphans import die_with_parent
from kinetics400.data.storage import write_atomic
from kinetics400.engine.agreement import Agreement
from kinetics400.engine.average import WeightAverage
from kinetics400.engine.checkpoint import (
    DAMAGED,
    Checkpoint,
    check_agreement,
    find_checkpoint,
    load_checkpoint,
    made_otherwise,
    read_checkpoint,
    refuse_later,
    remove_unfinished,
    set_aside_later,
    versions,
)
from kinetics400.engine.determinism import deterministic
from kinetics400.engine.drift import DriftCheck, checksum
from kinetics400.engine.generators import seed_generators
from kinetics400.engine.interruption import Interruption
from kinetics400.engine.lock import locked
from kinetics400.engine.log import RunLog, is_evaluated
from kinetics400.engine.matrix_rate import matrix_rate
from kinetics400.engine.optim import build_optimizer
from kinetics400.engine.ranks import fail_fast, leave, meet_again
from kinetics400.engine.restarts import require_progress
from kinetics400.engine.sharding import (
    ShardedStrategy,
    collect,
    collected,
    distribute,
    with_parameters,
)
from kinetics400.engine.trainer import Plan, fit
from kinetics400.engine.updates import require_finite_weights
from kinetics400.errors import Failure, InputError
from kinetics400.methods.base import Method
from kinetics400.models.vit import checkpoint_blocks, transformer_blocks

RANK_0 = "KINETICS400_RANK_0"  # where its children find its process id
START_SECONDS = 300  # in which all processes must have come: their machines may be slow to import


def meta_device(config: RunConfig) -> AbstractContextManager[Any]:
    """Where to build the model: a dry run needs its shapes only."""
    return torch.device("meta") if config.run.dry_run else nullcontext()


def open_run(run: Run) -> Checkpoint | None:
    """The checkpoint to continue from, according to `--resume`.

    Raises:
        InputError: `never` and the folder is not empty, a path and the folder holds later
            checkpoints, or the checkpoint is damaged, absent or of a run with other settings.
    """
    save_dir, resume = run.config.saving.save_dir, run.config.run.resume
    if save_dir.exists() and not save_dir.is_dir():
        raise InputError(f"--save_dir {save_dir} is not a folder")
    if resume == "never":
        if save_dir.exists() and any(save_dir.iterdir()):
            raise InputError(f"--resume never: {save_dir} is not empty; choose another --save_dir")
        return None
    if resume == "auto":
        checkpoint, passed_over = find_checkpoint(save_dir / "checkpoints")
        if checkpoint is not None and passed_over:
            say(
                f"WARNING: {passed_over}. Continuing from {checkpoint.folder.name} instead; the "
                f"damaged one is renamed to {DAMAGED}…"
            )
    elif (Path(resume) / "manifest.json").is_file():
        checkpoint = read_checkpoint(Path(resume))
        refuse_later(save_dir / "checkpoints", checkpoint.step)
    else:
        raise InputError(
            f"--resume {resume} is not a complete checkpoint (nor auto or never): give "
            "<save_dir>/checkpoints/step-..."
        )
    if checkpoint is not None:
        check_agreement(checkpoint, run.agreed())
    return checkpoint


def is_torchrun(environment: Mapping[str, str]) -> bool:
    """Whether torchrun has started this process."""
    return "LOCAL_WORLD_SIZE" in environment


def check_launcher(device: DeviceFlags, environment: Mapping[str, str]) -> None:
    """Compare what has started this process with the flags.

    Raises:
        InputError: they contradict each other.
    """
    if is_torchrun(environment):
        here, everywhere = (int(environment[f"{of}WORLD_SIZE"]) for of in ("LOCAL_", ""))
        if (here, everywhere) != (device.n_device, num_ranks(device)):
            raise InputError(
                f"torchrun has started {here} processes here and {everywhere} in all, --n_device "
                f"says {device.n_device} and --n_node {device.n_node}: give both the same numbers "
                "(--nproc_per_node, --nnodes), or leave torchrun out: it is not needed on one "
                "machine"
            )
    elif device.n_node > 1:
        raise InputError(
            f"--n_node {device.n_node}: start the command with torchrun on each machine "
            "(examples/cluster/train.sbatch, docs/scaling.md)"
        )
    elif (tasks := int(environment.get("SLURM_STEP_NUM_TASKS") or 1)) > 1:
        raise InputError(
            f"srun has started {tasks} tasks of this command, which starts the processes of "
            "--n_device itself: give srun --ntasks-per-node 1, and torchrun for several machines "
            "(examples/cluster/train.sbatch)"
        )


def meet(fabric: Fabric, environment: MutableMapping[str, str]) -> None:
    """Start the other processes of this machine, unless torchrun has, and join them.

    Raises:
        InputError: they cannot meet.
    """
    if not is_torchrun(environment):
        parent = int(environment.get(RANK_0, os.getpid()))
        if "LOCAL_RANK" not in environment:
            environment[RANK_0] = str(os.getpid())
        elif parent != os.getpid():  # started by rank 0, which may have ended already
            die_with_parent(parent)
    try:
        fabric.launch()
    except torch.distributed.DistNetworkError as error:
        address, port = (environment.get(f"MASTER_{part}") for part in ("ADDR", "PORT"))
        raise InputError(
            f"the processes cannot meet at {address}:{port} ({str(error).splitlines()[0]}). If "
            "another run has that port, give MASTER_PORT another one, or do not set it"
        ) from error


def launch(device: DeviceFlags) -> Fabric:
    """Start the processes and pick the devices.

    Raises:
        InputError: a launcher has started other processes than the flags say.
    """
    check_launcher(device, os.environ)
    on = accelerator(device.accelerator)
    patience = max(START_SECONDS, device.rank_timeout)
    meet_again(os.environ, backend="nccl" if on == "cuda" else "gloo", timeout=patience)
    strategies: dict[str, DDPStrategy | str] = {
        "ddp": DDPStrategy(gradient_as_bucket_view=True, timeout=timedelta(seconds=patience)),
        "fsdp": ShardedStrategy(timeout=timedelta(seconds=patience)),
    }
    fabric = Fabric(
        accelerator=on,
        devices=device.n_device,
        num_nodes=device.n_node,
        strategy=strategies[strategy(device)] if num_ranks(device) > 1 else "auto",
        precision=device.precision,
        # Fabric itself would take a SLURM job for tasks that SLURM has started.
        plugins=[TorchElasticEnvironment() if is_torchrun(os.environ) else LightningEnvironment()],
    )
    meet(fabric, environment=os.environ)
    fail_fast(fabric, timeout=device.rank_timeout)
    return fabric


def train(
    run: Run,
    dataset: ClipDataset,
    *,
    guard: VideoGuard,
    augment: Augment,
    checkpoint: Checkpoint | None,
    finish: Callable[[Fabric], None],
    evaluate: Callable[[Fabric, Method], Mapping[str, float]] | None = None,
) -> None:
    """Launch, train to the end (or find it done), and finish with the method trained.

    With an average of the weights (`run.ema_decay`) that is what is evaluated and what is left.

    Raises:
        DataError: too many videos cannot be read.
        Failure: the loss is not finite too often, ranks have drifted apart, or restarts come no
            further.
        InputError: another process writes to the same folder, or ranks were started differently.
        StorageError: checkpoints cannot be written.
        Stopped: a signal has come, or a video has hung or crashed its decoder.
    """
    with deterministic(run.config.run.deterministic):
        fabric = launch(run.config.device)
        _run(fabric, run, dataset, guard, augment, checkpoint, finish, evaluate)


def _run(
    fabric: Fabric,
    run: Run,
    dataset: ClipDataset,
    guard: VideoGuard,
    augment: Augment,
    checkpoint: Checkpoint | None,
    finish: Callable[[Fabric], None],
    evaluate: Callable[[Fabric, Method], Mapping[str, float]] | None,
) -> None:
    save_dir = run.config.saving.save_dir
    if fabric.is_global_zero:
        save_dir.mkdir(parents=True, exist_ok=True)
    with locked(save_dir) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            _prepare_folder(run, checkpoint)
        fabric.barrier()
        try:
            _train(fabric, run, dataset, guard, augment, checkpoint, evaluate)
            has_failed = False
        except Failure:  # on all ranks alike
            if fabric.is_global_zero:
                raise
            has_failed = True
        if has_failed:  # out here the error holds no loader, whose workers would be waited for
            # Rank 0 speaks for all. An error here would have the launcher kill it first.
            leave(0)
        fabric.barrier()
        if fabric.is_global_zero and (told := format_bad_videos(run)):
            say(told)
        finish(fabric)
        fabric.barrier()


def _prepare_folder(run: Run, checkpoint: Checkpoint | None) -> None:
    save_dir = run.config.saving.save_dir
    require_progress(save_dir, 0 if checkpoint is None else checkpoint.step, os.environ)
    remove_unfinished(save_dir / "checkpoints")
    if checkpoint is not None:
        set_aside_later(save_dir / "checkpoints", checkpoint.step)
    write_atomic(save_dir / "config.yaml", to_recipe(run.config))
    mention_originals(run)


def _train(
    fabric: Fabric,
    run: Run,
    dataset: ClipDataset,
    guard: VideoGuard,
    augment: Augment,
    checkpoint: Checkpoint | None,
    evaluate: Callable[[Fabric, Method], Mapping[str, float]] | None,
) -> None:
    config, schedule = run.config, run.schedule
    flags, save_dir = config.optimization, config.saving.save_dir
    if config.device.activation_checkpointing == "blocks":
        checkpoint_blocks(run.method)
    agreement = Agreement(fabric, timeout=config.device.rank_timeout)
    _require_agreement(agreement, run, checkpoint)
    start_step = checkpoint.step if checkpoint is not None else 0
    method = distribute(fabric, run.method, transformer_blocks)
    groups = with_parameters(run.groups, method)
    # The fused kernel unscales fp16 gradients itself, and then they cannot be clipped before.
    fused = not (config.device.precision == "16-mixed" and flags.clip_grad is not None)
    optimizer = build_optimizer(run.optimizer, groups, betas=run.betas, fused=fused)
    average = None if run.ema_decay is None else WeightAverage(method, run.ema_decay)
    # Dropout and drop path differ between ranks; what belongs to a sample comes from its key.
    seed_generators(int(keys.combine(config.run.seed, fabric.global_rank)))
    means: Mapping[str, torch.Tensor] = {}
    if checkpoint is not None:
        if changed := made_otherwise(checkpoint, fabric.device):
            say(
                f"continuing with {', '.join(changed)}: the last bits may differ from those of an "
                "uninterrupted run"
            )
        means = load_checkpoint(
            fabric, checkpoint, method=method, optimizer=optimizer, average=average
        )
    drift = DriftCheck(agreement, method)
    interruption = Interruption(agreement, save_minutes=config.saving.save_minutes)
    saver = Saver(fabric, run, method, optimizer, average, agreement)
    saver.require_space()

    def save(step: int, means: Mapping[str, torch.Tensor]) -> None:
        drift.now(step)
        require_finite_weights(method, step)  # of all ranks alike
        saver(step, means)
        interruption.saved()

    def scored(step: int) -> Mapping[str, float]:
        assert evaluate is not None
        with (
            interruption.impatient(),
            average.applied() if average else nullcontext(),
            collected(method, run.method, fabric.device),
        ):
            values = evaluate(fabric, run.method)
        saver.evaluated(step, values["val_top1_acc"])
        return values

    loader = train_loader(
        dataset,
        Layout(
            batch_size=flags.batch_size,
            accumulate=flags.accumulate,
            world_size=fabric.world_size,
            rank=fabric.global_rank,
        ),
        start_step=start_step,
        total_steps=schedule.total_steps,
        num_workers=config.data.n_worker,
        pin_memory=fabric.device.type == "cuda",
    )
    log_dir = save_dir if fabric.is_global_zero else None
    evaluated = is_evaluated(save_dir / "metrics.jsonl", start_step)
    fabric.barrier()  # rank 0 is about to rewrite that file
    with (
        RunLog(
            log_dir, total_steps=schedule.total_steps, start_step=start_step, title=save_dir.name
        ) as log,
        interruption.listening(),
        guard.watching(loader, dataset, "train") as batches,
    ):
        describe(log, run, start_step)
        bad_videos = BadVideos(agreement, run, log)

        def check(step: int) -> None:
            bad_videos.check(step)
            drift.now_and_then(step + 1)

        fit(
            fabric,
            method,
            optimizer,
            on_device(batches, fabric.device),
            augment=augment,
            plan=_plan(config, schedule),
            log=log,
            start_step=start_step,
            start_means=means,
            is_evaluated=evaluated,
            save=save,
            evaluate=None if evaluate is None else scored,
            record=bad_videos.record,
            check=check,
            average=average,
            decide=interruption.decide,
            compiled=is_compiled(config.device),
            mfu_unit=_mfu_unit(fabric, run),
        )
    if average is not None:
        average.apply()
    collect(method, run.method, fabric.device)


def _require_agreement(agreement: Agreement, run: Run, checkpoint: Checkpoint | None) -> None:
    """Make sure that all ranks are about to do the same.

    Raises:
        InputError: they are not; what differs is named.
    """
    flags = run.config.optimization
    facts = {
        **run.agreed(),
        "batch_size": flags.batch_size,
        "accumulate": flags.accumulate,
        "the checkpoint": checkpoint and (checkpoint.folder / "manifest.json").read_text(),
        "the weights": checkpoint is None and checksum(run.method),
        "the versions": versions(),
    }
    if unlike := agreement.disagreements(facts):
        raise InputError(
            f"the processes were started differently from rank 0: {'; '.join(unlike)}. Start all "
            "with the same command, data and weights"
        )


def _mfu_unit(fabric: Fabric, run: Run) -> float:
    """Clips per second at which the model's products would take all that the devices can do."""
    dtype = getattr(torch, PRECISION_DTYPES[run.config.device.precision][0])
    rate = matrix_rate(fabric.device, dtype)
    return fabric.world_size * rate / run.method.training_flops()


def _plan(config: RunConfig, schedule: Schedule) -> Plan:
    return Plan(
        total_steps=schedule.total_steps,
        steps_per_epoch=schedule.steps_per_epoch,
        global_batch_size=schedule.global_batch_size,
        num_sample=config.data.num_sample,
        lr=schedule.lr,
        accumulate=config.optimization.accumulate,
        clip_grad=config.optimization.clip_grad,
        log_every=config.run.log_every,
        save_every=config.saving.save_frequency,
        eval_every=config.evaluation.eval_frequency if isinstance(config, TrainConfig) else 1,
    )
