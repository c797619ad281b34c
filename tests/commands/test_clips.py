"""From flags to samplers: fast ones keep to the pyramid's grid, exact ones to published rules."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kinetics400.__main__ import run_command
from kinetics400.commands import clips
from kinetics400.config.common import ClipFlags, LabelledClipFlags
from kinetics400.config.finetuning import TrainConfig
from kinetics400.config.parse import parse
from kinetics400.config.pretraining import PretrainConfig
from kinetics400.data import sampling
from kinetics400.data.decode import VideoReader

LENGTHS = [1, 7, 40, 63, 64, 65, 100, 250, 300]
DRAWS = [0.0, 0.21, 0.5, 0.83, 1 - 2**-53]
FPS = 25.0

Sampler = Callable[..., list[int]]


def pretraining(*argv: str) -> Sampler:
    config = parse(PretrainConfig, argv, prog="pretraining", description="")
    return clips.pretraining_sampler(config.clips, 16, exact=config.data.exact_frames)


def finetuning(*argv: str) -> tuple[Sampler, int]:
    config = parse(TrainConfig, argv, prog="train", description="")
    return clips.finetuning_sampler(config.clips, 16, exact=config.data.exact_frames)


def protocol(*argv: str) -> Sampler:
    config = parse(TrainConfig, argv, prog="train", description="")
    return clips.test_sampler(config.clips, 16)


def starts(sample: Sampler, length: int = 100, fps: float = FPS) -> set[int]:
    return {sample(length, fps, [u])[0] for u in np.linspace(0, 1, 400, endpoint=False)}


# --- pretraining ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "grid"), [("1", 1), ("2", 2), ("3", 1), ("4", 4), ("6", 2), ("8", 4)]
)
def test_pretraining_starts_on_the_grid_that_its_stride_keeps_to(rate: str, grid: int) -> None:
    sample = pretraining("--sampling_rate", rate)
    last = 200 - 16 * int(rate)
    assert starts(sample, length=200) == set(range(0, last + 1, grid))
    for length in LENGTHS:
        for u in DRAWS:
            frames = sample(length, FPS, [u])
            assert all(frame % grid == 0 for frame in frames)


def test_pretraining_takes_exactly_the_published_frames_when_told_to() -> None:
    sample = pretraining("--exact_frames")
    assert starts(sample) == set(range(37))
    for length in LENGTHS:
        for u in DRAWS:
            assert sample(length, FPS, [u]) == sampling.pretraining_frames(length, 16, 4, u)


# --- finetuning -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "grid"), [("1", 1), ("2", 2), ("3", 2), ("4", 4), ("5", 4), ("8", 4)]
)
def test_finetuning_moves_frames_to_the_grid_no_coarser_than_they_lie_apart(
    rate: str, grid: int
) -> None:
    sample, num_draws = finetuning("--sampling_rate", rate)
    assert num_draws == 1
    seen = set()
    for length in LENGTHS:
        for u in DRAWS:
            frames = sample(length, FPS, [u])
            exact = sampling.finetuning_frames(length, 16, int(rate), u)
            assert all(frame % grid == 0 for frame in frames)
            assert np.abs(np.subtract(frames, exact)).max() <= max(grid / 2, grid - 1)
            seen |= set(frames)
    assert not all(frame % (2 * grid) == 0 for frame in seen)


def test_finetuning_takes_exactly_the_published_frames_when_told_to() -> None:
    sample, num_draws = finetuning("--exact_frames")
    assert num_draws == 1
    for length in LENGTHS:
        for u in DRAWS:
            assert sample(length, FPS, [u]) == sampling.finetuning_frames(length, 16, 4, u)


@pytest.mark.parametrize("exact", [[], ["--exact_frames"]])
def test_sparse_clips_take_a_number_per_frame_and_are_always_exact(exact: list[str]) -> None:
    sample, num_draws = finetuning("--sampling", "sparse", *exact)
    assert num_draws == 16
    u = np.random.default_rng(0).random(16).tolist()
    for length in LENGTHS:
        assert sample(length, FPS, u) == sampling.sparse_frames(length, 16, u)


# --- by duration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pretraining, lambda *argv: finetuning(*argv)[0]])
@pytest.mark.parametrize(
    ("fps", "grid"),
    [(60.0, 4), (30.0, 4), (29.0, 2), (25.0, 2), (15.0, 2), (14.0, 1), (7.5, 1), (0.0, 4)],
)
def test_clips_by_duration_keep_to_a_grid_that_follows_from_the_videos_rate(
    make: Callable[..., Sampler], fps: float, grid: int
) -> None:
    """Frames lie 4 * fps / 30 apart; an unknown rate counts as the target's."""
    sample, exact = make("--target_fps", "30"), make("--target_fps", "30", "--exact_frames")
    seen = set()
    for length in LENGTHS:
        for u in DRAWS:
            wanted = sampling.timed_frames(length, fps, 16, 4, 30.0, u)
            assert exact(length, fps, [u]) == wanted
            assert sample(length, fps, [u]) == sampling.snap(wanted, length, grid)
            seen |= set(sample(length, fps, [u]))
    assert not all(frame % (2 * grid) == 0 for frame in seen)


