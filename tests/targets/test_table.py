"""Targets of an epoch are what the cache's reader gives, in as few bytes as it keeps them in."""

import numpy as np
import pytest
import torch

from kdcache.heads import ProjectionHead
from kdcache.store import ArraySpec, RowIndex, create_cache, grow_cache, head_files, open_cache
from kdcache.targets import TargetTable
from kdcache.targets.slab import Slab

CPU = torch.device("cpu")
NUM_ROWS = 300
DIM = 12


def values_of(array: str) -> np.ndarray:
    random = np.random.default_rng(len(array))
    return random.normal(3, 2, (NUM_ROWS, 2, DIM)).astype(np.float32)


@pytest.fixture(params=["float16", "float32", "uint8"])
def cache(request, tmp_path):
    """Features of one number type, and a head that makes embeddings of them."""
    random = np.random.default_rng(0)
    index = RowIndex(
        image_ids=random.integers(0, 256, (NUM_ROWS, 16), np.uint8),
        labels=np.full(NUM_ROWS, -1, np.int32),
        classes=(),
        paths=[f"{row}.jpg" for row in range(NUM_ROWS)],
    )
    specs = [ArraySpec("feature", DIM, request.param)]
    writer = create_cache(tmp_path, recipe={}, arrays=specs, num_views=2, index=index, made_with={})
    for piece in writer.missing():
        rows = writer.piece_rows(piece)
        writer.put_piece(piece, {"feature": values_of("feature")[rows.start : rows.stop]}, {}, {})
    writer.seal()
    head = ProjectionHead([{"kind": "linear", "in": DIM, "out": 5, "bias": True}])
    origin = {"kind": "fitted", "method": "whiten", "settings": {"dim": 5}, "seed": 0}
    return grow_cache(open_cache(tmp_path), head_files(head.layers, head.to_arrays(), origin))


@pytest.mark.parametrize("rows", [np.arange(NUM_ROWS), np.arange(0, NUM_ROWS, 7)[::-1].copy()])
def test_targets_are_the_readers_to_the_bit(cache, rows):
    table = TargetTable(cache, "feature", rows, device=CPU)
    samples = np.array([3, 0, 42, 3])
    for view in (0, 1):
        taken = table.take(samples, view)
        assert taken.dtype == torch.float32
        expected = cache.rows("feature", rows[samples], np.full(4, view)).astype(np.float32)
        assert np.array_equal(taken.numpy(), expected)


def test_a_slab_takes_no_more_bytes_than_the_cache(cache):
    width = {"float16": 2 * DIM, "float32": 4 * DIM, "uint8": DIM + 8}
    slab = Slab.of(cache.stored_slab("feature", 0), CPU)
    parts = [part for part in (slab.values, slab.scale, slab.minimum) if part is not None]
    num_bytes = sum(part.element_size() * part.numel() for part in parts)
    assert num_bytes == NUM_ROWS * width[cache.arrays["feature"].dtype]
    assert len(slab) == NUM_ROWS


def test_taking_rows_leaves_the_slab_as_it_is(cache):
    table = TargetTable(cache, "feature", np.arange(NUM_ROWS), device=CPU)
    first = table.take(np.arange(9), 0).clone()
    table.take(np.arange(9), 0).zero_()
    assert torch.equal(table.take(np.arange(9), 0), first)


def test_embeddings_are_derived_from_what_the_reader_gives(cache):
    rows = np.arange(1, NUM_ROWS)
    table = TargetTable(cache, "embedding", rows, device=CPU)
    head = ProjectionHead.from_arrays(*cache.head()).eval()
    feature = torch.from_numpy(cache.slab("feature", 1)[rows]).float()
    assert table.dim == 5
    torch.testing.assert_close(table.take(np.array([4, 2]), 1), head(feature)[[4, 2]])


def test_centred_targets_have_unit_length_and_no_mean(cache):
    table = TargetTable(cache, "feature", np.arange(NUM_ROWS), device=CPU, center=True)
    unit = torch.nn.functional.normalize(torch.from_numpy(cache.slab("feature", 0)).float(), dim=1)
    torch.testing.assert_close(table.mean, unit.mean(0))
    everyone = table.take(np.arange(NUM_ROWS), 0)
    torch.testing.assert_close(everyone, torch.nn.functional.normalize(unit - unit.mean(0), dim=1))
