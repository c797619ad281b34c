"""Shards leave, once merged, what one run leaves: whatever their order, and whoever was killed."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics400.__main__ import run_command
from kinetics400.commands.preprocess import preprocess, preprocess_shard
from kinetics400.commands.preprocess_report import Summary
from kinetics400.config.preprocess import PreprocessConfig
from kinetics400.data import intake, sources
from kinetics400.data.housekeeping import Housekeeping
from kinetics400.data.shards import Shard
from kinetics400.errors import DataError, InputError

ROOT = Path(__file__).parents[2]
ARCHIVE = "Kinetics-400.tar.gz"
LISTS = ("kinetics400_train_list_videos.txt", "kinetics400_val_list_videos.txt")
N_VIDEOS = 11  # in the corpus, the damaged one included
Tree = dict[str, bytes]
Published = Callable[[Path], Tree]
Kill = Callable[[int, Callable[[], object]], int]


def config(data_dir: Path, **options: object) -> PreprocessConfig:
    defaults = {"max_bad_share": 0.2, "n_worker": 1}
    return PreprocessConfig(data_dir=data_dir, **{**defaults, **options})  # type: ignore[arg-type]


def run(data_dir: Path, **options: object) -> Summary:
    return preprocess(config(data_dir, **options))


def shard(index: int, count: int, data_dir: Path, **options: object) -> None:
    preprocess_shard(config(data_dir, **options), Shard(index, count))


def library(data_dir: Path) -> Path:
    return data_dir / "Kinetics-400"


def hidden(data_dir: Path) -> Path:
    return library(data_dir) / ".preprocess"


def assert_clean(data_dir: Path) -> None:
    assert not list(data_dir.rglob("*.tmp"))
    assert not (hidden(data_dir) / "incoming").exists()
    assert not (hidden(data_dir) / "shards").exists()


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, corpus, write_archive: Callable, published: Published
) -> tuple[Tree, set[str]]:
    """What one run of real processes publishes, and its journal's rows."""
    data_dir = tmp_path_factory.mktemp("whole")
    write_archive(data_dir / ARCHIVE, corpus.members)
    run(data_dir)
    return published(library(data_dir)), rows(data_dir)


def rows(data_dir: Path) -> set[str]:
    """The journal's rows, but for what tells one copy of the source from another."""
    found = map(json.loads, (hidden(data_dir) / "journal.jsonl").read_text().splitlines())
    return {json.dumps({**row, "source_mtime_ns": 0}, sort_keys=True) for row in found}


