"""The manifest: one row per usable video of a split. No torch."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from kinetics400.data.annotations import PackedText, VideoTable
from kinetics400.data.library import HIDDEN, find_library
from kinetics400.errors import InputError


def manifest_path(library: Path, split: str) -> Path:
    """The file that describes a split's videos."""
    return library / HIDDEN / f"manifest_{split}.npz"


@dataclass(frozen=True, eq=False)
class Manifest:
    """One row per usable video of a split, in the order of its list; arrays of one length.

    The file is a plain .npz: `numpy.load` reads it anywhere.
    """

    names: PackedText
    """As in the list."""
    labels: np.ndarray
    n_frames: np.ndarray
    fps: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    n_bytes: np.ndarray
    sha256: np.ndarray
    """(videos, 32) uint8, of the stored file."""
    sources: PackedText
    """Name of the original below its split's folder."""
    is_pyramid: np.ndarray
    """bool: stored as a temporal pyramid, or kept as the original file."""

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], labels: Sequence[int]) -> "Manifest":
        """Pack the journal's rows of the usable videos."""
        digests = b"".join(bytes.fromhex(row["sha256"]) for row in rows)
        return cls(
            names=PackedText.pack(row["path"] for row in rows),
            labels=np.array(labels, np.int64),
            n_frames=np.array([row["n_frames"] for row in rows], np.int64),
            fps=np.array([row["fps"] for row in rows], np.float64),
            widths=np.array([row["width"] for row in rows], np.int32),
            heights=np.array([row["height"] for row in rows], np.int32),
            n_bytes=np.array([row["n_bytes"] for row in rows], np.int64),
            sha256=np.frombuffer(digests, np.uint8).reshape(-1, 32),
            sources=PackedText.pack(row["source"] for row in rows),
            is_pyramid=np.array([row["kind"] == "pyramid" for row in rows], np.bool_),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def to_bytes(self) -> bytes:
        """The file's content; the same rows give the same bytes."""
        arrays: dict[str, np.ndarray] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, PackedText):
                arrays[f"{field.name}_utf8"] = value.blob
                arrays[f"{field.name}_offsets"] = value.offsets
            else:
                arrays[field.name] = value
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        return file.getvalue()


def read_manifest(library: Path, split: str) -> Manifest | None:
    """A split's manifest; None if there is none.

    Raises:
        InputError: the file is damaged, or of another version.
    """
    path = manifest_path(library, split)
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values = {
                field.name: PackedText(
                    arrays[f"{field.name}_utf8"], arrays[f"{field.name}_offsets"]
                )
                if field.name in ("names", "sources")
                else arrays[field.name]
                for field in fields(Manifest)
            }
        manifest = Manifest(**values)  # type: ignore[arg-type]
        _check(manifest)
    except (
        *(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
        *(RuntimeError, TypeError),  # zipfile's: encrypted, unknown compression; a lone .npy
    ) as error:
        raise InputError(
            f"{path} is not a manifest ({error}); repeat 'python -m data.preprocess' to write it "
            "anew."
        ) from error
    return manifest


def _check(manifest: Manifest) -> None:
    """Raise `ValueError` if the arrays do not describe the same videos."""
    for field in fields(Manifest):
        value = getattr(manifest, field.name)
        if len(value) != len(manifest):
            raise ValueError(f"{len(value)} {field.name} of {len(manifest)} videos")
        if isinstance(value, PackedText) and (
            value.offsets[0] != 0
            or value.offsets[-1] != len(value.blob)
            or (np.diff(value.offsets) < 0).any()
        ):
            raise ValueError(f"{field.name} do not fit together")
    if manifest.sha256.shape[1:] != (32,):
        raise ValueError("sha256 are no SHA-256")


def count_originals(data_dir: Path | str, split: str, table: VideoTable) -> int:
    """How many videos of an opened split are not known to be temporal pyramids."""
    library = find_library(data_dir)
    manifest = read_manifest(library, split) if library is not None else None
    if manifest is None:
        return len(table)
    pyramids = {manifest.names[int(i)] for i in np.flatnonzero(manifest.is_pyramid)}
    return sum(table.name(i) not in pyramids for i in range(len(table)))
