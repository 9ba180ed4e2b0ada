"""A finished cache grows by addition: what it promised stays, and it remembers what it was."""

import json
import multiprocessing
import pickle
import shutil
import subprocess

import numpy as np
import pytest
import zarr
from store import making

from kdcache.errors import CacheCorrupt, CacheMismatch, ConfigError
from kdcache.files import canonical_json, exclusive, sha256_of
from kdcache.store import check_digests, grow_cache, hint_at_ancestor, open_cache


@pytest.fixture
def bare(tmp_path, small_shards):
    """A finished cache without a head."""
    making.make(tmp_path / "bare", num_rows=150, num_views=2, unreadable={5: "empty"}, head=None)
    return tmp_path / "bare"


def list_the_group(root):
    """Make a cache one of those whose manifest lists the group's `zarr.json`, as all once did."""
    manifest = json.loads((root / "manifest.json").read_bytes())
    size, sha256 = (root / "zarr.json").stat().st_size, sha256_of(root / "zarr.json")
    manifest["files"]["zarr.json"] = {"bytes": size, "sha256": sha256}
    (root / "manifest.json").write_bytes(canonical_json(manifest))
    return root


def test_growth_adds_and_changes_nothing_else(bare):
    before, old = making.tree(bare), open_cache(bare)
    files = making.graph(num_rows=150)
    grown = grow_cache(old, files)
    after = making.promises(bare)
    assert after.pop("manifest.json") != before["manifest.json"]
    assert after.pop("zarr.json") != before["zarr.json"]
    kept = f"manifests/{old.identity}.json"
    expected = {**before, **files, kept: before["manifest.json"]}
    assert after == {
        name: data for name, data in expected.items() if name not in ("manifest.json", "zarr.json")
    }
    assert grown.manifest.parent == old.identity
    assert grown.manifest.files.keys() - old.manifest.files.keys() == {kept, *files}
    assert check_digests(bare) == []


def test_members_are_read_back(bare):
    cache = open_cache(bare)
    assert (cache.head(), cache.head_origin(), cache.neighbours()) == (None, None, None)
    cache = grow_cache(grow_cache(cache, making.fitted_head()), making.graph(3, num_rows=150))
    layers, arrays = cache.head()
    assert layers == [{"kind": "linear", "in": 64, "out": 4, "bias": False}]
    assert (list(arrays), arrays["0.weight"].shape) == (["0.weight"], (4, 64))
    assert cache.head_origin() == {"kind": "fitted", "method": "whiten", "seed": 0}
    graph = cache.neighbours()
    assert (graph.index.dtype, graph.index.shape) == (np.int32, (150, 3))
    assert (graph.similarity.dtype, graph.similarity.shape) == (np.float32, (150, 3))
    assert graph.attributes == {"k": 3, "array": "feature"}
    assert making.graph(3, num_rows=150)["neighbours/index/c/0/0"] == graph.index.tobytes()


def test_head_that_says_nothing_of_its_origin_is_the_teachers(whole):
    assert open_cache(whole).head_origin() == {"kind": "teacher"}


def test_zarr_python_sees_the_new_members(bare):
    grow_cache(open_cache(bare), making.graph(num_rows=150))
    members = dict(zarr.open_group(bare, mode="r").members(max_depth=None))
    assert {"feature", "neighbours", "neighbours/index", "neighbours/similarity"} <= set(members)
    assert members["neighbours"].attrs["array"] == "feature"
    graph = open_cache(bare).neighbours()
    assert np.array_equal(members["neighbours/index"][:], graph.index)
    assert np.array_equal(members["neighbours/similarity"][:], graph.similarity)


def test_lineage_leads_back_to_the_first(bare):
    first = open_cache(bare)
    second = grow_cache(first, making.graph(num_rows=150))
    third = grow_cache(second, making.fitted_head())
    assert first.lineage == [first.identity]
    assert third.lineage == [third.identity, second.identity, first.identity]
    assert open_cache(bare).lineage == third.lineage
    assert third.history[first.identity] == first.manifest


