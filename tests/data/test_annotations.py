import time
from pathlib import Path

import pytest

from kinetics400.data.annotations import (
    VideoTable,
    label_names,
    overlap,
    parse_list,
    read_list,
    write_list,
)
from kinetics400.errors import InputError


def parse(data: bytes, num_classes: int = 400) -> list[tuple[str, int]]:
    return parse_list(data, source="list.txt", num_classes=num_classes).rows()


def test_label_names_are_those_of_kinetics400() -> None:
    names = label_names()
    assert (len(names), names[0], names[116], names[399]) == (
        400,
        "abseiling",
        "eating spaghetti",
        "zumba",
    )
    assert list(names) == sorted(set(names))
    video = pytest.importorskip("torchvision.models.video")
    assert list(names) == video.R3D_18_Weights.KINETICS400_V1.meta["categories"]


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b"\xef\xbb\xbfa.mp4 0\n", [("a.mp4", 0)]),
        (b"a.mp4 0\r\nb.mp4 399\r\n", [("a.mp4", 0), ("b.mp4", 399)]),
        (b"a b  c.mp4 7\n", [("a b  c.mp4", 7)]),
        (b"person's head.mp4 1\n", [("person's head.mp4", 1)]),
        (b"/mnt/k400/a.mp4 1\n", [("/mnt/k400/a.mp4", 1)]),
        (b"a.mp4 1", [("a.mp4", 1)]),
        ("übung/跳.webm 3\n".encode(), [("übung/跳.webm", 3)]),
        (b"-xYz_09.mp4 5\n", [("-xYz_09.mp4", 5)]),
        (b"#a..b.MKV 5\n\n\n", [("#a..b.MKV", 5)]),
    ],
)
def test_unusual_lists_are_accepted(data: bytes, rows: list[tuple[str, int]]) -> None:
    assert parse(data) == rows


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"a.mp4", "no label"),
        (b"a.mp4 ", "not a whole number"),
        (b" 3", "no path"),
        (b"a.mp4 1.0", "not a whole number"),
        (b"a.mp4 1e2", "not a whole number"),
        (b"a.mp4 -1", "not a whole number"),
        (b"a.mp4 +1", "not a whole number"),
        ("a.mp4 ١".encode(), "not a whole number"),
        (b"a.mp4 400", "not in 0 … 399"),
        (b"a.mp4 99999999999999999999999", "not in 0 … 399"),
        (b"a.mp4 abseiling", "not a whole number"),
        (b"a.mp4,3", "no label"),
        (b"a.mp4\t3", "U+0009"),
        (b"a.mp4 300 3", "does not end in"),
        (b"a.txt 3", "does not end in"),
        (b"../a.mp4 3", "'..'"),
        (b"x/../../a.mp4 3", "'..'"),
        (b"a\x00.mp4 3", "U+0000"),
        (b"a\x1b[2J.mp4 3", "U+001B"),
        ("a\u2028.mp4 3".encode(), "U+2028"),
        ("a\x9b2J.mp4 3".encode(), "U+009B"),
        (b"a.mp4 3\rb.mp4 4", "U+000D"),
        (b"a.mp4  3", "does not end in"),
        (b"", "empty"),
        (b"first.mp4 4", "already on line 1"),
        (b"a" * 10_000_000 + b".mp4 4", "characters long"),
    ],
)
def test_bad_line_is_refused_with_its_number(line: bytes, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse(b"first.mp4 0\n" + line + b"\nlast.mp4 1\n")
    assert "line 2:" in str(error.value)
    assert message in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n"])
def test_empty_list_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="empty"):
        parse(data)


def test_text_that_is_not_utf8_is_refused_with_its_line() -> None:
    with pytest.raises(InputError, match="line 3: not UTF-8"):
        parse(b"a.mp4 0\nb.mp4 1\n\xff\xfe.mp4 2\n")


def test_the_first_ten_problems_are_shown() -> None:
    with pytest.raises(InputError) as error:
        parse(b"ok.mp4 0\n" + b"bad\n" * 25)
    text = str(error.value)
    assert "25 bad line(s) of 26" in text and "and 15 more" in text
    assert "line 11:" in text and "line 12:" not in text


def test_absent_list_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        read_list(tmp_path / "nowhere.txt", num_classes=400)


def test_written_list_reads_back(tmp_path: Path) -> None:
    rows = [("a b.mp4", 3), ("ü.mkv", 0)]
    write_list(tmp_path / "list.txt", rows)
    assert read_list(tmp_path / "list.txt", num_classes=4).rows() == rows


def test_overlap_of_train_and_val_is_found() -> None:
    train = VideoTable.from_rows([("a.mp4", 0), ("b.mp4", 1)])
    val = VideoTable.from_rows([("b.mp4", 1), ("c.mp4", 1)])
    assert overlap(train, val) == ["b.mp4"]


def test_quarter_of_a_million_rows_take_about_a_second() -> None:
    data = b"".join(
        b"abcdefghijk_%06d_%06d.mp4 %d\n" % (i, i + 10, i % 400) for i in range(250_000)
    )
    start = time.process_time()
    table = parse_list(data, source="big", num_classes=400)
    seconds = time.process_time() - start
    assert len(table) == 250_000 and table.name(249_999) == "abcdefghijk_249999_250009.mp4"
    assert seconds < 3  # 0.3 s on an idle core; room for a crowded one
