"""FORMAT.md is enough: a reader written from it alone, with json, struct and numpy."""

import hashlib
import json
import struct

import numpy as np
from store import making

# Nothing in `read_*` below uses kdcache or zarr: each line follows a sentence of FORMAT.md.


def read_row(root, array, row, view):
    metadata = json.loads((root / array / "zarr.json").read_text())
    shard_rows = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
    chunk_rows = metadata["codecs"][0]["configuration"]["chunk_shape"][0]
    num_rows, _, dim = metadata["shape"]
    dtype = {"float16": "<f2", "float32": "<f4"}[metadata["data_type"]]
    width = dim * np.dtype(dtype).itemsize
    block = row // shard_rows
    data = (root / array / "c" / str(block) / str(view) / "0").read_bytes()
    num_chunks = -(-(min(num_rows - block * shard_rows, shard_rows)) // chunk_rows)
    index = b""
    for chunk in range(shard_rows // chunk_rows):
        here = (chunk * chunk_rows * width, chunk_rows * width)
        index += struct.pack("<QQ", *(here if chunk < num_chunks else (2**64 - 1, 2**64 - 1)))
    assert data[num_chunks * chunk_rows * width : -4] == index
    start = row % shard_rows * width
    return np.frombuffer(data[start : start + width], dtype)


def read_path(root, row):
    data = (root / "index/path_bytes/c/0").read_bytes()
    offsets = np.frombuffer((root / "index/path_offsets/c/0").read_bytes(), "<i8")
    return data[offsets[row] : offsets[row + 1]].decode()


def test_rows_are_where_the_page_says(whole):
    for spec in making.SPECS:
        values = making.values_of(spec).astype(spec.dtype)
        for row, view in ((0, 0), (255, 1), (256, 2), (511, 0), (512, 1), (1099, 2)):
            assert np.array_equal(read_row(whole, spec.name, row, view), values[row, view])


def test_index_is_where_the_page_says(whole):
    index = making.index_of()
    ids = (whole / "index/image_id/c/0/0").read_bytes()
    labels = struct.unpack("<1100i", (whole / "index/label/c/0").read_bytes())
    readable = (whole / "index/readable/c/0").read_bytes()
    classes = json.loads((whole / "index/zarr.json").read_text())["attributes"]["classes"]
    assert ids[16 * 7 : 16 * 8] == index.image_ids[7].tobytes()
    assert labels == tuple(index.labels)
    assert classes == list(index.classes)
    assert read_path(whole, 1099) == index.paths[1099]
    assert [row for row in range(1100) if not readable[row]] == list(making.UNREADABLE)


def test_manifest_promises_every_file_and_nothing_else(whole):
    files = making.tree(whole)
    manifest = json.loads(files.pop("manifest.json"))
    del files["zarr.json"]  # it follows from the members
    assert manifest["format"] == 1
    assert manifest["recipe"] == hashlib.sha256(files["recipe.json"]).hexdigest()
    assert manifest["files"] == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    assert manifest["parent"] is None
    receipt = json.loads(files["receipts/feature/4.1.json"])
    assert receipt["rows"] == [1024, 1100]
    assert receipt["sha256"] == manifest["files"]["feature/c/4/1/0"]["sha256"]