def test_history_that_was_rewritten_is_noticed(bare):
    first = open_cache(bare)
    grow_cache(first, making.graph(num_rows=150))
    path = bare / f"manifests/{first.identity}.json"
    path.write_bytes(path.read_bytes().replace(b'"views": 2', b'"views": 3'))
    with pytest.raises(CacheCorrupt, match=first.identity):
        _ = open_cache(bare).lineage


def test_same_growth_again_changes_nothing(bare):
    files = making.graph(num_rows=150)
    grown = grow_cache(open_cache(bare), files)
    before = making.tree(bare)
    assert grow_cache(open_cache(bare), files).identity == grown.identity
    assert making.tree(bare) == before


def test_grown_caches_are_equal_however_they_were_made(tmp_path, bare):
    other = shutil.copytree(bare, tmp_path / "other")
    files = making.graph(num_rows=150)
    grow_cache(open_cache(bare), files)
    grow_cache(open_cache(other), dict(reversed(files.items())))
    assert making.tree(bare) == making.tree(other)


def test_stale_cache_object_grows_what_is_there_now(bare):
    stale = open_cache(bare)
    grow_cache(stale, making.graph(num_rows=150))
    grown = grow_cache(stale, making.fitted_head())
    assert grown.neighbours() is not None
    assert grown.head() is not None
    assert len(grown.lineage) == 3


def test_promised_bytes_are_never_replaced(bare):
    cache = grow_cache(open_cache(bare), making.graph(num_rows=150))
    before = making.tree(bare)
    for files in (
        making.graph(3, num_rows=150),
        {"feature/c/0/0/0": b"x"},
        {**making.fitted_head(), "recipe.json": b"{}"},
    ):
        with pytest.raises(CacheMismatch, match="grows, but does not change") as caught:
            grow_cache(cache, files)
        assert f"cp -al {bare} OTHER" in caught.value.hint
        assert making.tree(bare) == before


def test_leftovers_of_a_kill_do_not_stand_in_the_way_of_another_head(bare):
    for name, data in making.fitted_head(1, bias=True).items():
        path = bare / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert open_cache(bare).head() is None  # what no manifest promises is not there
    cache = grow_cache(open_cache(bare), making.fitted_head(2))
    assert list(cache.head()[1]) == ["0.weight"]
    assert cache.head_origin()["seed"] == 2
    assert set(making.promises(bare)) == {*cache.manifest.files, "manifest.json", "zarr.json"}


def test_killed_at_any_step_on_disk_it_is_whole_and_completed_by_the_same_call(tmp_path):
    process = making.child("sweep-growth", tmp_path)
    out, errors = process.communicate(timeout=120)
    assert errors == ""
    assert int(out) > 20


def test_growth_without_anything_new_mends_the_group(bare):
    grown = grow_cache(open_cache(bare), making.graph(num_rows=150))
    whole = (bare / "zarr.json").read_bytes()
    (bare / "zarr.json").unlink()
    assert [(p.file, p.found) for p in check_digests(bare)] == [("zarr.json", "is missing")]
    (bare / "zarr.json").write_bytes(b"{}")
    (problem,) = check_digests(bare)
    assert problem.file == "zarr.json"
    assert "the members make it" in problem.found
    assert grow_cache(open_cache(bare), {}).identity == grown.identity
    assert (bare / "zarr.json").read_bytes() == whole


def test_broken_member_is_named_itself(bare):
    (bare / "feature/zarr.json").write_bytes(b"{}")
    assert [problem.file for problem in check_digests(bare)] == ["feature/zarr.json"]


def test_caches_that_list_their_group_open_and_grow(bare):
    old = open_cache(list_the_group(bare))
    assert set(old.arrays) == {"embedding", "feature"}
    assert check_digests(bare) == []
    grown = grow_cache(old, making.graph(num_rows=150))
    assert "zarr.json" not in grown.manifest.files
    assert check_digests(bare) == []
    assert open_cache(bare).lineage == [grown.identity, old.identity]
    (bare / "zarr.json").write_bytes(b"{}")
    assert [problem.file for problem in check_digests(bare)] == ["zarr.json"]


