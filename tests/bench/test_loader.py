import itertools
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kinetics400.bench import figures, loader
from kinetics400.bench.contenders import (
    AUGMENTED,
    DECORD,
    EVAL,
    FINETUNE,
    FLOOR,
    ORIGINAL,
    PRETRAIN,
    PYAV,
    PYRAMID,
    Contender,
    Spot,
    spread_spots,
)
from kinetics400.bench.figures import Row, headline, median_rates, summary
from kinetics400.bench.loader import Amount, bench_loader, one_core, readable, take_turns, timed
from kinetics400.bench.store import Store
from kinetics400.data.decode import DecodeError
from kinetics400.data.transcode import EncodeSettings
from kinetics400.errors import DataError

AMOUNT = Amount(
    num_made=1,
    most_videos=2,
    clips_per_video=1,
    repeats=3,
    side_repeats=2,
    eval_videos=1,
    eval_repeats=1,
    store_repeats=1,
)


def quiet(text: str) -> None:
    """Say nothing."""


# --- one core -------------------------------------------------------------------------------------


def test_all_threads_stay_on_one_core_and_get_their_cores_back() -> None:
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    stop, ready = threading.Event(), threading.Event()
    seen = []

    def wait() -> None:
        ready.set()
        stop.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    torch.set_num_threads(2)
    try:
        with one_core() as core:
            seen = [os.sched_getaffinity(number) for number in (0, thread.native_id)]
            assert torch.get_num_threads() == 1
        assert seen == [{core}, {core}]
        assert os.sched_getaffinity(thread.native_id) == allowed
        assert os.sched_getaffinity(0) == allowed
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
        stop.set()
        thread.join()


# --- timing ---------------------------------------------------------------------------------------


def burn(seconds: float) -> Callable[[Spot], None]:
    """Use so much CPU."""

    def load(spot: Spot) -> None:
        end = loader.time.process_time() + seconds
        while loader.time.process_time() < end:
            pass

    return load


def test_fast_contenders_pass_over_their_spots_until_it_takes_a_while() -> None:
    spots = spread_spots(2, 1)
    seen: list[int] = []
    contender = Contender(
        FINETUNE, DECORD, lambda spot: seen.append(spot.video) or burn(0.03)(spot)
    )
    row = timed(replace(contender, units=2), spots, 7)
    passes = Counter(seen)
    assert passes[0] == passes[1] >= 2  # whole passes only
    assert row.units == 2 * len(seen)
    assert loader.SHORTEST <= row.cpu_seconds < 2 * loader.SHORTEST
    assert row.units / row.cpu_seconds == pytest.approx(2 / 0.03, rel=0.2)
    assert (row.task, row.contender, row.repeat) == (FINETUNE, DECORD, 7)


