"""Small files of a cache that follow from the rest of it, without image and teacher."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from kdcache.files import canonical_json
from kdcache.store import FileDigest, Grid, Manifest, make_receipt, plain
from kdcache.store.moments import statistics_files
from kdcache.verify.promises import read_whole

_GROUPS = ("statistics/zarr.json", "witness/zarr.json")
_WITNESS = {"row": "int64", "view": "int64", "thumbnail": "uint8"}
_DIGEST_BYTES = 16


def derived_files(
    root: Path, manifest: Manifest, grids: Mapping[str, Grid], broken: Collection[str]
) -> dict[str, bytes]:
    """What can be made of those broken files that follow from files which are whole.

    They are candidates: whether they are what the manifest promises, its digests tell.
    """
    files: dict[str, bytes] = {name: plain.group_file({}) for name in _GROUPS}
    for name, grid in grids.items():
        files[f"{name}/zarr.json"] = canonical_json(grid.metadata())
        files |= _receipts(manifest, grid, broken)
    files |= _descriptions(manifest, grids)
    files |= _readable(root, manifest)
    for grid in grids.values():
        files |= _statistics(root, manifest, grid, broken)
    return {name: data for name, data in files.items() if name in broken}


def _receipts(manifest: Manifest, grid: Grid, broken: Collection[str]) -> dict[str, bytes]:
    files = {}
    for block in range(grid.num_blocks):
        for view in range(grid.num_views):
            name = grid.receipt_file(block, view)
            shard = manifest.files.get(grid.shard_file(block, view))
            if name in broken and shard is not None:
                files[name] = make_receipt(grid, block, view, shard, manifest.versions)
    return files


def _descriptions(manifest: Manifest, grids: Mapping[str, Grid]) -> dict[str, bytes]:
    """The `zarr.json` of small arrays whose shape is known."""
    count, files = manifest.num_rows, manifest.files
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "index/image_id": ((count, 16), "uint8"),
        "index/label": ((count,), "int32"),
        "index/path_offsets": ((count + 1,), "int64"),
        "index/readable": ((count,), "bool"),
    }
    if "index/path_bytes/c/0" in files:
        shapes["index/path_bytes"] = ((files["index/path_bytes/c/0"].num_bytes,), "uint8")
    for name, grid in grids.items():
        for key in ("mean", "variance"):
            shapes[f"statistics/{name}/{key}"] = ((grid.spec.dim,), "float64")
    shapes |= _witness_shapes(files)
    return {
        f"{name}/zarr.json": canonical_json(plain.array_metadata(shape, np.dtype(dtype)))
        for name, (shape, dtype) in shapes.items()
    }


def _witness_shapes(files: Mapping[str, FileDigest]) -> dict[str, tuple[tuple[int, ...], str]]:
    if "witness/row/c/0" not in files:
        return {}
    count = files["witness/row/c/0"].num_bytes // 8
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    for name in {file.split("/")[1] for file in files if file.startswith("witness/")}:
        each: tuple[int, ...] = () if name in ("row", "view") else (_DIGEST_BYTES,)
        if name == "thumbnail":
            each = (32, 32, 3)
        shapes[f"witness/{name}"] = ((count, *each), _WITNESS.get(name, "uint8"))
    return shapes


def _readable(root: Path, manifest: Manifest) -> dict[str, bytes]:
    data = read_whole(root, manifest, "index/unreadable.json")
    if data is None:
        return {}
    readable = np.ones(manifest.num_rows, np.bool_)
    readable[[row["row"] for row in json.loads(data)]] = False
    return plain.array_files("index/readable", readable)


def _statistics(
    root: Path, manifest: Manifest, grid: Grid, broken: Collection[str]
) -> dict[str, bytes]:
    name = grid.spec.name
    mine = {f"statistics/{name}/mean/c/0", f"statistics/{name}/variance/c/0"}
    if not mine & set(broken) or any(
        file.startswith((f"{name}/c/", f"{name}_")) for file in broken
    ):
        return {}
    data = read_whole(root, manifest, "index/readable/c/0")
    return {} if data is None else statistics_files(root, grid, np.frombuffer(data, np.bool_))