# --- test -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_segments", [1, 2, 5])
def test_test_clips_are_always_exact(num_segments: int) -> None:
    plain, timed = protocol(), protocol("--target_fps", "20", "--sampling_rate", "2")
    sparse = protocol("--sampling", "sparse")
    for length in LENGTHS:
        for segment in range(num_segments):
            where = (segment, num_segments)
            assert plain(length, FPS, *where) == sampling.segment_frames(length, 16, 4, *where)
            assert timed(length, FPS, *where) == sampling.timed_segment_frames(
                length, FPS, 16, 2, 20.0, *where
            )
            assert sparse(length, FPS, *where) == sampling.sparse_segment_frames(length, 16, *where)


def test_samplers_can_be_sent_to_spawned_workers() -> None:
    made: list[tuple[Any, list[Any]]] = [
        (pretraining(), [[0.3]]),
        (pretraining("--target_fps", "30"), [[0.3]]),
        (finetuning()[0], [[0.3]]),
        (finetuning("--sampling", "sparse")[0], [[0.3] * 16]),
        (protocol(), [1, 5]),
        (protocol("--target_fps", "30"), [1, 5]),
        (protocol("--sampling", "sparse"), [1, 2]),
    ]
    for sample, arguments in made:
        again = pickle.loads(pickle.dumps(sample))
        assert again(200, FPS, *arguments) == sample(200, FPS, *arguments)


# --- flags ----------------------------------------------------------------------------------------

WRONG = [
    (["--sampling_rate", "0"], "--sampling_rate 0 must be at least 1"),
    (["--sampling_rate", "-4"], "--sampling_rate -4 must be at least 1"),
    (["--target_fps", "0"], "--target_fps 0.0 must lie between 0 and 1000"),
    (["--target_fps", "-30"], "--target_fps -30.0 must lie between"),
    (["--target_fps", "1000"], "--target_fps 1000.0 must lie between"),
    (["--target_fps", "nan"], "--target_fps nan must lie between"),
    (["--target_fps", "inf"], "--target_fps inf must lie between"),
]
CONTRADICTION = (
    ["--sampling", "sparse", "--target_fps", "30"],
    "--target_fps means nothing with --sampling sparse",
)
CASES = [
    *(("pretrain", *case) for case in WRONG),
    *((name, *case) for name in ("train", "evaluate") for case in [*WRONG, CONTRADICTION]),
    ("pretrain", ["--sampling", "sparse"], "--sampling"),  # it has no such flag
    ("train", ["--sampling", "dens"], "dens"),
]


@pytest.mark.parametrize(("name", "flags", "message"), CASES)
def test_wrong_and_contradicting_flags_are_refused(
    name: str, flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--checkpoint", str(tmp_path)] if name == "evaluate" else ["--save_dir", str(tmp_path)]
    try:
        code = run_command(name, [*own, "--data_dir", str(tmp_path), *flags])
    except SystemExit as stopped:  # the parser's own way out
        code = stopped.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_sound_flags_have_no_problems() -> None:
    for flags in (
        ClipFlags(),
        ClipFlags(sampling_rate=1, target_fps=999.0),
        LabelledClipFlags(sampling="sparse"),
        LabelledClipFlags(target_fps=0.5),
    ):
        problems = clips.Problems()
        clips.check_clips(flags, problems)
        problems.raise_any()


# --- commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pretrain", "train"])
@pytest.mark.parametrize("exact", [True, False])
def test_a_run_reads_the_frames_that_its_flags_ask_for(
    name: str, exact: bool, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[int]] = []
    tested: list[list[int]] = []
    read = VideoReader.read

    def watched(
        self: VideoReader, indices: list[int], box: Any = None, **arguments: Any
    ) -> np.ndarray:
        (tested if box is None else trained).append(list(indices))
        return read(self, indices, box, **arguments)

    monkeypatch.setattr(VideoReader, "read", watched)
    flags = [
        *("--model_name", "tiny", "--input_size", "32", "--patch_size", "8", "--num_frames", "4"),
        *("--n_epoch", "1", "--warmup_epochs", "0", "--batch_size", "8", "--n_worker", "0"),
        *("--accelerator", "cpu", "--data_dir", str(library), "--save_dir", str(tmp_path / "run")),
        *(("--num_classes", "4", "--views", "2x1") if name == "train" else ()),
        *(("--exact_frames",) if exact else ()),
    ]
    assert run_command(name, flags) == 0
    assert len(trained) == 24
    frames = {frame for clip in trained for frame in clip}
    assert all(frame % 4 == 0 for frame in frames) == (not exact)
    if name == "pretrain":
        assert {tuple(np.diff(clip)) for clip in trained if len(set(clip)) == 4} == {(4, 4, 4)}
    elif exact:  # 16 / 3 frames apart
        assert {tuple(np.diff(clip)) for clip in trained} & {(5, 5, 5), (5, 5, 6)}
    assert bool(tested) == (name == "train")
