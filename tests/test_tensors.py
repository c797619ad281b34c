"""Tensors on disk: what comes back is what was asked for, or an InputError."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kinetics400.errors import InputError
from kinetics400.tensors import MOST_HEADER_BYTES, load_tensors, save_tensors

LIKE = {"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.int64)}


def write(file: Path, header: str, values: bytes = b"") -> Path:
    data = header.encode()
    file.write_bytes(len(data).to_bytes(8, "little") + data + values)
    return file


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    save_tensors(file, LIKE, {"format": "pt"})
    for found in (load_tensors(file), load_tensors(file, LIKE)):
        assert found.keys() == LIKE.keys()
        assert all(torch.equal(found[name], value) for name, value in LIKE.items())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": LIKE["a"]}, "too many or too few: 'b'"),
        ({**LIKE, "c": torch.ones(2)}, "too many or too few: 'c'"),
        ({**LIKE, "a": torch.zeros(3, 2)}, r"a is \[3, 2\], not \[2, 3\]"),
        ({**LIKE, "a": torch.zeros(2, 3, dtype=torch.float16)}, "a is F16, not F32"),
    ],
)
def test_other_tensors_are_refused(other: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    save_file(other, tmp_path / "t.safetensors")
    with pytest.raises(InputError, match=message):
        load_tensors(tmp_path / "t.safetensors", LIKE)


def test_a_huge_tensor_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
    file = write(tmp_path / "t.safetensors", json.dumps({"a": entry}))
    with pytest.raises(InputError, match=r"a is \[1099511627776\]"):
        load_tensors(file, {"a": torch.zeros(2)})
    with pytest.raises(InputError, match="does not hold"):
        load_tensors(file)


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[2],"shape":[1],"data_offsets":[0,4]}}',
    ],
)
def test_a_name_given_twice_is_refused(header: str, tmp_path: Path) -> None:
    """Readers take the first or the last: what one checks another may not load."""
    file = write(tmp_path / "t.safetensors", header, bytes(4))
    with pytest.raises(InputError, match="names something twice"):
        load_tensors(file)


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    file.write_bytes((MOST_HEADER_BYTES + 1).to_bytes(8, "little"))
    with pytest.raises(InputError, match="its header claims 16,777,217 bytes"):
        load_tensors(file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        bytes(8),
        b"\x02" + bytes(7) + b"[]",
        (99999).to_bytes(8, "little") + b"[" * 99999,
    ],
)
def test_what_is_no_file_of_tensors_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.safetensors does not hold"):
        load_tensors(tmp_path / "t.safetensors")
    with pytest.raises(InputError, match=r"absent does not hold"):
        load_tensors(tmp_path / "absent")
