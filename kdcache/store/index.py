"""The index of a cache: what its rows are, and which of them could be read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from kdcache.files import canonical_json
from kdcache.shapes import Bool, Int32, UInt8
from kdcache.store import plain


@dataclass(frozen=True)
class RowIndex:
    """What the rows of a cache are."""

    image_ids: UInt8[np.ndarray, "N 16"]
    labels: Int32[np.ndarray, " N"]
    """-1 where an image has none."""
    classes: Sequence[str]
    paths: Sequence[str]
    """Relative to the image folder, '/'-separated."""


def index_files(index: RowIndex) -> dict[str, bytes]:
    """What is known of the rows before the first image is read."""
    encoded = [_encode(path) for path in index.paths]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(path) for path in encoded], out=offsets[1:])
    return {
        "index/zarr.json": plain.group_file({"classes": list(index.classes)}),
        **plain.array_files("index/image_id", index.image_ids),
        **plain.array_files("index/label", index.labels),
        **plain.array_files("index/path_bytes", np.frombuffer(b"".join(encoded), np.uint8)),
        **plain.array_files("index/path_offsets", offsets),
    }


def readable_files(
    index: RowIndex, readable: Bool[np.ndarray, " N"], unreadable: Mapping[int, str]
) -> dict[str, bytes]:
    """What is known of the rows when all images have been read."""
    rows = [
        {
            "row": row,
            "path": _encode(index.paths[row]).decode("utf-8", "replace"),
            "id": index.image_ids[row].tobytes().hex(),
            "reason": unreadable[row],
        }
        for row in sorted(unreadable)
    ]
    return {
        **plain.array_files("index/readable", readable),
        "index/unreadable.json": canonical_json(rows),
    }


def load_image_ids(root: Path) -> UInt8[np.ndarray, "N 16"]:
    """The image id of each row, also of a cache under way."""
    return plain.load_array(root, "index/image_id")


def load_paths(root: Path) -> list[str]:
    """The path of each row."""
    data = plain.load_array(root, "index/path_bytes").tobytes()
    offsets = plain.load_array(root, "index/path_offsets").tolist()
    return [
        data[start:stop].decode("utf-8", "surrogateescape") for start, stop in pairwise(offsets)
    ]


def load_unreadable(root: Path) -> dict[int, str]:
    """Why rows of a finished cache have no targets."""
    rows = json.loads((root / "index/unreadable.json").read_bytes())
    return {row["row"]: row["reason"] for row in rows}


def _encode(path: str) -> bytes:
    # A file's name is bytes, and Python keeps those that are not UTF-8 as surrogates.
    return path.encode("utf-8", "surrogateescape")
