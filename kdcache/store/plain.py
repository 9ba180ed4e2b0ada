"""The small arrays of a cache (index, head, statistics, witness): Zarr v3, one chunk, raw bytes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.errors import CacheCorrupt
from kdcache.files import canonical_json


def group_file(attributes: Mapping[str, Any]) -> bytes:
    """The `zarr.json` of a group."""
    return canonical_json({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)})


def array_files(name: str, values: np.ndarray) -> dict[str, bytes]:
    """The files of one array: its `zarr.json`, and its values unless it holds none."""
    files = {f"{name}/zarr.json": canonical_json(array_metadata(values.shape, values.dtype))}
    if values.size:
        chunk = "/".join(["c", *("0" for _ in values.shape)])
        files[f"{name}/{chunk}"] = np.ascontiguousarray(values, _little(values.dtype)).tobytes()
    return files


def load_array(root: Path, name: str) -> np.ndarray:
    """Read back what `array_files` made."""
    metadata = json.loads((root / name / "zarr.json").read_bytes())
    shape = tuple(metadata["shape"])
    values = np.empty(shape, _little(np.dtype(metadata["data_type"])))
    if values.size:
        path = root / name / "/".join(["c", *("0" for _ in shape)])
        data = path.read_bytes()
        if len(data) != values.nbytes:
            raise CacheCorrupt(
                f"`{path}` has {len(data)} bytes, and its zarr.json says {values.nbytes}",
                hint="fetch or extract the cache again",
            )
        values = np.frombuffer(data, values.dtype).reshape(shape)
    values.flags.writeable = False
    return values


def load_attributes(root: Path, name: str) -> dict[str, Any]:
    """The attributes of a group or an array."""
    attributes: dict[str, Any] = json.loads((root / name / "zarr.json").read_bytes())["attributes"]
    return attributes


def array_metadata(shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    """The `zarr.json` of an array of this shape and number type."""
    one_byte = dtype.itemsize == 1
    codec = (
        {"name": "bytes"} if one_byte else {"name": "bytes", "configuration": {"endian": "little"}}
    )
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [max(size, 1) for size in shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": np.zeros((), dtype).item(),
        "codecs": [codec],
        "attributes": {},
        "storage_transformers": [],
    }


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")