# --- one archive ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5])
def test_shards_in_any_order_leave_what_one_run_leaves(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    published: Published,
    whole,
    inline,
    capsys: pytest.CaptureFixture[str],
    count: int,
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    order = list(range(1, count + 1))
    random.Random(count).shuffle(order)
    for index in order:
        shard(index, count, tmp_path)
        assert not (library(tmp_path) / LISTS[0]).exists()
    assert len(inline.sources) == N_VIDEOS  # nobody did another's work
    summary = run(tmp_path)
    assert len(inline.sources) == N_VIDEOS  # nor did the last
    assert (published(library(tmp_path)), rows(tmp_path)) == whole
    assert (hidden(tmp_path) / "quarantine/videos_train/bad.mp4").read_bytes() == corpus.refused
    assert summary.ignored == {".md": 1}
    assert_clean(tmp_path)
    assert run(tmp_path).already_done
    capsys.readouterr()
    shard(1, count, tmp_path)  # repeated too late: it knows what the library knows
    assert len(inline.sources) == N_VIDEOS
    assert "storing" not in capsys.readouterr().err  # and does not read the archive again
    assert run(tmp_path).already_done
    assert (published(library(tmp_path)), rows(tmp_path)) == whole


def test_run_without_shards_stores_what_is_missing(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    published: Published,
    whole,
    inline,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    shard(3, 3, tmp_path)
    assert 0 < len(inline.sources) < N_VIDEOS
    capsys.readouterr()
    run(tmp_path)
    assert "shards that have not finished: 1/3, 2/3. What" in capsys.readouterr().err
    assert len(inline.sources) == N_VIDEOS
    assert (published(library(tmp_path)), rows(tmp_path)) == whole
    assert_clean(tmp_path)


@pytest.mark.parametrize("step", range(1, 80, 4))
def test_shard_killed_anywhere_is_repeated_alone(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    published: Published,
    whole,
    inline,
    killed_at: Kill,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    monkeypatch.setattr(intake, "JOURNAL_EVERY", 2)
    write_archive(tmp_path / ARCHIVE, corpus.members)
    shard(2, 2, tmp_path)
    others = len(inline.sources)
    changes = killed_at(step, lambda: shard(1, 2, tmp_path))
    assert changes == 0 or step > 60
    shard(1, 2, tmp_path)
    assert others <= len(inline.sources)
    run(tmp_path)
    assert len(inline.sources) <= N_VIDEOS
    assert published(library(tmp_path)) == whole[0]
    assert_clean(tmp_path)


@pytest.mark.parametrize("step", range(1, 62, 3))
def test_merge_killed_anywhere_is_repeated(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    published: Published,
    whole,
    inline,
    killed_at: Kill,
    step: int,
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    for index in (1, 2):
        shard(index, 2, tmp_path)
    changes = killed_at(step, lambda: run(tmp_path))
    assert changes == 0 or step > 40
    run(tmp_path)
    assert len(inline.sources) == N_VIDEOS  # nothing was forgotten
    assert published(library(tmp_path)) == whole[0]
    assert (hidden(tmp_path) / "quarantine/videos_train/bad.mp4").read_bytes() == corpus.refused
    assert_clean(tmp_path)


def test_share_of_bad_videos_is_judged_when_shards_are_merged(
    tmp_path: Path, corpus, write_archive: Callable, inline
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    for index in (1, 2, 3):
        shard(index, 3, tmp_path, max_bad_share=0.0)
    with pytest.raises(DataError, match=r"2 of 12 listed videos \(16.67%\)"):
        run(tmp_path, max_bad_share=0.0)
    run(tmp_path, max_bad_share=0.2)
    assert len(inline.sources) == N_VIDEOS


def test_another_number_of_shards_waits_for_the_merge(
    tmp_path: Path, corpus, write_archive: Callable, published: Published, whole, inline
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    shard(1, 3, tmp_path)
    with pytest.raises(InputError, match=r"holds shards of 3\. Go on with --shard i/3"):
        shard(1, 2, tmp_path)
    assert os.listdir(hidden(tmp_path) / "shards") == ["1-of-3"]
    run(tmp_path)
    shard(1, 2, tmp_path)
    run(tmp_path)
    assert published(library(tmp_path)) == whole[0]
    assert len(inline.sources) == N_VIDEOS


def test_shards_with_other_settings_are_stored_anew(
    tmp_path: Path, corpus, write_archive: Callable, published: Published, whole, inline
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    shard(1, 2, tmp_path, crf=40)
    shard(2, 2, tmp_path)
    run(tmp_path)
    assert published(library(tmp_path)) == whole[0]


# --- at the same time -----------------------------------------------------------------------------


def test_shards_work_side_by_side_and_exclude_a_whole_run(
    tmp_path: Path, corpus, write_archive: Callable, inline
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    kept = Housekeeping(library(tmp_path), Shard(1, 3))
    with kept.held(), kept.working():
        shard(2, 3, tmp_path)
        with pytest.raises(InputError, match="another process is preprocessing shard 1/3"):
            shard(1, 3, tmp_path)
        with pytest.raises(InputError, match="another process is preprocessing /"):
            run(tmp_path)
        assert kept.incoming.is_dir()
    assert (hidden(tmp_path) / "shards/2-of-3/journal.jsonl").exists()
    with Housekeeping(library(tmp_path)).held(), pytest.raises(InputError, match="another process"):
        shard(3, 3, tmp_path)


def flags(data_dir: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", "data.preprocess", "--data_dir", str(data_dir)]
    return [*start, "--max_bad_share", "0.2", "--n_worker", "1", *more]


def test_two_processes_together_one_killed(
    tmp_path: Path, corpus, write_archive: Callable, published: Published, inline
) -> None:
    """With work that lasts long enough to be killed in."""
    slow = ("--enlarge", "--preset", "slow")
    write_archive(tmp_path / ARCHIVE, corpus.members)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with (
        subprocess.Popen(flags(tmp_path, *slow, "--shard", "1/2"), **quiet) as first,  # type: ignore[call-overload]
        subprocess.Popen(flags(tmp_path, *slow, "--shard", "2/2"), **quiet) as second,  # type: ignore[call-overload]
    ):
        incoming = hidden(tmp_path) / "shards/2-of-2/incoming"
        deadline = time.monotonic() + 30
        while not list(incoming.glob("stored-*")) and time.monotonic() < deadline:
            time.sleep(0.002)
        second.kill()
    assert (first.returncode, second.returncode) == (0, -9)
    subprocess.run(flags(tmp_path, *slow, "--shard", "2/2"), check=True, **quiet)  # type: ignore[call-overload]
    before = len(inline.sources)
    run(tmp_path, enlarge=True, preset="slow")
    assert len(inline.sources) == before  # the merge has nothing left to store
    sharded = published(library(tmp_path))
    assert_clean(tmp_path)
    shutil.rmtree(library(tmp_path))
    run(tmp_path, enlarge=True, preset="slow")
    assert published(library(tmp_path)) == sharded


# --- other sources --------------------------------------------------------------------------------


def test_pieces_of_different_machines_merge_without_their_source(
    tmp_path: Path, corpus, write_archive: Callable, published: Published, whole, inline
) -> None:
    for index in (1, 2):
        write_archive(tmp_path / f"machine{index}" / ARCHIVE, corpus.members)
        shard(index, 2, tmp_path / f"machine{index}")
        shutil.copytree(
            library(tmp_path / f"machine{index}"), library(tmp_path), dirs_exist_ok=True
        )
    run(tmp_path)  # there is no archive here
    assert len(inline.sources) == N_VIDEOS
    assert published(library(tmp_path)) == whole[0]
    assert_clean(tmp_path)


@pytest.mark.parametrize("in_place", [False, True], ids=["a folder", "the library itself"])
@pytest.mark.parametrize("lists", [True, False], ids=["lists", "class folders"])
def test_folders_are_shared_out_too(
    tmp_path: Path,
    corpus,
    write_files: Callable,
    published: Published,
    inline,
    in_place: bool,
    lists: bool,
) -> None:
    members = corpus.members
    if not lists:
        kinds = {name: f"class {i % 2}" for i, name in enumerate(n for n in members if "/" in n)}
        members = {
            f"{name.split('/')[0]}/{kind}/{Path(name).name}": corpus.members[name]
            for name, kind in kinds.items()
        }
    trees = []
    for folder in ("sharded", "whole"):
        data_dir = tmp_path / folder
        source = library(data_dir) if in_place else data_dir / "source"
        write_files(source, members)
        options = {} if in_place else {"source": source}
        options |= {"num_classes": 400 if lists else 2}
        for index in (2, 1, 3) if folder == "sharded" else ():
            shard(index, 3, data_dir, **options)
        # What the shards have left is enough for the merge, also without the source.
        given = options if folder == "whole" else {"num_classes": options["num_classes"]}
        run(data_dir, **given)
        assert len(inline.sources) == N_VIDEOS  # nobody did another's work
        if folder == "sharded":
            shard(1, 3, data_dir, **options)  # repeated too late
            assert run(data_dir, **options).already_done
            assert len(inline.sources) == N_VIDEOS
        inline.sources.clear()
        trees.append(published(library(data_dir)))
        assert_clean(data_dir)
    assert trees[0] == trees[1]
    assert len([name for name in trees[0] if name.startswith("videos_")]) == 10


def test_archives_of_cvdf_are_read_once_and_the_first_of_a_name_counts(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    published: Published,
    inline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where another shard stores the same name from a later archive, or was later."""
    source = tmp_path / "k400"
    good = [data for name, data in corpus.members.items() if "/t " in name]
    names = [f"{c * 11}_000001_000011.mp4" for c in "abcdef"]
    parts = {
        "train/part_0.tar.gz": {names[0]: corpus.refused, names[1]: good[1], names[4]: good[4]},
        "train/part_1.tar.gz": {names[2]: good[2], names[1]: good[0], names[5]: corpus.refused},
        "train/part_2.tar.gz": {names[5]: good[3], names[2]: good[2]},
        "val/part_0.tar.gz": {names[3]: good[3]},
        "replacement_for_corrupted_k400.tgz": {names[0]: good[0], names[4]: good[3]},
    }
    for name, members in parts.items():
        write_archive(source / name, members, top="./")
    for split, rows in (("train", [*names[:3], *names[4:]]), ("val", names[3:4])):
        lines = [f"zumba,{name[:11]},1,11,{split}\n" for name in rows]
        text = "label,youtube_id,time_start,time_end,split\n" + "".join(lines)
        (source / f"{split}.csv").write_text(text)
    run(tmp_path / "whole", source=source, max_bad_share=0.3)
    expected = published(library(tmp_path / "whole"))
    opened: list[str] = []
    read_archive = sources.read_archive

    def counting(archive_parts, *arguments, **keywords):
        opened.append(archive_parts[0].name)
        return read_archive(archive_parts, *arguments, **keywords)

    monkeypatch.setattr(sources, "read_archive", counting)
    for number, order in enumerate(([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [3, 1, 2, 5, 4])):
        data_dir = tmp_path / str(number)
        opened.clear()
        for index in order:
            shard(index, 5, data_dir, source=source)
        assert sorted(opened) == sorted(Path(name).name for name in parts)
        run(data_dir, source=source, max_bad_share=0.3)
        assert published(library(data_dir)) == expected, order
        assert len(opened) <= len(parts) + 2  # what was overwritten by a later archive's
        quarantine = hidden(data_dir) / "quarantine/videos_train"
        assert os.listdir(quarantine) == [names[5]]
        assert_clean(data_dir)


# --- the command ----------------------------------------------------------------------------------


def test_array_job_of_slurm_is_noticed_and_can_be_switched_off(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    published: Published,
    whole,
    inline,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    argv = flags(tmp_path)[3:]
    for name, value in {"MIN": 1, "MAX": 2, "COUNT": 2, "STEP": 1}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert run_command("preprocess", argv) == 0
    out, err = capsys.readouterr()
    assert "SLURM array, so --shard 2/2" in err
    assert "shard 2/2 done" in out and "without --shard writes the lists" in out
    assert run_command("preprocess", [*argv, "--shard", "1/2"]) == 0
    out, err = capsys.readouterr()
    assert "shard 1/2 done" in out and "SLURM" not in err
    assert run_command("preprocess", [*argv, "--shard", "1/1"]) == 0
    assert "6 usable of 8 listed" in capsys.readouterr().out
    assert published(library(tmp_path)) == whole[0]
    assert run_command("preprocess", [*argv, "--shard", "3/2"]) == 2
    assert "--shard 3/2 is not i/n" in capsys.readouterr().err


def test_slurm_script_shares_out_the_work_and_finishes_it(
    tmp_path: Path, corpus, write_archive: Callable, published: Published, whole
) -> None:
    """Its own command line, as each task of an array and then alone; two are enough."""
    script = ROOT / "examples/cluster/preprocess.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    write_archive(tmp_path / ARCHIVE, corpus.members)
    environment = {**os.environ, "SLURM_CPUS_PER_TASK": "1", "DATA_DIR": str(tmp_path)}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"SLURM_SUBMIT_DIR": str(ROOT)}
    for number, count in ((1, 2), (2, 2), (1, 1)):
        array = {"ID": number, "MIN": 1, "MAX": count, "COUNT": count, "STEP": 1}
        values = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()}
        ran = subprocess.run(
            ["bash", str(script), "--max_bad_share", "0.2"],
            env={**environment, **values},
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert ran.returncode == 0, ran.stderr
    assert published(library(tmp_path)) == whole[0]
    assert_clean(tmp_path)
