"""What was written is read back, as slabs, as rows, by zarr-python; what is broken is named."""

import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import zarr
from store import making

from kdcache.errors import (
    CacheCorrupt,
    CacheError,
    CacheMismatch,
    CacheNotFound,
    CacheUnfinished,
    DataError,
)
from kdcache.files import canonical_json, sha256_of
from kdcache.store import FORMAT, ArraySpec, check_digests, open_cache


def expected_of(spec, num_rows=making.NUM_ROWS, num_views=making.NUM_VIEWS):
    values = making.values_of(spec, num_rows, num_views).astype(spec.dtype)
    values[list(making.UNREADABLE)] = 0
    return values


def promise_again(root):
    """Write a manifest for the files as they are now."""
    manifest = json.loads((root / "manifest.json").read_bytes())
    for name in list(manifest["files"]):
        path = root / name
        del manifest["files"][name]
        if path.exists():
            size = path.stat().st_size
            manifest["files"][name] = {"bytes": size, "sha256": sha256_of(path)}
    (root / "manifest.json").write_bytes(canonical_json(manifest))


@pytest.mark.parametrize("dim", [8, 128, 1280])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_slabs_rows_and_zarr_python_agree(tmp_path, small_shards, dim, dtype):
    spec = ArraySpec("feature", dim, dtype)
    making.make(tmp_path, specs=[spec])
    expected = expected_of(spec)
    cache = open_cache(tmp_path)
    assert cache.arrays == {"feature": spec}
    group = zarr.open_group(tmp_path, mode="r")
    assert np.array_equal(group["feature"][:], expected)
    random = np.random.default_rng(1)
    rows = random.choice(np.flatnonzero(cache.readable), 200)
    views = random.integers(0, making.NUM_VIEWS, 200)
    assert np.array_equal(cache.rows("feature", rows, views), expected[rows, views])
    for view in range(making.NUM_VIEWS):
        out = np.full((making.NUM_ROWS, dim), 9, dtype)
        assert cache.slab("feature", view, out=out) is out
        assert np.array_equal(out, expected[:, view])


def test_everything_else_is_read_back(whole):
    cache = open_cache(whole)
    index = making.index_of()
    assert cache.recipe == making.RECIPE
    assert (cache.num_rows, cache.num_views) == (making.NUM_ROWS, making.NUM_VIEWS)
    assert cache.arrays == {spec.name: spec for spec in making.SPECS}
    assert np.array_equal(cache.image_ids, index.image_ids)
    assert np.array_equal(cache.labels, index.labels)
    assert (cache.classes, cache.paths) == (index.classes, index.paths)
    assert np.flatnonzero(~cache.readable).tolist() == list(making.UNREADABLE)
    assert cache.manifest.num_readable == making.NUM_ROWS - len(making.UNREADABLE)
    layers, arrays = cache.head()
    assert layers == making.head()[0]
    assert np.array_equal(arrays["0.weight"], making.head()[1]["0.weight"])
    assert cache.witness()["row"].tolist() == list(range(0, making.NUM_ROWS, 64))
    assert cache.witness()["thumb"][:, 0, 0, 0].tolist() == list(range(18))
    reasons = json.loads((whole / "index/unreadable.json").read_bytes())
    assert [(item["row"], item["reason"]) for item in reasons] == list(making.UNREADABLE.items())
    assert reasons[0]["path"] == index.paths[5]
    assert reasons[0]["id"] == index.image_ids[5].tobytes().hex()


def test_statistics_leave_out_unreadable_rows(whole):
    cache = open_cache(whole)
    for spec in making.SPECS:
        values = expected_of(spec)[cache.readable].reshape(-1, spec.dim).astype(np.float64)
        statistics = cache.statistics(spec.name)
        assert np.allclose(statistics["mean"], values.mean(0), rtol=1e-9, atol=1e-12)
        assert np.allclose(statistics["variance"], values.var(0), rtol=1e-9)


def test_all_members_open_with_zarr_python_without_a_warning(whole):
    group = zarr.open_group(whole, mode="r")
    members = dict(group.members(max_depth=None))
    assert group.attrs["kdcache"]["format"] == 1
    assert members["feature"].metadata.dimension_names == ("row", "view", "dim")
    assert members["index/readable"][:].sum() == making.NUM_ROWS - 2
    assert members["head"].attrs["layers"] == making.head()[0]
    assert {"embedding", "index/label", "statistics/feature/mean", "witness/thumb"} <= set(members)