def test_every_repeat_draws_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SHORTEST", 1e-9)
    drawn = []
    contender = Contender(
        PRETRAIN,
        DECORD,
        lambda spot: drawn.append((random.random(), np.random.rand(), torch.rand(()).item())),
    )
    for repeat in range(2):
        timed(contender, spread_spots(1, 1), repeat)
    assert drawn[0] == drawn[len(drawn) // 2]


def test_time_asleep_is_on_the_clock_but_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SHORTEST", 1e-9)
    row = timed(Contender(EVAL, DECORD, lambda spot: loader.time.sleep(0.1)), [None], 0)
    assert row.seconds > 0.09
    assert row.cpu_seconds < 0.05


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SHORTEST", 1e-9)
    seen: list[tuple[str, str, int]] = []

    def contender(task: str, name: str) -> Contender:
        return Contender(task, name, lambda spot: seen.append((task, name, spot.video)))

    keys = [(PRETRAIN, DECORD), (PRETRAIN, PYAV), (PRETRAIN, PYRAMID), (EVAL, ORIGINAL)]
    keys += [(EVAL, PYRAMID)]
    amount = replace(AMOUNT, clips_per_video=2, eval_videos=2)
    rows = take_turns([contender(*key) for key in keys], 3, amount, quiet)
    counts = Counter((row.task, row.contender) for row in rows)
    assert counts == {keys[0]: 3, keys[1]: 2, keys[2]: 3, keys[3]: 1, keys[4]: 1}
    # Two clips of each of three videos in training; one of each of two in the test.
    assert rows[0].units == 6
    assert {video for task, _, video in seen if task == EVAL} == {0, 1}
    # Nobody is always first.
    firsts = [next(row for row in rows if row.repeat == repeat) for repeat in range(3)]
    assert len({(row.task, row.contender) for row in firsts}) > 1
    # All of a repeat comes before the next.
    assert [repeat for repeat, _ in itertools.groupby(row.repeat for row in rows)] == [0, 1, 2]


# --- who can read what ----------------------------------------------------------------------------


def fake(name: str, fails_at: set[int], **options: tuple[str, ...]) -> Contender:
    def load(spot: Spot) -> None:
        if spot.video in fails_at:
            raise DecodeError(f"{name} fails\nfor a long reason")

    return Contender(PRETRAIN, name, load, **options)


@pytest.fixture
def taking_part(monkeypatch: pytest.MonkeyPatch) -> list[Contender]:
    """Put what takes part in here."""
    taking_part: list[Contender] = []
    monkeypatch.setattr(loader, "all_contenders", lambda originals, pyramids: taking_part)
    return taking_part


def test_a_video_that_one_reader_fails_at_is_left_out_for_all(taking_part: list[Contender]) -> None:
    taking_part += [fake(DECORD, {1}), fake(PYRAMID, set())]
    store = Store(["a", "b", "c"], ["A", "B", "C"], {"d": "truncated"}, [])
    originals, pyramids, excluded, unavailable = readable(store)
    assert (originals, pyramids) == (["a", "c"], ["A", "C"])
    assert excluded == {"d": "truncated", "b": "decord: decord fails"}
    assert unavailable == {}


def test_a_reader_that_fails_at_everything_is_unavailable(taking_part: list[Contender]) -> None:
    """So does torchcodec without FFmpeg's libraries."""
    taking_part += [fake(DECORD, {0, 1}), fake(PYRAMID, set())]
    taking_part += [fake(PYAV, set(), needs=("not_there",))]
    originals, _, excluded, unavailable = readable(Store(["a", "b"], ["A", "B"], {}, []))
    assert originals == ["a", "b"]
    assert excluded == {}
    assert unavailable == {
        (PRETRAIN, DECORD): "decord fails",
        (PRETRAIN, PYAV): "not_there: No module named 'not_there'",
    }


def test_nothing_to_read_is_an_error_that_says_why(taking_part: list[Contender]) -> None:
    taking_part += [fake(DECORD, {0}), fake(PYRAMID, {1})]
    with pytest.raises(DataError, match=r"decord: decord fails.*pyramid: pyramid fails"):
        readable(Store(["a", "b"], ["A", "B"], {}, []))
    with pytest.raises(DataError, match="d: truncated"):
        readable(Store([], [], {"d": "truncated"}, []))


# --- figures --------------------------------------------------------------------------------------


def rows_of(task: str, name: str, *rates: float) -> list[Row]:
    return [Row(task, name, repeat, 10, 99.0, 10 / rate) for repeat, rate in enumerate(rates)]


def test_ratios_are_of_median_rates() -> None:
    rows = [
        *rows_of(PRETRAIN, DECORD, 10, 30, 11),
        *rows_of(PRETRAIN, PYRAMID, 110, 100, 9),
        *rows_of(PRETRAIN, FLOOR, 125),
        *rows_of(FINETUNE, DECORD, 8),
        *rows_of(FINETUNE, AUGMENTED, 40),
        *rows_of(EVAL, DECORD, 0.5),
        *rows_of(EVAL, PYRAMID, 20),
    ]
    rates = median_rates(rows)
    assert rates[PRETRAIN, DECORD] == pytest.approx(11)
    found = headline(rates)
    assert found["ratio_pretrain"] == pytest.approx(100 / 11)
    assert found["ratio_eval"] == pytest.approx(40)
    assert found["share_of_floor"] == pytest.approx(0.8)
    assert found["ratio_finetune"] is None  # nobody measured it
    assert found["ratio_finetune_augmented"] == pytest.approx(5)


def test_without_decord_there_is_no_ratio() -> None:
    rows = rows_of(PRETRAIN, PYRAMID, 100)
    found = headline(median_rates(rows))
    assert found["ratio_pretrain"] is None
    line = summary((PRETRAIN, DECORD), median_rates(rows), rows, {(PRETRAIN, DECORD): "no module"})
    assert (line["per_sec"], line["unavailable"]) == (None, "no module")
    line = summary((PRETRAIN, PYRAMID), median_rates(rows), rows, {})
    assert (line["per_sec"], line["ratio_to_decord"], line["unavailable"]) == (100.0, None, None)


def test_versions_name_what_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "PACKAGES", ("numpy", "not-there"))
    assert figures.versions()["numpy"] == np.__version__
    assert figures.versions()["not-there"] is None


# --- all of it ------------------------------------------------------------------------------------

HEADLINE = {
    *("ratio_pretrain", "ratio_finetune", "ratio_eval", "share_of_floor", "store_bytes_ratio"),
    *("psnr_luma_db", "preprocess_seconds_per_video", "preprocess_share_of_bare_loop"),
}


def test_the_whole_benchmark_on_small_videos(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "SHORTEST", 0.01)
    amount = replace(AMOUNT, repeats=1, side_repeats=1)
    said: list[str] = []
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"no video at all" * 100)
    result = bench_loader(
        [store.originals[0], str(damaged), store.originals[1], "never taken"],
        tmp_path,
        settings=EncodeSettings(),
        amount=replace(amount, most_videos=3),
        scaling=False,
        say=said.append,
    )
    assert "taking 3 of 4 videos" in said
    result = json.loads(json.dumps(result))
    missing = {name for name in HEADLINE if not isinstance(result[name], float)}
    assert missing == set()
    assert result["ratio_eval"] > 1
    assert 0.1 < result["share_of_floor"] < 2  # small videos, short measurements
    sizes = [os.path.getsize(path) for path in store.originals]
    stored = [video["store_bytes"] for video in result["videos"]]
    assert result["store_bytes_ratio"] == pytest.approx(sum(stored) / sum(sizes))
    assert list(result["excluded"]) == [damaged.name]
    assert [video["num_frames"] for video in result["videos"]] == [100, 40]
    kinds = {(row["task"], row["contender"]) for row in result["rows"]}
    lines = {(c["task"], c["contender"]) for c in result["contenders"] if not c["unavailable"]}
    assert kinds == lines
    assert len(result["preprocess_rows"]) == 4
    assert not result["videos_made"]


def test_without_videos_some_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    def make(folder: Path, count: int) -> list[str]:
        assert (folder, count) == (tmp_path, 1)
        raise Enough

    monkeypatch.setattr(loader, "make_videos", make)
    with pytest.raises(Enough):
        bench_loader(
            None, tmp_path, settings=EncodeSettings(), amount=AMOUNT, scaling=False, say=quiet
        )


def test_scaling_counts_clips_of_the_training_loader(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "worker_counts", lambda cores: [0, 1])
    rows = loader.measure_scaling(store.pyramids, quiet, seconds=0.1)
    assert [row["workers"] for row in rows] == [0, 1]
    assert all(5 < row["clips_per_sec"] < 5000 for row in rows)
