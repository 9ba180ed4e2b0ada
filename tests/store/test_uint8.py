"""A cache of uint8: what is written is read back, in whatever order and however often killed.

Shards are larger here than in the other tests of `store`, so that those of scale and minimum are
whole pages, and can be mapped, as they always are at their true size.
"""

import json
import pickle
import random
import struct
import warnings

import numpy as np
import pytest
import torch
import zarr
from store import making

from kdcache.errors import CacheCorrupt, CacheError, CacheMismatch, DataError
from kdcache.store import (
    ArraySpec,
    Quantised,
    Taken,
    check_digests,
    dequantise,
    layout,
    open_cache,
    quantise,
)

SPECS = (ArraySpec("embedding", 8, "uint8"), ArraySpec("feature", 64))
FEATURE = (ArraySpec("feature", 64, "uint8"),)


@pytest.fixture
def whole_pages(small_shards, monkeypatch):
    monkeypatch.setattr(layout, "MIN_SHARD_ROWS", 1024)
    monkeypatch.setattr(layout, "MAX_SHARD_ROWS", 1024)


@pytest.fixture
def eight_bits(tmp_path, whole_pages):
    """The folder of a finished cache: embeddings of uint8 beside features of float16."""
    making.make(tmp_path / "eight", specs=SPECS)
    return tmp_path / "eight"


def expected_of(spec):
    """Quantised [N, V, D], zeros where the image could not be read."""
    values = making.values_of(spec)
    values[list(making.UNREADABLE)] = 0
    return quantise(values)


def bytes_of(stored: Quantised):
    return [part.tobytes() for part in (stored.values, stored.scale, stored.minimum)]


def test_values_are_dequantised_by_hand(eight_bits):
    """FORMAT.md alone, with json and struct: no numpy, no zarr, no kdcache."""
    about = json.loads((eight_bits / "embedding/zarr.json").read_text())
    rows_in_shard = about["chunk_grid"]["configuration"]["chunk_shape"][0]
    dim = about["shape"][2]
    assert about["data_type"] == "uint8"
    for row, view in ((0, 0), (3, 2), (1023, 1), (1024, 1), (1099, 2)):
        block, place = divmod(row, rows_in_shard)
        folder = eight_bits / "embedding" / "c" / str(block) / str(view)
        data = (folder / "0").read_bytes()
        q = struct.unpack_from(f"<{dim}B", data, place * dim)
        scale, minimum = (
            struct.unpack_from(
                "<f", (eight_bits / f"embedding_{side}/c/{block}/{view}").read_bytes(), place * 4
            )[0]
            for side in ("scale", "min")
        )
        said = making.values_of(SPECS[0])[row, view]
        assert scale == pytest.approx((said.max() - said.min()) / 255, rel=1e-6)
        for value, step in zip(said.tolist(), q, strict=True):
            assert minimum + scale * step == pytest.approx(value, abs=scale / 2 + 1e-6)


