"""The layout of a cache on disk: which array value lies in which byte of which file.

Everything here follows from FORMAT.md, and nothing here touches a file.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np

FORMAT = 2
"""The newest version of FORMAT.md that this code knows; `group.format_of` says which one a cache
has."""

ARRAYS = ("embedding", "feature")
"""The names that an array of targets may have."""

SHARD_BYTES = 64 << 20
MIN_SHARD_ROWS = 1024
MAX_SHARD_ROWS = 65_536
CHUNK_BYTES = 1 << 20
_FLOAT16_BYTES = 2  # rows are counted for float16, so that all types are cut at the same rows

PIECE_ROWS = 256
"""Rows that are computed, kept and lost together while a cache is made; divides every shard."""

SIDES = ("scale", "min")
"""What lies beside an array `<name>` of uint8, in float32: `<name>_scale` and `<name>_min`."""

Dtype = Literal["float16", "float32", "uint8"]

# Of uint8: the difference of two such values is still a float32.
_LARGEST = {"float16": 65504.0, "float32": float(np.finfo(np.float32).max), "uint8": 1e38}
_ABSENT = 2**64 - 1  # offset and size of an inner chunk that a shard does not hold


@dataclass(frozen=True)
class ArraySpec:
    """What the caller decides of one array `[N, V, dim]`: its name, width and number type."""

    name: str
    dim: int
    dtype: Dtype = "float16"

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Of the numbers on disk."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """Of the values, as they are given and read."""
        return np.dtype("<f4") if self.is_quantised else self.numpy_dtype

    @property
    def is_quantised(self) -> bool:
        return self.dtype == "uint8"

    @property
    def largest(self) -> float:
        """The largest magnitude that a value may have."""
        return _LARGEST[self.dtype]


@dataclass(frozen=True)
class Grid:
    """How one array is cut: blocks of `shard_rows` rows, one file for each block and view."""

    spec: ArraySpec
    num_rows: int
    num_views: int
    shard_rows: int
    chunk_rows: int
    is_side: bool = False
    """An array `[N, V]`, of one number for each row and view."""

    @classmethod
    def of(cls, spec: ArraySpec, num_rows: int, num_views: int) -> "Grid":
        """The grid that this version of the format prescribes; the cuts depend on D alone."""
        shard_rows = min(max(_rows_in(SHARD_BYTES, spec.dim), MIN_SHARD_ROWS), MAX_SHARD_ROWS)
        chunk_rows = min(_rows_in(CHUNK_BYTES, spec.dim), shard_rows)
        return cls(spec, num_rows, num_views, shard_rows, chunk_rows)

    @classmethod
    def from_metadata(cls, name: str, metadata: Mapping[str, Any]) -> "Grid | None":
        """The grid that a `zarr.json` describes, or None where the array is cut in another way."""
        try:
            num_rows, num_views, *row_shape = metadata["shape"]
            shard_rows = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
            chunk_rows = metadata["codecs"][0]["configuration"]["chunk_shape"][0]
        except (KeyError, IndexError):
            return None
        spec = ArraySpec(name, row_shape[0] if row_shape else 1, metadata["data_type"])
        grid = cls(spec, num_rows, num_views, shard_rows, chunk_rows, is_side=not row_shape)
        same = all(metadata.get(key) == value for key, value in grid.metadata().items())
        return grid if same else None

    def parts(self) -> tuple["Grid", ...]:
        """The arrays on disk that hold this one: itself and, of uint8, scale and minimum."""
        if not self.spec.is_quantised:
            return (self,)
        sides = (ArraySpec(f"{self.spec.name}_{side}", 1, "float32") for side in SIDES)
        return (self, *(replace(self, spec=spec, is_side=True) for spec in sides))

    def metadata(self) -> dict[str, Any]:
        """The array's `zarr.json`: Zarr v3, sharded, not compressed."""
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        row_shape = list(self.row_shape)
        sharding = {
            "chunk_shape": [self.chunk_rows, 1, *row_shape],
            "codecs": [{"name": "bytes"} if self.spec.is_quantised else little],
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [self.num_rows, self.num_views, *row_shape],
            "data_type": self.spec.dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.shard_rows, 1, *row_shape]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0 if self.spec.is_quantised else 0.0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "dimension_names": ["row", "view", "dim"][: 2 + len(row_shape)],
            "attributes": self._attributes(),
            "storage_transformers": [],
        }

    def _attributes(self) -> dict[str, str]:
        if not self.spec.is_quantised:
            return {}
        name = self.spec.name
        return {
            "value": f"{name}_min[row, view] + {name}_scale[row, view] * {name}[row, view, dim],"
            " in float32"
        }

    @property
    def row_shape(self) -> tuple[int, ...]:
        """What there is of each row and view."""
        return () if self.is_side else (self.spec.dim,)

    @property
    def num_blocks(self) -> int:
        return -(-self.num_rows // self.shard_rows)

    @property
    def row_bytes(self) -> int:
        return self.spec.dim * self.spec.numpy_dtype.itemsize

    def block_rows(self, block: int) -> range:
        """The rows of a block; the last block ends with the array."""
        start = block * self.shard_rows
        return range(start, min(start + self.shard_rows, self.num_rows))

    def stored_rows(self, block: int) -> int:
        """Rows in the files of a block: whole inner chunks, so the last one may end in zeros."""
        return -(-len(self.block_rows(block)) // self.chunk_rows) * self.chunk_rows

    def tail(self, block: int) -> bytes:
        """What follows the rows in the files of a block: the shard index and its checksum."""
        num_chunks = self.stored_rows(block) // self.chunk_rows
        return _tail(
            num_chunks, self.shard_rows // self.chunk_rows, self.chunk_rows * self.row_bytes
        )

    def shard_bytes(self, block: int) -> int:
        """The size of each file of a block."""
        return self.stored_rows(block) * self.row_bytes + len(self.tail(block))

    def shard_file(self, block: int, view: int) -> str:
        return f"{self.spec.name}/c/{block}/{view}" + "/0" * len(self.row_shape)

    def receipt_file(self, block: int, view: int) -> str:
        return f"receipts/{self.spec.name}/{block}.{view}.json"


@cache
def _tail(num_chunks: int, all_chunks: int, chunk_bytes: int) -> bytes:
    index = np.full((all_chunks, 2), _ABSENT, dtype="<u8")
    index[:num_chunks, 0] = np.arange(num_chunks) * chunk_bytes
    index[:num_chunks, 1] = chunk_bytes
    return index.tobytes() + struct.pack("<I", crc32c(index.tobytes()))


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum that ends a shard index (RFC 3720, appendix B.4)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ _CRC32C_TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def _crc32c_entry(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C_TABLE = [_crc32c_entry(byte) for byte in range(256)]


def _rows_in(size_bytes: int, dim: int) -> int:
    """The largest power of two of float16 rows in so many bytes; at least one."""
    return 1 << max((size_bytes // (_FLOAT16_BYTES * dim)).bit_length() - 1, 0)
