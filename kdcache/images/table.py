"""A list of images: a .csv or .tsv file with the columns `path` and, where known, `label`."""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kdcache.errors import DataError
from kdcache.images.folder import read_file
from kdcache.images.image_set import ImageSet, PathColumn, label_column

_NUM_NAMED = 3


@dataclass(frozen=True, eq=False)
class TableSet(ImageSet):
    """Images that a list names; relative paths start at the folder of the list."""

    root: Path

    def read(self, row: int) -> bytes:
        """The bytes of the file that one row of the list names."""
        return read_file(self.root, self.paths[row], self.source)


def open_table(source: str) -> TableSet:
    """The images of a list.

    Raises:
        DataError: the list has no column `path` or no rows, is not well-formed, names a file twice
            or one that is not there.
    """
    labels: dict[str, str | None] = {}
    lines: dict[str, int] = {}
    for line, path, label in _rows(source):
        if path in labels:
            message = f"`{path}` is on line {lines[path]} and on line {line} of `{source}`"
            raise DataError(message, hint="delete one of the two lines")
        labels[path], lines[path] = label, line
    if not labels:
        raise DataError(f"`{source}` lists no images", hint="add a line for each image")
    root = Path(source).absolute().parent
    _check_present(source, root, lines)
    paths = sorted(labels)
    classes = tuple(sorted({label for label in labels.values() if label is not None}))
    column = label_column([labels[path] for path in paths], classes)
    return TableSet(source, PathColumn(paths), column, classes, root=root)


def _rows(source: str) -> Iterator[tuple[int, str, str | None]]:
    """Line number, path and label of each row."""
    delimiter = "\t" if source.lower().endswith(".tsv") else ","
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        with open(source, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            _check_columns(source, reader.fieldnames or ())
            for row in reader:
                yield reader.line_num, *_cells(source, reader.line_num, row)
    except UnicodeDecodeError as error:
        hint = f"save it as UTF-8: `iconv -f LATIN1 -t UTF-8 {source}`"
        raise DataError(f"`{source}` is not UTF-8: {error}", hint=hint) from None
    except csv.Error as error:
        hint = "look at its quotation marks"
        raise DataError(f"`{source}` is not well-formed: {error}", hint=hint) from None


def _check_columns(source: str, columns: Sequence[str]) -> None:
    if "path" not in columns:
        found = ", ".join(f"`{column}`" for column in columns) or "nothing"
        message = f"the first line of `{source}` must name a column `path`; it names {found}"
        raise DataError(message, hint="make the first line `path` or `path,label`")


def _cells(source: str, line: int, row: dict[str, str | None]) -> tuple[str, str | None]:
    # DictReader files surplus cells under None, and fills missing ones with None.
    if None in row or None in row.values():
        message = f"line {line} of `{source}` has more or fewer cells than the first line"
        raise DataError(message, hint="put paths that hold the delimiter in quotation marks")
    written = row["path"]
    if not written:
        raise DataError(f"line {line} of `{source}` has no path", hint="delete the line")
    path = PurePosixPath(written.replace("\\", "/")).as_posix()
    return path, row.get("label") or None


def _check_present(source: str, root: Path, lines: dict[str, int]) -> None:
    missing = [path for path in lines if not os.path.isfile(root / path)]
    if missing:
        named = ", ".join(f"`{path}` (line {lines[path]})" for path in missing[:_NUM_NAMED])
        message = f"{len(missing):,} of {len(lines):,} files of `{source}` are missing: {named}"
        hint = f"paths start at `{root}`; correct the list, or move it beside its images"
        raise DataError(message, hint=hint)