def test_second_grower_is_told(bare):
    cache = open_cache(bare)
    (bare / "manifests").mkdir()
    with exclusive(bare / "manifests"), pytest.raises(ConfigError, match="another process"):
        grow_cache(cache, making.graph(num_rows=150))
    assert open_cache(bare).identity == cache.identity


def test_copy_of_links_grows_without_the_original(tmp_path, bare):
    before = making.tree(bare)
    other = tmp_path / "other"
    subprocess.run(["cp", "-al", bare, other], check=True)
    assert (other / "manifest.json").stat().st_ino == (bare / "manifest.json").stat().st_ino
    first = grow_cache(open_cache(other), making.graph(num_rows=150))
    assert making.tree(bare) == before
    assert check_digests(bare) == check_digests(other) == []
    second = grow_cache(open_cache(bare), making.graph(3, num_rows=150))
    assert first.lineage[1] == second.lineage[1]
    assert open_cache(other).neighbours().attributes["k"] == 2


def test_hint_at_the_ancestor_gives_it_back(tmp_path, bare):
    first = open_cache(bare)
    second = grow_cache(first, making.fitted_head())
    third = grow_cache(second, making.graph(num_rows=150))
    before = making.tree(bare)
    hint = hint_at_ancestor(third, "neighbours")
    command = hint.partition(": ")[2].replace("OTHER", str(tmp_path / "other"))
    subprocess.run(command, shell=True, check=True)
    assert open_cache(tmp_path / "other").identity == second.identity
    cache = grow_cache(open_cache(tmp_path / "other"), making.graph(4, num_rows=150))
    assert cache.neighbours().attributes["k"] == 4
    assert cache.lineage[1:] == [second.identity, first.identity]
    assert making.tree(bare) == before
    assert check_digests(tmp_path / "other") == []


def test_pickled_cache_is_reopened_as_its_descendant(bare):
    pickled = pickle.dumps(open_cache(bare))
    grown = grow_cache(open_cache(bare), making.graph(num_rows=150))
    assert pickle.loads(pickled).identity == grown.identity
    assert pickle.loads(pickle.dumps(grown)).identity == grown.identity


def test_ancestor_in_the_place_of_its_descendant_is_refused(tmp_path, bare):
    shutil.copytree(bare, tmp_path / "old")
    pickled = pickle.dumps(grow_cache(open_cache(bare), making.graph(num_rows=150)))
    shutil.rmtree(bare)
    shutil.move(tmp_path / "old", bare)
    with pytest.raises(CacheMismatch, match="holds the cache"):
        pickle.loads(pickled)


def test_cache_put_in_the_place_of_another_is_not_grown(tmp_path, bare):
    stale = open_cache(bare)
    shutil.rmtree(bare)
    making.make(bare, num_rows=150, num_views=2, unreadable={}, head=None)
    before = making.tree(bare)
    with pytest.raises(CacheMismatch, match="holds the cache"):
        grow_cache(stale, making.graph(num_rows=150))
    assert making.promises(bare) == before


@pytest.mark.dist
def test_grown_cache_works_in_a_spawned_process(bare):
    cache = grow_cache(open_cache(bare), making.graph(num_rows=150))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rows = pool.apply(cache.rows, ("feature", np.arange(4), np.zeros(4, np.int64)))
    assert np.array_equal(rows, cache.slab("feature", 0)[:4])


def test_extraction_finds_a_grown_cache_finished(bare):
    grow_cache(open_cache(bare), making.graph(num_rows=150))
    before = making.tree(bare)
    writer = making.begin(bare, num_rows=150, num_views=2, head=None)
    assert writer.done
    writer.seal()
    assert making.tree(bare) == before