def test_slabs_and_rows_are_floats_to_the_bit(eight_bits):
    cache = open_cache(eight_bits)
    assert cache.arrays == {spec.name: spec for spec in SPECS}
    expected = dequantise(expected_of(SPECS[0]))
    rows = np.random.default_rng(1).choice(np.flatnonzero(cache.readable), 200)
    views = np.random.default_rng(2).integers(0, making.NUM_VIEWS, 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # mapped, and not read through zarr-python
        taken = cache.rows("embedding", rows, views)
    assert taken.dtype == np.float32
    assert np.array_equal(taken, expected[rows, views])
    for view in range(making.NUM_VIEWS):
        out = np.full((making.NUM_ROWS, 8), 9, np.float32)
        assert cache.slab("embedding", view, out) is out
        assert np.array_equal(out, expected[:, view])
        assert np.array_equal(cache.slab("embedding", view), out)


def test_what_lies_on_disk_is_given_back_as_it_is(eight_bits):
    cache, expected = open_cache(eight_bits), expected_of(SPECS[0])
    rows, views = np.array([0, 1099, 7, 7]), np.array([2, 0, 1, 1])
    assert bytes_of(cache.stored("embedding", rows, views)) == bytes_of(expected[rows, views])
    assert bytes_of(cache.stored_slab("embedding", 1)) == bytes_of(expected[:, 1])
    floats = cache.stored("feature", rows, views)
    assert isinstance(floats, np.ndarray)
    assert np.array_equal(floats, cache.rows("feature", rows, views))
    assert np.array_equal(cache.stored_slab("feature", 1), cache.slab("feature", 1))
    with pytest.raises(DataError, match="row 700"):
        cache.stored("embedding", np.array([700]), np.array([0]))


def test_any_zarr_reader_dequantises_in_a_line(eight_bits):
    group = zarr.open_group(eight_bits, mode="r")
    q, scale, minimum = (group[f"embedding{end}"] for end in ("", "_scale", "_min"))
    assert (q.dtype, scale.dtype, minimum.dtype) == (np.uint8, np.float32, np.float32)
    assert scale.shape == minimum.shape == (making.NUM_ROWS, making.NUM_VIEWS)
    values = minimum[:][..., None] + scale[:][..., None] * q[:]
    assert np.array_equal(values, dequantise(expected_of(SPECS[0])))
    assert "embedding_min[row, view] + embedding_scale[row, view]" in q.attrs["value"]
    assert scale.metadata.dimension_names == ("row", "view")


def test_unreadable_rows_are_zeros_in_all_three(eight_bits):
    group = zarr.open_group(eight_bits, mode="r")
    for row in making.UNREADABLE:
        for end in ("", "_scale", "_min"):
            assert not group[f"embedding{end}"][row].any()


def test_statistics_are_of_the_values(eight_bits):
    cache = open_cache(eight_bits)
    values = dequantise(expected_of(SPECS[0]))[cache.readable].reshape(-1, 8).astype(np.float64)
    statistics = cache.statistics("embedding")
    assert np.allclose(statistics["mean"], values.mean(0), rtol=1e-9, atol=1e-12)
    assert np.allclose(statistics["variance"], values.var(0), rtol=1e-9)


def test_only_caches_of_uint8_have_the_new_format(eight_bits, whole, monkeypatch):
    for path, version in ((eight_bits, 2), (whole, 1)):
        about = json.loads((path / "zarr.json").read_bytes())["attributes"]["kdcache"]
        assert about == {"format": version, "arrays": ["embedding", "feature"]}
        assert json.loads((path / "manifest.json").read_bytes())["format"] == version
    monkeypatch.setattr("kdcache.store.manifest.FORMAT", 1)  # as older programs know it
    assert open_cache(whole).num_views == 3
    with pytest.raises(CacheError, match="format `2`: it was made by a newer kdcache"):
        open_cache(eight_bits)


def test_float_caches_have_the_bytes_they_always_had(whole):
    """Made by kdcache before there was uint8."""
    identity = "b8a237bec48882c8e374bfece18e36a4fe938f12670894386499829c9152562c"
    assert open_cache(whole).identity == identity


def test_a_row_takes_its_width_and_eight_bytes(eight_bits):
    files = open_cache(eight_bits).manifest.files
    shards = [f"embedding{end}" for end in ("/c/0/1/0", "_scale/c/0/1", "_min/c/0/1")]
    index = 16 * (1024 // 256) + 4  # of each shard
    assert [files[name].num_bytes for name in shards] == [
        1024 * 8 + index, 1024 * 4 + index, 1024 * 4 + index
    ]  # fmt: skip
    receipt = json.loads((eight_bits / "receipts/embedding_scale/1.2.json").read_bytes())
    assert receipt["array"] == "embedding_scale"
    assert receipt["rows"] == [1024, 1100]
    assert receipt["sha256"] == files["embedding_scale/c/1/2"].sha256


def test_broken_scale_is_named(eight_bits):
    path = eight_bits / "embedding_scale/c/0/1"
    data = bytearray(path.read_bytes())
    data[5] ^= 64
    path.write_bytes(data)
    assert [problem.file for problem in check_digests(eight_bits)] == ["embedding_scale/c/0/1"]
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(CacheCorrupt, match="embedding_scale/c/0/1"):
        open_cache(eight_bits).rows("embedding", np.array([0]), np.array([1]))


def test_rewritten_by_another_program_it_means_the_same(eight_bits):
    """Compressed, so that nothing can be mapped: slower, and the same values."""
    group = zarr.open_group(eight_bits, mode="a")
    expected = {name: group[name][:] for name in ("embedding", "embedding_scale", "embedding_min")}
    for name, values in expected.items():
        group.create_array(name, data=values, chunks=(100, 1, 8)[: values.ndim], overwrite=True)
    from store.test_reader import promise_again

    promise_again(eight_bits)
    cache = open_cache(eight_bits)
    rows, views = np.array([9, 0, 1099, 9]), np.array([1, 1, 2, 0])
    with pytest.warns(RuntimeWarning, match="far slower"):
        taken = cache.rows("embedding", rows, views)
    assert np.array_equal(taken, dequantise(expected_of(SPECS[0]))[rows, views])


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        (np.nan, r"gave `nan` in `feature` of row 70 \(`dog/.*70.jpg`\), view 2", "weights"),
        (-np.inf, "gave `-inf` in `feature` of row 70", "weights"),
        (2e38, r"holds `2e\+38`; uint8 ends at 1e\+38", "--dtype float32"),
        (70_000.0, None, None),
    ],
)
def test_what_is_no_number_is_refused(tmp_path, whole_pages, value, message, hint):
    writer = making.begin(tmp_path, specs=FEATURE)
    values = {"feature": making.values_of(FEATURE[0])[64:128]}
    values["feature"][6, 2, 3] = value
    if message is not None:
        with pytest.raises(DataError, match=message) as caught:
            writer.put_piece(1, values, {}, {})
        assert hint in caught.value.hint
        assert 1 in writer.missing()
        writer.put_piece(1, values, {70: "truncated"}, {})  # nobody reads it
    else:
        writer.put_piece(1, values, {}, {})  # larger than any float16
    assert 1 not in writer.missing()


