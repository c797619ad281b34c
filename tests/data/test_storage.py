"""What is written is whole and durable, and stays in the folder it was meant for."""

from pathlib import Path

import pytest

from kinetics400.data.storage import append_json_lines, read_json_lines, write_atomic
from kinetics400.errors import StorageError


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    (tmp_path / "precious").write_text("mine")
    return tmp_path / "precious"


@pytest.mark.parametrize("planted", ["file", ".file.tmp"])
def test_a_file_takes_the_place_of_a_link(planted: str, precious: Path, tmp_path: Path) -> None:
    (tmp_path / planted).symlink_to(precious)
    write_atomic(tmp_path / "file", "new")
    assert precious.read_text() == "mine"
    assert not (tmp_path / "file").is_symlink() and (tmp_path / "file").read_text() == "new"


def test_a_journal_is_not_written_through_a_link(precious: Path, tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").symlink_to(precious)
    with pytest.raises(StorageError, match=r"writing .*journal\.jsonl: Too many levels"):
        append_json_lines(tmp_path / "journal.jsonl", [{"step": 1}])
    assert precious.read_text() == "mine"


def test_a_torn_last_line_is_not_glued_to_the_next(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_text('{"step": 1}\n{"st')
    append_json_lines(journal, [{"step": 2}])
    assert read_json_lines(journal) == [{"step": 1}, {"step": 2}]