def test_reading_imports_no_zarr(whole):
    code = (
        "import sys, numpy as np; from kdcache.store import open_cache;"
        f"cache = open_cache({str(whole)!r}); cache.slab('feature', 0);"
        "cache.rows('feature', np.array([0]), np.array([0])); print('zarr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_unreadable_rows_are_never_served(whole):
    cache = open_cache(whole)
    with pytest.raises(DataError, match=r"row 700 \(`dog/.700.jpg`\)") as caught:
        cache.rows("feature", np.array([1, 700]), np.array([0, 0]))
    assert "readable" in caught.value.hint


def test_rows_and_views_that_do_not_exist_are_refused(whole):
    cache = open_cache(whole)
    for rows, views in (([making.NUM_ROWS], [0]), ([0], [making.NUM_VIEWS])):
        with pytest.raises(IndexError):
            cache.rows("feature", np.array(rows), np.array(views))
    with pytest.raises(IndexError):
        cache.slab("feature", making.NUM_VIEWS)


def test_gathered_rows_outlive_the_cache(whole):
    cache = open_cache(whole)
    rows = cache.rows("embedding", np.array([0, 1]), np.array([1, 2]))
    del cache
    assert np.array_equal(rows, expected_of(making.SPECS[0])[[0, 1], [1, 2]])


def _sum_of(cache):
    rows = np.arange(4)
    return float(cache.rows("feature", rows, rows % 3).sum()) + float(
        cache.slab("feature", 1)[0, 0]
    )


@pytest.mark.dist
def test_cache_works_in_a_forked_process(whole):
    code = (
        "import os, sys, numpy as np; from kdcache.store import open_cache\n"
        f"cache = open_cache({str(whole)!r}); rows = np.arange(4)\n"
        "want = cache.rows('feature', rows, rows % 3); child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(not np.array_equal(cache.rows('feature', rows, rows % 3), want))\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.dist
def test_cache_works_in_a_spawned_process(whole):
    cache = open_cache(whole)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rows = pool.apply(cache.rows, ("feature", np.arange(4), np.arange(4) % 3))
    assert np.array_equal(rows, cache.rows("feature", np.arange(4), np.arange(4) % 3))


def test_pickled_cache_refuses_another_one_in_its_place(tmp_path, whole):
    pickled = pickle.dumps(open_cache(whole))
    assert _sum_of(pickle.loads(pickled)) == _sum_of(open_cache(whole))
    shutil.rmtree(whole)
    making.make(whole, unreadable={})
    with pytest.raises(CacheMismatch):
        pickle.loads(pickled)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(CacheNotFound) as caught:
        open_cache(tmp_path / "nowhere")
    assert "kdcache extract" in caught.value.hint


def test_unfinished_cache_says_how_far_it_is(tmp_path, small_shards):
    writer = making.begin(tmp_path)
    for piece in range(9):
        making.compute(writer, piece)
    with pytest.raises(CacheUnfinished, match="9 of 18 pieces are there") as caught:
        open_cache(tmp_path)
    assert "resumes" in caught.value.hint


def test_newer_format_is_refused(whole):
    manifest = json.loads((whole / "manifest.json").read_bytes())
    (whole / "manifest.json").write_bytes(canonical_json(manifest | {"format": FORMAT + 1}))
    for use in (open_cache, making.begin):
        with pytest.raises(CacheError, match="made by a newer kdcache"):
            use(whole)


@pytest.mark.parametrize("name", ["feature/c/1/2/0", "index/readable/c/0", "recipe.json"])
def test_file_of_another_size_is_named(whole, name):
    data = (whole / name).read_bytes()
    (whole / name).write_bytes(data[:-1])
    with pytest.raises(CacheCorrupt, match=name):
        open_cache(whole)
    (whole / name).unlink()
    with pytest.raises(CacheCorrupt, match=f"{name}` is missing"):
        open_cache(whole)


def test_changed_recipe_is_noticed(whole):
    data = (whole / "recipe.json").read_bytes()
    (whole / "recipe.json").write_bytes(data.replace(b"abc", b"xyz"))
    with pytest.raises(CacheCorrupt, match=r"recipe\.json"):
        open_cache(whole)


def test_broken_shard_index_is_noticed(whole):
    path = whole / "feature/c/1/2/0"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    cache = open_cache(whole)
    with pytest.raises(CacheCorrupt, match="feature/c/1/2/0"):
        cache.rows("feature", np.array([0]), np.array([2]))
    with pytest.raises(CacheCorrupt, match="feature/c/1/2/0"):
        cache.slab("feature", 2)
    assert cache.rows("feature", np.array([0]), np.array([1])).shape == (1, 64)


def test_check_digests_names_every_broken_file(whole):
    seen = []
    assert check_digests(whole, seen.append) == []
    assert sum(seen) == len(json.loads((whole / "manifest.json").read_bytes())["files"])
    shard = whole / "embedding/c/0/1/0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 64
    shard.write_bytes(data)
    (whole / "index/label/c/0").unlink()
    problems = check_digests(whole)
    assert [problem.file for problem in problems] == ["embedding/c/0/1/0", "index/label/c/0"]
    assert "SHA-256" in problems[0].found


@pytest.mark.parametrize("layout", ["compressed", "unsharded", "chunks in another order", "odd"])
def test_other_zarr_layouts_are_read_through_zarr_python(whole, layout):
    """What another program made of the array is slower, and the same values."""
    spec = making.SPECS[1]
    expected = expected_of(spec)
    if layout == "chunks in another order":
        _reverse_chunks(whole / "feature/c/0/1/0", 8)
    else:
        shutil.rmtree(whole / "feature")
        zarr.create_array(
            whole / "feature",
            data=expected,
            chunks=(3 if layout == "odd" else 32, 1, 64),
            shards=None if layout == "unsharded" else (9 if layout == "odd" else 256, 1, 64),
            compressors="auto" if layout == "compressed" else None,
            dimension_names=["row", "view", "dim"],
        )
    promise_again(whole)
    cache = open_cache(whole)
    rows, views = np.array([9, 0, 1099, 9, 300]), np.array([1, 1, 2, 0, 1])
    with pytest.warns(RuntimeWarning, match="far slower"):
        assert np.array_equal(cache.rows("feature", rows, views), expected[rows, views])
    assert np.array_equal(cache.slab("feature", 1), expected[:, 1])


def _reverse_chunks(path, num_chunks):
    """Store the inner chunks of a full shard last to first, as another writer may."""
    from kdcache.store.layout import crc32c

    data = path.read_bytes()
    index = np.frombuffer(data[-16 * num_chunks - 4 : -4], "<u8").reshape(-1, 2)
    size = int(index[0, 1])
    chunks = [data[at : at + size] for at in index[:, 0].tolist()]
    tail = index[::-1].tobytes()
    path.write_bytes(b"".join(chunks[::-1]) + tail + crc32c(tail).to_bytes(4, "little"))