def test_rows_of_another_cache_are_taken_as_they_are(tmp_path, eight_bits):
    """They come over bit for bit, in their places; all else is quantised."""
    source = open_cache(eight_bits)
    writer = making.begin(tmp_path / "copy", specs=SPECS)
    for piece in writer.missing():
        rows = writer.piece_rows(piece)
        unreadable = {row: why for row, why in making.UNREADABLE.items() if row in rows}
        slabs = [source.stored_slab("embedding", view)[rows.start : rows.stop] for view in range(3)]
        embedding = Quantised(
            *(np.stack(parts, axis=1) for parts in zip(*(s.parts() for s in slabs), strict=True))
        )
        places = np.random.default_rng(piece).random((len(rows), 3)) < 0.5
        for part in embedding.parts():
            part[~places] = 7  # means nothing
        values = {spec.name: making.values_of(spec)[rows.start : rows.stop] for spec in SPECS}
        measured = values["embedding"][:, 0].copy()
        values["embedding"][places] = 1e9  # nobody looks at it, but for what is measured
        values["embedding"][:, 0] = measured
        witness = {"row": np.array([rows.start]), "thumb": np.full((1, 4, 4, 3), piece, np.uint8)}
        taken = {"embedding": Taken(places, embedding)}
        writer.put_piece(piece, values, unreadable, witness, taken)
    writer.seal()
    assert making.tree(tmp_path / "copy") == making.tree(eight_bits)


@pytest.mark.parametrize("seed", [0, 1])
def test_order_of_pieces_and_interruptions_leave_no_trace(tmp_path, eight_bits, seed):
    writer = making.begin(tmp_path / "other", specs=SPECS)
    for piece in random.Random(seed).sample(writer.missing(), 7):
        making.compute(writer, piece, SPECS)
    shuffled = lambda pieces: random.Random(seed).sample(pieces, len(pieces))  # noqa: E731
    making.make(tmp_path / "other", specs=SPECS, order=shuffled)
    assert making.tree(tmp_path / "other") == making.tree(eight_bits)


def test_piece_with_other_originals_raises_the_alarm(tmp_path, whole_pages):
    """They may quantise to the same bytes, and are not what the other worker computed."""
    writer = making.begin(tmp_path, specs=FEATURE)
    making.compute(writer, 0, FEATURE)
    values = making.values_of(FEATURE[0])[:64].copy()
    row, dim = 9, values[9, 0].argsort()[30]
    values[row, 0, dim] = np.nextafter(values[row, 0, dim], np.float32(9))
    witness = {"row": np.array([0]), "thumb": np.zeros((1, 4, 4, 3), np.uint8)}
    with pytest.raises(CacheMismatch, match="`original/feature` at"):
        writer.put_piece(0, {"feature": values}, {5: "truncated JPEG"}, witness)


def test_cache_begun_with_floats_does_not_go_on_with_uint8(tmp_path, whole_pages):
    making.begin(tmp_path)
    with pytest.raises(CacheMismatch, match="format: `1` -> `2`"):
        making.begin(tmp_path, specs=SPECS)


def test_seal_counts_every_shard(tmp_path, whole_pages):
    writer = making.begin(tmp_path, specs=SPECS)
    for piece in writer.missing():
        making.compute(writer, piece, SPECS)
    seen = []
    writer.seal(seen.append)
    assert sum(seen) == writer.num_shards == 4 * 2 * 3


def test_cache_can_be_pickled(eight_bits):
    cache = pickle.loads(pickle.dumps(open_cache(eight_bits)))
    assert torch.from_numpy(cache.slab("embedding", 0)).dtype == torch.float32


def test_killed_at_any_step_on_disk_it_resumes_to_the_same_bytes(tmp_path):
    process = making.child("sweep", tmp_path, 23, "uint8")
    out, errors = process.communicate(timeout=120)
    assert errors == ""
    assert int(out) > 10
