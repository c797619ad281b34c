"""The faults of the campaign: what is injected by which tests, and the guard that is taken away.

Rows are those of docs/reliability.md. A control is `module:attribute=expression` (see
unguarded/sitecustomize.py): with it the same tests must fail.
"""

from dataclasses import dataclass

CHECKPOINT = "kinetics400.engine.checkpoint"
SESSION = "kinetics400.commands.session"
UNSAFE_SAVE = "kinetics400.commands.saving:save_checkpoint=unsafe.save_checkpoint"


@dataclass(frozen=True)
class Case:
    """One fault."""

    row: str
    name: str
    promise: str
    tests: tuple[str, ...]
    """Below tests/, as pytest takes them."""
    control: str
    """The guard that is taken away."""
    only: str = ""
    """Of `tests` those whose names hold this (pytest's -k)."""
    control_tests: tuple[str, ...] = ()
    """Which tests then must fail; by default all of `tests` together."""


CASES = (
    Case(
        "1", "killed at any instant, 200 times",
        "the last checkpoint loads, at most one interval is lost, the result is bit-equal",
        ("faults/test_checkpoints.py::test_a_run_killed_200_times_loses_at_most_one_interval",),
        f"{CHECKPOINT}:save_checkpoint=unsafe.save_checkpoint",
    ),
    Case(
        "2", "newest checkpoint damaged: 64 flipped bits, 64 truncations",
        "the file is named; an automatic resume takes the one before, an explicit one refuses",
        ("faults/test_checkpoints.py::"
         "test_64_flipped_bits_and_64_truncations_are_all_detected",
         "engine/test_checkpoint.py::"
         "test_a_damaged_one_is_passed_over_once_and_kept_under_another_name"),
        f"{CHECKPOINT}:read_checkpoint=unsafe.read_checkpoint",
    ),
    Case(
        "3", "disk full while saving, at 40 sizes",
        "the last checkpoint is untouched, nothing is left over, the run lives and is told",
        ("faults/test_checkpoints.py::"
         "test_a_disk_that_is_full_at_any_byte_leaves_the_last_one_and_the_run",),
        f"{CHECKPOINT}:save_checkpoint=unsafe.save_checkpoint",
    ),
    Case(
        "3b", "three checkpoints in a row cannot be written",
        "the run goes on twice, told, and stops with code 74 at the third",
        ("commands/test_saving.py",),
        "kinetics400.commands.saving:MOST_FAILURES=1000",
        control_tests=("commands/test_saving.py::"
                       "test_the_third_failure_in_a_row_stops_the_run_with_code_74",),
    ),
    Case(
        "4", "SIGTERM, SIGINT, SIGUSR1 to one rank or to all",
        "saved at that step, exit code 75 within 20 s, continued bit for bit",
        ("commands/test_signals.py",),
        "kinetics400.engine.interruption:SIGNALS=()",
    ),
    Case(
        "4b", "a SLURM job is warned that its time is up; another one fails (stand-ins for SLURM)",
        "saved, queued again, continued without a step lost; what fails is not queued again",
        ("commands/test_cluster_scripts.py",),
        "kinetics400.engine.interruption:SIGNALS=()",
        control_tests=("commands/test_cluster_scripts.py::"
                       "test_a_warned_job_saves_is_queued_again_and_continues",),
    ),
    Case(
        "5", "interrupted = uninterrupted: stops × workers × ranks",
        "losses as hex, every file of the checkpoint, every sample in its order are equal",
        ("faults/test_resume.py",),
        f"{CHECKPOINT}:restore_random_state=lambda state: None",
        control_tests=(
            "faults/test_resume.py::test_a_stopped_run_continues_to_the_last_bit[train-4-0-1]",
        ),
    ),
    Case(
        "5b", "the same, DDP not warmed up, four ranks",
        "sums over ranks keep their order",
        ("faults/test_resume.py::test_a_stopped_run_continues_to_the_last_bit[pretrain-2-1-4]",),
        "kinetics400.engine.trainer:_warm_up=lambda *_: None",
    ),
    Case(
        "5c", "the same, continued at another position",
        "no sample twice, none left out",
        ("faults/test_resume.py::test_a_stopped_run_continues_to_the_last_bit[pretrain-1-0-1]",),
        f"{SESSION}:train_loader=lambda *a, start_step, **k: "
        "original(*a, start_step=start_step + (start_step > 0), **k)",
    ),
    Case(
        "5d", "the same, samples drawn by the worker that happens to load them",
        "a sample is a function of its key",
        ("faults/test_resume.py::test_a_stopped_run_continues_to_the_last_bit[pretrain-1-2-4]",),
        "kinetics400.data.keys:draws=lambda key, *more: original(key + getattr("
        "__import__('torch').utils.data.get_worker_info(), 'id', 0), *more)",
    ),
    Case(
        "5e", "the same, sharded (fsdp), two and four ranks; another strategy at a resume",
        "files of the checkpoint are equal; under another strategy losses within 1e-4",
        ("commands/test_sharded_runs.py", "engine/test_sharding.py"),
        f"{CHECKPOINT}:restore_random_state=lambda state: None",
        control_tests=(
            "commands/test_sharded_runs.py::test_a_sharded_run_continues_to_the_last_bit",
        ),
    ),
    Case(
        "6", "saving at every step",
        "changes nothing in the run",
        ("engine/test_checkpoint.py::test_saving_does_not_disturb_the_generators",),
        f"{CHECKPOINT}:random_state=lambda: (original(), __import__('torch').rand(1))[0]",
    ),
    Case(
        "7", "another number of ranks, the same global batch",
        "the same samples and learning rates; losses within 1e-4",
        ("commands/test_world_sizes.py",),
        "kinetics400.data.keys:sample_key=lambda seed, epoch, slot, repeat=0: original(seed, epoch,"
        " slot + 1000 * int(__import__('os').environ.get('LOCAL_RANK') or 0), repeat)",
    ),
    Case(
        "8", "settings, list, seed or classes changed at a resume",
        "refused with the difference, before the first step",
        ("commands/test_training.py::test_another_setting_is_not_continued",),
        f"{SESSION}:check_agreement=lambda *_: None",
    ),
    Case(
        "9", "two runs in one folder; a lock that a dead process left",
        "the second is refused at once; the dead one's lock is taken over",
        ("engine/test_lock.py",
         "commands/test_signals.py::"
         "test_a_signal_to_the_whole_group_saves_and_another_run_may_not_join"),
        f"{SESSION}:locked=lambda _: nullcontext()",
    ),
    Case(
        "10", "the same step fails at every restart",
        "no third restart without progress; what is saved stays",
        ("commands/test_ranks.py::"
         "test_a_run_that_fails_at_the_same_step_again_and_again_is_not_restarted_for_ever",
         "engine/test_restarts.py"),
        f"{SESSION}:require_progress=lambda *_: None",
    ),
    Case(
        "11", "1,000 altered checkpoints; another schema",
        "refused, or loaded as its manifest says; never a crash, never in silence",
        ("faults/test_checkpoints.py::"
         "test_a_thousand_altered_checkpoints_never_crash_and_never_load_in_silence",
         "engine/test_checkpoint.py::test_another_schema_is_refused"),
        f"{CHECKPOINT}:read_checkpoint=unsafe.read_checkpoint",
    ),
    Case(
        "12", "one rank raises",
        "all end within 15 s, no process is left; the cause is told with rank, step and slots",
        ("commands/test_ranks.py::"
         "test_an_error_of_one_rank_ends_all_and_is_told_with_rank_step_and_slots",),
        f"{SESSION}:fail_fast=lambda *_, **__: None",
    ),
    Case(
        "13", "one rank is killed; the other does not answer",
        "all end within 15 s, no process is left",
        ("commands/test_ranks.py::test_a_killed_rank_ends_all",
         "commands/test_ranks.py::test_a_rank_that_does_not_answer_ends_with_the_first"),
        "kinetics400.data.orphans:die_with_parent=lambda _: None",
        control_tests=("commands/test_ranks.py::"
                       "test_a_rank_that_does_not_answer_ends_with_the_first",),
    ),
    Case(
        "14", "one rank is stopped (SIGSTOP)",
        "all end after --rank_timeout",
        ("commands/test_ranks.py::test_a_stopped_rank_ends_all_after_the_timeout",),
        f"{SESSION}:fail_fast=lambda *_, **__: None",
    ),
    Case(
        "15", "ranks disagree on settings or weights",
        "refused before the first step, by name",
        ("commands/test_ranks.py::"
         "test_ranks_that_were_started_differently_are_refused_before_the_first_step",),
        f"{SESSION}:_require_agreement=lambda *_: None",
    ),
    Case(
        "16", "a rendezvous port that something else listens on",
        "all end within 30 s, the port is named, no process is left",
        ("commands/test_ranks.py::test_a_port_that_is_taken_ends_all_and_is_named",),
        f"{SESSION}:meet=lambda fabric, environment: fabric.launch()",
    ),
    Case(
        "16b", "processes end while threads of gloo are still at work",
        "each gives its command's exit code: an interpreter of several is not taken apart",
        ("commands/test_ranks.py::test_one_of_several_processes_is_not_taken_apart",),
        "kinetics400.engine.ranks:leave=lambda code: None",
        control_tests=("commands/test_ranks.py::"
                       "test_one_of_several_processes_is_not_taken_apart[2]",),
    ),
    Case(
        "18", "a bit flips in one rank's weights",
        "found at the next checkpoint or within 200 steps, and not saved",
        ("commands/test_ranks.py::test_a_bit_flipped_on_one_rank_is_found_before_it_is_saved",
         "engine/test_drift.py"),
        "kinetics400.engine.drift:DriftCheck.now=lambda self, step: None",
    ),
    Case(
        "19", "bad files at preprocessing",
        "quarantined with their reason; valid oddities pass",
        ("data/test_verify.py",),
        "kinetics400.data.verify:_check_complete=lambda *_: None",
    ),
    Case(
        "20, 21", "files go bad after they were verified; the folder goes away",
        "substitutes from the sample's key, counted and listed; too many stop the run",
        ("commands/test_data_faults.py",),
        "kinetics400.commands.bad_videos:BadVideos.record=lambda *_: None",
        only="20_bad or 20_more or 21_",
    ),
    Case(
        "22, 23", "the decoder hangs, crashes or is killed",
        "the video is named, exit code 75, left out at the restart",
        ("commands/test_data_faults.py",),
        "kinetics400.commands.guard:VideoGuard.quarantined=lambda *_: {}",
        only="22_23_a or 22_23_with",
    ),
    Case(
        "24", "/dev/shm too small",
        "said with the bytes needed, before the first step",
        ("commands/test_data_faults.py",),
        "kinetics400.data.shared_memory:shortage=lambda need: None",
        only="24_",
    ),
    Case(
        "25", "three epochs of 246,535 videos",
        "a worker's private memory is within 5 MiB of that for a list of 512, and stays there",
        ("faults/test_memory.py",),
        "kinetics400.data.annotations:PackedText.pack=list",
        control_tests=("faults/test_memory.py::test_three_epochs_of_all_videos",),
    ),
    Case(
        "26", "the trainer is killed",
        "its workers end, no shared memory is left",
        ("commands/test_data_faults.py",),
        "kinetics400.data.orphans:die_with_parent=lambda _: None",
        only="26_",
    ),
    Case(
        "27", "broken list files",
        "one error with the first ten lines; what must be accepted is",
        ("data/test_annotations.py",),
        "kinetics400.data.annotations:_problem=lambda *_: None",
    ),
    Case(
        "28", "loss or gradient not finite on one rank",
        "that update changes nothing on any rank; three in a row stop the run",
        ("commands/test_ranks.py::test_a_bad_batch_of_one_rank_is_skipped_by_both",
         "engine/test_updates.py", "engine/test_trainer.py",),
        "kinetics400.engine.updates:Updates.apply=lambda self, step, update, loss, norm: "
        "(update(), torch.tensor(True))[1]",
        only="bad_batch or skip or finite or stop_the_run",
    ),
    Case(
        "29", "the loss of one batch is 10,000 times too large",
        "the gradient is clipped (--clip_grad); its norm and the share of clipped steps are logged",
        ("engine/test_trainer.py::"
         "test_a_spike_of_the_loss_is_clipped_and_its_norm_is_logged",),
        "lightning.fabric.fabric:Fabric.clip_gradients=lambda self, module, *_, **__: "
        "torch.nn.utils.get_total_norm([p.grad for p in module.parameters()])",
    ),
    Case(
        "17, 30", "validation videos that cannot be read, uneven shares",
        "each listed video counts once, unreadable ones as wrong, listed",
        ("engine/test_evaluation.py",
         "commands/test_evaluate.py::test_an_undecodable_video_is_wrong_and_listed_everywhere"),
        "kinetics400.engine.evaluation:_no_scores=lambda n: torch.zeros(n)",
    ),
    Case(
        "31", "an evaluation of 50 × 15 views is killed, on three ranks",
        "the repeated command scores the rest, on any number of ranks; no video counts twice",
        ("engine/test_kept_scores.py",
         "commands/test_evaluate.py::test_an_interrupted_evaluation_continues"),
        "kinetics400.engine.kept_scores:KeptScores.known=lambda self: []",
    ),
    Case(
        "32, 35", "killed or the disk full while unpacking and storing",
        "repeating gives the same tree; no partial file under a final name",
        ("commands/test_preprocess_kills.py",),
        "kinetics400.data.shelf:Shelf.place=unsafe.place_in_place",
        only="archive_killed or full_disk",
    ),
    Case(
        "33, 34", "truncated, damaged and hostile archives",
        "refused with their place; nothing outside the destination",
        ("data/test_archive.py",),
        "kinetics400.data.archive:safe_parts=lambda member: tuple(member.name.split('/'))",
    ),
    Case(
        "36", "torn last line of the log, rows from after the checkpoint",
        "steps strictly increase, none twice",
        ("engine/test_log.py",),
        "kinetics400.engine.log:read_metrics=lambda path: "
        "[json.loads(line) for line in path.open()] if path.exists() else []",
    ),
)  # fmt: skip

LEFT_OUT = {
    "5 on a GPU": "`--deterministic` sets what torch offers for it; neither that it suffices nor "
    "what it costs has been seen on a GPU",
    "8, overriding": "there is no list of settings that may change at a resume: a changed run is a "
    "new one",
    "11, older schemas": "there is only one so far",
    "13, 14 on NCCL": "needs GPUs: its watchdog notices instead of the closed connection",
    "14, stacks": "the ranks that wait do not print where by themselves; SIGUSR2 has them do so",
    "25, decoding": "a worker takes some 20 MiB more over its first 25,000 decoded clips and "
    "then stays (40,000 watched by hand); no test bounds it yet",
    "29, skipping": "a step whose gradient is too large is clipped, as published; leaving it out "
    "would be another rule",
}
