"""Which videos `preprocess` is to find, and their labels: list files, CSV files, class folders."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from kinetics400.config.preprocess import PreprocessConfig
from kinetics400.data.annotations import VideoTable, format_list, overlap, parse_list
from kinetics400.data.housekeeping import Housekeeping
from kinetics400.data.library import SPLITS, list_name
from kinetics400.data.listing import (
    find_csv,
    read_names,
    rows_from_csv,
    rows_from_folders,
    rows_on_disk,
)
from kinetics400.data.sources import Cvdf, Folder
from kinetics400.errors import InputError

Rows = list[tuple[str, int]]


class Lists:
    """The list of each split as it came, from wherever it came.

    Attributes:
        originals: split → bytes of a list file. Complete after `settle`.
        n_missing: split → lines of CSV annotations that have no video: no copy is complete.

    Raises:
        InputError: a list that the user named is bad.
    """

    def __init__(self, config: PreprocessConfig, keeper: Housekeeping) -> None:
        self.num_classes = config.num_classes
        self.keeper = keeper
        self.names = read_names(config.label_names, config.num_classes)
        self.originals: dict[str, bytes] = {}
        self.n_missing: dict[str, int] = {}
        self._csv_rows: dict[str, Rows] = {}
        for split, path in (("train", config.train_list), ("val", config.val_list)):
            if path is not None:
                self._read(split, path, f"--{split}_list {path}")
        self._parse()

    def open_splits(self) -> list[str]:
        """Splits whose videos nobody has named yet."""
        return [split for split in SPLITS if split not in {*self.originals, *self._csv_rows}]

    def add(self, split: str, data: bytes) -> None:
        """Take the list of an archive, unless the user has named another."""
        if split in self.open_splits():
            self.originals[split] = data
            self._parse()

    def look_in_library(self) -> None:
        """Take the lists that an earlier run has kept, or that the user has put there."""
        for split in self.open_splits():
            if data := self.keeper.original_list(split):
                self.originals[split] = data

    def look_beside(
        self, source: Cvdf | Folder, files: Mapping[str, Iterable[str]] | None = None
    ) -> None:
        """Take list files, CSV annotations or class folders of a source.

        Args:
            source: where to look.
            files: split → paths of the videos in it, for class folders.
        """
        for split in self.open_splits():
            path = source.root / list_name(split)
            csv_file = find_csv(source.root, split)
            if path.is_file():
                self._read(split, path, str(path))
            elif csv_file is not None:
                self._read(split, csv_file, str(csv_file))
            elif files is not None and source.split_root(split) != source.root:
                root = str(source.split_root(split))
                rows = rows_from_folders(files[split], source=root, names=self.names)
                self.originals[split] = format_list(rows)

    def listed(self) -> dict[str, set[str]]:
        """Names per split, of those that are known."""
        known = {split: table.rows() for split, table in self._parse().items()}
        rows = {**known, **self._csv_rows}
        return {split: {name for name, _ in rows[split]} for split in SPLITS if split in rows}

    def settle(self, files: Mapping[str, Iterable[str]]) -> dict[str, VideoTable]:
        """Turn CSV rows into lists of the videos that exist; returns all lists.

        Args:
            files: split → names of the videos that were found.

        Raises:
            InputError: a split has no list, or lists contradict each other.
        """
        for split, rows in self._csv_rows.items():
            found, self.n_missing[split] = rows_on_disk(rows, files[split])
            self.originals[split] = format_list(found)
        self._csv_rows = {}
        self.check_complete()
        return self._parse()

    def check_complete(self) -> None:
        """Raise `InputError` if a split has no list."""
        if missing := self.open_splits():
            raise InputError(
                f"no {' and '.join(list_name(split) for split in missing)} in "
                f"{self.keeper.library}, nor other annotations. Put "
                f"{'them' if len(missing) > 1 else 'it'} there, or name another with "
                f"{' and '.join(f'--{split}_list' for split in missing)}."
            )

    def _read(self, split: str, path: Path, source: str) -> None:
        if not path.is_file():
            raise InputError(f"{source} is not a file.")
        data = path.read_bytes()
        if path.suffix.lower() == ".csv":
            self._csv_rows[split] = rows_from_csv(data, source=source, names=self.names)
        else:
            parse_list(data, source=source, num_classes=self.num_classes)
            self.originals[split] = data

    def _parse(self) -> dict[str, VideoTable]:
        tables = {
            split: parse_list(data, source=list_name(split), num_classes=self.num_classes)
            for split, data in self.originals.items()
        }
        if len(tables) == len(SPLITS) and (both := overlap(tables["train"], tables["val"])):
            raise InputError(
                f"{len(both)} video(s) stand in the train list and in the val list, so the model "
                f"would be scored on what it has seen: {', '.join(map(repr, both[:10]))}"
            )
        return tables
