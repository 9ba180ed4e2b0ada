"""Shards are cut by D alone, and byte for byte what zarr-python writes."""

import json

import numpy as np
import pytest
import zarr
from store import making

from kdcache.store import ArraySpec, layout, plain
from kdcache.store.layout import Grid, crc32c
from kdcache.store.publish import publish


@pytest.mark.parametrize(
    ("dim", "shard_rows", "chunk_rows"),
    [
        (8, 65536, 65536),
        (128, 65536, 4096),
        (1280, 16384, 256),
        (2048, 16384, 256),
        (40_000, 1024, 8),
        (1_000_000, 1024, 1),
    ],
)
def test_cuts_depend_on_the_width_alone(dim, shard_rows, chunk_rows):
    for dtype, num_rows, num_views in (
        ("float16", 10, 1), ("float32", 10**6, 50), ("uint8", 10**6, 50)
    ):  # fmt: skip
        grid = Grid.of(ArraySpec("feature", dim, dtype), num_rows, num_views)
        assert (grid.shard_rows, grid.chunk_rows) == (shard_rows, chunk_rows)
        assert shard_rows % layout.PIECE_ROWS == 0


def test_crc32c_gives_the_published_check_value():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4


@pytest.mark.parametrize("spec", making.SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("num_rows", [1, 32, 511, 512, 1100])
def test_shards_and_metadata_are_those_of_zarr_python(tmp_path, small_shards, spec, num_rows):
    values = making.values_of(spec, num_rows, 2).astype(spec.dtype)
    values[:40] = 0  # a chunk of nothing but zeros is written, too
    grid = Grid.of(spec, num_rows, 2)
    theirs = zarr.create_array(
        tmp_path / spec.name,
        shape=values.shape,
        dtype=spec.dtype,
        shards=(grid.shard_rows, 1, spec.dim),
        chunks=(grid.chunk_rows, 1, spec.dim),
        compressors=None,
        fill_value=0,
        dimension_names=["row", "view", "dim"],
        config={"write_empty_chunks": True},
    )
    theirs[:] = values
    for block in range(grid.num_blocks):
        for view in range(2):
            rows = grid.block_rows(block)
            ours = np.zeros((grid.stored_rows(block), spec.dim), spec.dtype)
            ours[: len(rows)] = values[rows.start : rows.stop, view]
            shard = (tmp_path / grid.shard_file(block, view)).read_bytes()
            assert ours.tobytes() + grid.tail(block) == shard
            assert len(shard) == grid.shard_bytes(block)
    metadata = json.loads((tmp_path / spec.name / "zarr.json").read_bytes())
    assert metadata == grid.metadata()
    assert Grid.from_metadata(spec.name, metadata) == grid


@pytest.mark.parametrize("part", [0, 1, 2], ids=["values", "scale", "minimum"])
@pytest.mark.parametrize("num_rows", [32, 1100])
def test_shards_of_uint8_are_those_of_zarr_python(tmp_path, small_shards, part, num_rows):
    grid = Grid.of(ArraySpec("embedding", 8, "uint8"), num_rows, 2).parts()[part]
    random = np.random.default_rng(part)
    values = random.integers(0, 256, (num_rows, 2, *grid.row_shape)).astype(grid.spec.dtype)
    theirs = zarr.create_array(
        tmp_path / grid.spec.name,
        shape=values.shape,
        dtype=grid.spec.dtype,
        shards=(grid.shard_rows, 1, *grid.row_shape),
        chunks=(grid.chunk_rows, 1, *grid.row_shape),
        compressors=None,
        fill_value=0,
        dimension_names=["row", "view", "dim"][: values.ndim],
        attributes=grid.metadata()["attributes"],
        config={"write_empty_chunks": True},
    )
    theirs[:] = values
    for block in range(grid.num_blocks):
        for view in range(2):
            rows = grid.block_rows(block)
            ours = np.zeros((grid.stored_rows(block), *grid.row_shape), grid.spec.dtype)
            ours[: len(rows)] = values[rows.start : rows.stop, view]
            shard = (tmp_path / grid.shard_file(block, view)).read_bytes()
            assert ours.tobytes() + grid.tail(block) == shard
            assert len(shard) == grid.shard_bytes(block)
    metadata = json.loads((tmp_path / grid.spec.name / "zarr.json").read_bytes())
    assert metadata == grid.metadata()
    assert Grid.from_metadata(grid.spec.name, metadata) == grid


def test_metadata_of_a_compressed_array_gives_no_grid(tmp_path):
    zarr.create_array(
        tmp_path / "a", shape=(64, 1, 8), shards=(32, 1, 8), chunks=(16, 1, 8), dtype="f2"
    )
    assert Grid.from_metadata("a", json.loads((tmp_path / "a/zarr.json").read_bytes())) is None


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array([True, False]),
        np.zeros((0, 4), np.uint8),
        np.array(3, np.int64),
        np.arange(4, dtype=">i4"),
    ],
    ids=["matrix", "bool", "empty", "scalar", "big endian"],
)
def test_small_arrays_round_trip_and_open_with_zarr_python(tmp_path, values):
    for name, data in plain.array_files("a", values).items():
        publish(tmp_path, name, data, hint="")
    for read in (plain.load_array(tmp_path, "a"), zarr.open_array(tmp_path / "a", mode="r")[...]):
        assert np.array_equal(read, values)
        assert np.asarray(read).shape == values.shape
