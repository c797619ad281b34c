from pathlib import Path

import pytest

from kinetics400.data.annotations import label_names
from kinetics400.data.listing import (
    find_csv,
    read_names,
    rows_from_csv,
    rows_from_folders,
    rows_on_disk,
)
from kinetics400.errors import InputError

NAMES = label_names()
HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


def csv_rows(text: str | bytes, names=NAMES) -> list[tuple[str, int]]:
    data = text.encode() if isinstance(text, str) else text
    return rows_from_csv(data, source="train.csv", names=names)


# --- CSV ------------------------------------------------------------------------------------------


def test_csv_of_cvdf_gives_its_file_names_and_labels() -> None:
    # Three lines as CVDF ships them, quotes and an id that begins with a dash included.
    text = (
        HEADER
        + "testifying,---QUuC4vJs,84,94,validate,0\n"
        + '"massaging person\'s head",_4K1yIDcR8E,3,13,validate,1\n'
        + "shooting goal (soccer),a-b_c-d_e-f,120,130,validate,0\n"
    )
    assert csv_rows(text) == [
        ("---QUuC4vJs_000084_000094.mp4", NAMES.index("testifying")),
        ("_4K1yIDcR8E_000003_000013.mp4", NAMES.index("massaging person's head")),
        ("a-b_c-d_e-f_000120_000130.mp4", NAMES.index("shooting goal (soccer)")),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + HEADER + "zumba,x,1,11,train,0\n",
        HEADER.replace("\n", "\r\n") + "zumba,x,1,11,train,0\r\n",
        HEADER + "zumba,x,1,11,train,0",
        "time_end,time_start,youtube_id,label\n11,1,x,zumba\n",
        HEADER + "Zumba ,x,01,000011,train,0\n",
    ],
    ids=["byte order mark", "CRLF", "no final newline", "other order", "spelling"],
)
def test_harmless_differences_are_accepted(text: str) -> None:
    assert csv_rows(text) == [("x_000001_000011.mp4", 399)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "zumba,x,1,11\nZumbaa,y,1,11\n", r"1 bad line\(s\) of 2:\n  line 3: .*'Zumbaa'"),
        (HEADER + "zumba,x,1.5,11\n", r"line 2: times '1\.5', '11' are not whole seconds"),
        (HEADER + "zumba,x,-1,11\n", "times '-1'"),
        (HEADER + "zumba,x,1,\n", "times '1', ''"),
        (HEADER + "zumba\n", "times '', ''"),
        (HEADER + ",x,1,11\n", "unknown class ''"),
        ("label,youtube_id,time_start\nzumba,x,1\n", r"lacks the column\(s\) time_end"),
        ("a\n", r"lacks the column\(s\) label, youtube_id, time_start, time_end"),
        ("", "lacks the column"),
        (b"label,youtube_id,time_start,time_end\nzumba,\xff,1,11\n", "no CSV in UTF-8"),
        (HEADER + '"zumba,x,1,11\n', "no CSV in UTF-8"),
        (HEADER + 'zumba,"x"y,1,11\n', "no CSV in UTF-8"),
    ],
)
def test_bad_csv_is_one_error_that_names_the_place(text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        csv_rows(text)
    assert "train.csv" in str(error.value)


def test_only_the_first_ten_bad_lines_are_shown() -> None:
    with pytest.raises(InputError, match=r"25 bad line\(s\) of 26") as error:
        csv_rows(HEADER + "zumba,x,1,11\n" + "nonsense,x,1,11\n" * 25)
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == [f"  line {n}" for n in range(3, 13)]


def test_csv_needs_class_names() -> None:
    with pytest.raises(InputError, match="--label_names"):
        csv_rows(HEADER, names=None)


def test_rows_without_a_video_are_counted_and_others_named_as_they_lie() -> None:
    rows = [("a.mp4", 1), ("b.mp4", 2), ("c.mp4", 3), ("d.mp4", 4)]
    files = iter(["zumba/b.mp4", "d.mp4", "surplus.mp4", "a.mp4", "other/a.mp4"])
    # Of two files with one name the first in the alphabet counts, whatever the order on disk.
    assert rows_on_disk(rows, files) == (
        [("a.mp4", 1), ("zumba/b.mp4", 2), ("d.mp4", 4)],
        1,
    )


def test_csv_is_found_in_both_places(tmp_path: Path) -> None:
    assert find_csv(tmp_path, "val") is None
    (tmp_path / "val.csv").touch()
    assert find_csv(tmp_path, "val") == tmp_path / "./val.csv"
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/val.csv").touch()
    assert find_csv(tmp_path, "val") == tmp_path / "annotations/val.csv"
    assert find_csv(tmp_path, "train") is None


# --- class folders --------------------------------------------------------------------------------


@pytest.mark.parametrize("between", [" ", "_"])
def test_all_400_class_folders_are_known_with_spaces_and_with_underscores(between: str) -> None:
    files = [f"{name.replace(' ', between)}/x.mp4" for name in NAMES]
    rows = rows_from_folders(reversed(files), source="videos_train", names=NAMES)
    assert sorted(rows, key=lambda row: row[1]) == [(file, i) for i, file in enumerate(files)]
    assert [row[0] for row in rows] == sorted(files)  # the order on disk does not matter


def test_folders_without_known_names_are_numbered_in_alphabetical_order() -> None:
    files = ["b c/1.avi", "B/1.avi", "a/deep/2.avi", "a/1.avi"]
    assert rows_from_folders(files, source="train", names=None) == [
        ("B/1.avi", 0),
        ("a/1.avi", 1),
        ("a/deep/2.avi", 1),
        ("b c/1.avi", 2),
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["zumba/a.mp4", "loose.mp4", "also.mp4"], r"\(2 lie in none\).*--train_list"),
        ([], "no list file"),
        (["zumba/a.mp4", "zumbaa/a.mp4"], r"1 folder\(s\) that are no class: 'zumbaa'"),
        ([f"x{i:02}/a.mp4" for i in range(30)], r"30 folder\(s\).*'x09'\. Name"),
    ],
)
def test_folders_that_are_no_classes_are_refused(files: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        rows_from_folders(files, source="videos_train", names=NAMES)
    assert "videos_train" in str(error.value)


# --- class names ----------------------------------------------------------------------------------


def test_class_names_come_from_a_file_or_are_those_of_kinetics(tmp_path: Path) -> None:
    assert read_names(None, 400) == NAMES
    assert read_names(None, 101) is None
    file = tmp_path / "names.txt"
    file.write_text("push left\r\n\n  über\n")
    assert read_names(file, 2) == ("push left", "über")
    with pytest.raises(InputError, match="has 2 names, --num_classes is 3"):
        read_names(file, 3)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        read_names(file, 1)
    with pytest.raises(InputError, match="cannot be read"):
        read_names(tmp_path / "absent.txt", 1)
