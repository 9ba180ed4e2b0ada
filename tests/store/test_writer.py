"""A cache has the same bytes in whatever order, by how many processes and how often killed."""

import os
import random
import resource
import shutil
import signal
import subprocess

import numpy as np
import pytest
from store import making

from kdcache.errors import CacheMismatch, CacheUnfinished, DataError
from kdcache.store import open_cache
from kdcache.store.moments import Moments
from kdcache.store.pieces import ALARM


@pytest.mark.parametrize("seed", [0, 1])
def test_order_of_pieces_leaves_no_trace(tmp_path, whole, seed):
    shuffled = lambda pieces: random.Random(seed).sample(pieces, len(pieces))  # noqa: E731
    making.make(tmp_path / "other", order=shuffled)
    assert making.tree(tmp_path / "other") == making.tree(whole)


def test_interrupted_cache_resumes_where_it_was(tmp_path, whole):
    writer = making.begin(tmp_path / "other")
    for piece in (0, 3, 9):
        making.compute(writer, piece)
    resumed = making.begin(tmp_path / "other")
    assert resumed.missing() == [p for p in range(18) if p not in (0, 3, 9)]
    making.make(tmp_path / "other")
    assert making.tree(tmp_path / "other") == making.tree(whole)


def test_cache_does_not_go_on_with_other_libraries(tmp_path, small_shards):
    making.compute(making.begin(tmp_path), 0)
    with pytest.raises(CacheMismatch, match=r"begun otherwise: versions.numpy: `2.0` -> `2.1`"):
        making.begin(tmp_path, made_with={"numpy": "2.1"})
    assert 0 not in making.begin(tmp_path).missing()


def test_unfinished_cache_keeps_its_number_of_views(tmp_path, small_shards):
    making.begin(tmp_path)
    with pytest.raises(CacheMismatch, match="views: `3` -> `4`"):
        making.begin(tmp_path, num_views=4)


def test_pieces_go_when_all_their_shards_are_sealed(tmp_path, small_shards):
    writer = making.begin(tmp_path)
    pieces = tmp_path / ".work/pieces"
    for piece in range(4):
        making.compute(writer, piece)
    assert (tmp_path / "feature/c/0/2/0").exists()  # 256 rows are whole there,
    assert len(list(pieces.iterdir())) == 4  # but `embedding` has shards of 512
    for piece in range(4, 8):
        making.compute(writer, piece)
    assert list(pieces.iterdir()) == []
    assert making.begin(tmp_path).missing() == list(range(8, 18))


def test_finished_cache_has_nothing_left_to_do(whole):
    before = making.tree(whole)
    writer = making.begin(whole)
    making.compute(writer, 0)
    assert writer.done
    assert writer.missing() == []
    assert writer.seal().to_bytes() == (whole / "manifest.json").read_bytes()
    assert making.tree(whole) == before
    assert not (whole / ".work").exists()


def test_leftovers_of_a_kill_after_the_manifest_are_removed(whole):
    before = making.tree(whole)
    (whole / ".work/pieces").mkdir(parents=True)
    (whole / ".work/pieces/3.npz").write_bytes(b"left")
    assert making.begin(whole).done
    assert making.tree(whole) == before


def test_unreadable_rows_are_known_at_any_time(tmp_path, small_shards):
    writer = making.begin(tmp_path)
    making.compute(writer, 0)
    assert writer.unreadable() == {5: "truncated JPEG"}
    for piece in writer.missing():
        making.compute(writer, piece)
    assert writer.unreadable() == making.UNREADABLE
    writer.seal()
    assert making.begin(tmp_path).unreadable() == making.UNREADABLE


def test_seal_reports_every_shard_and_refuses_missing_pieces(tmp_path, small_shards):
    writer = making.begin(tmp_path)
    making.compute(writer, 0)
    with pytest.raises(CacheUnfinished, match="17 of 18 pieces"):
        writer.seal()
    for piece in writer.missing():
        making.compute(writer, piece)
    seen = []
    writer.seal(seen.append)
    assert sum(seen) == writer.num_shards == (3 + 5) * 3


def test_other_recipe_is_refused_with_what_changed(tmp_path, whole):
    recipe = {"teacher": {"name": "r50", "weights": "xyz"}, "views": 3, "policy": "weak"}
    with pytest.raises(CacheMismatch) as caught:
        making.begin(whole, recipe=recipe)
    assert "`abc` -> `xyz`" in str(caught.value)
    assert "teacher.weights" in str(caught.value)
    assert "policy: `not set` -> `weak`" in str(caught.value)
    assert "seed: `1` -> `not set`" in str(caught.value)
    assert "views" not in str(caught.value)
    assert "--out" in caught.value.hint


def test_other_images_under_the_same_recipe_are_refused(tmp_path, small_shards):
    making.begin(tmp_path)
    index = making.index_of()
    index.labels[3] += 1
    with pytest.raises(CacheMismatch, match="index/label"):
        making.begin(tmp_path, index=index)


@pytest.mark.parametrize("stranger", ["thesis.tex", "recipe.json"])
def test_folder_of_a_stranger_is_left_alone(tmp_path, stranger):
    (tmp_path / stranger).write_text("{}")
    with pytest.raises(CacheMismatch, match="neither empty nor a cache"):
        making.begin(tmp_path)
    assert making.tree(tmp_path) == {stranger: b"{}"}


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        (np.nan, r"gave `nan` in `embedding` of row 70 \(`dog/.*70.jpg`\), view 2", "weights"),
        (-np.inf, "gave `-inf` in `embedding` of row 70", "weights"),
        (70_000.0, "holds `70000`; float16 ends at 65504", "--dtype float32"),
    ],
)
def test_what_is_no_number_is_refused(tmp_path, small_shards, value, message, hint):
    writer = making.begin(tmp_path)
    rows = slice(64, 128)
    values = {spec.name: making.values_of(spec)[rows] for spec in making.SPECS}
    values["embedding"][6, 2, 3] = value
    with pytest.raises(DataError, match=message) as caught:
        writer.put_piece(1, values, {}, {})
    assert hint in caught.value.hint
    assert 1 in writer.missing()
    writer.put_piece(1, values, {70: "truncated"}, {})  # nobody reads a row without an image
    assert 1 not in writer.missing()


@pytest.mark.parametrize("sealed", [False, True])
def test_piece_computed_twice_must_be_equal(tmp_path, small_shards, sealed):
    writer = making.begin(tmp_path)
    for piece in range(8 if sealed else 4):
        making.compute(writer, piece)
    before = making.tree(tmp_path)
    making.compute(writer, 1)
    assert making.tree(tmp_path) == before
    values = {spec.name: making.values_of(spec)[64:128] for spec in making.SPECS}
    values["feature"][5, 1, 3] += 1
    witness = {"row": np.array([64]), "thumb": np.full((1, 4, 4, 3), 1, np.uint8)}
    with pytest.raises(CacheMismatch) as caught:
        writer.put_piece(1, values, {}, witness)
    assert caught.value.hint == ALARM
    assert ("sealed" if sealed else "`feature/1` at (5, 3)") in str(caught.value)
    assert making.tree(tmp_path) == before


def test_shard_of_other_bytes_raises_the_alarm(tmp_path, small_shards):
    writer = making.begin(tmp_path)
    for piece in range(3):
        making.compute(writer, piece)
    shard = tmp_path / "feature/c/0/1/0"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"another worker")
    with pytest.raises(CacheMismatch, match="feature/c/0/1/0"):
        making.compute(writer, 3)


def test_cache_without_a_readable_image_is_refused(tmp_path, small_shards):
    with pytest.raises(DataError, match="not one of 70 images"):
        making.make(tmp_path, num_rows=70, unreadable=dict.fromkeys(range(70), "empty"))


def test_arrays_may_come_alone_and_without_head_and_witness(tmp_path, small_shards):
    (spec, _) = making.SPECS
    writer = making.begin(tmp_path, specs=[spec], num_rows=70, num_views=1, head=None)
    for piece in writer.missing():
        rows = writer.piece_rows(piece)
        values = making.values_of(spec, 70, 1)[rows.start : rows.stop]
        writer.put_piece(piece, {spec.name: values}, {}, {})
    writer.seal()
    cache = open_cache(tmp_path)
    assert cache.head() is None
    assert cache.witness() == {}
    assert cache.readable.all()


def test_true_shard_size_round_trips(tmp_path):
    spec = making.ArraySpec("embedding", 128)
    making.make(tmp_path, specs=[spec], num_rows=600, num_views=1, unreadable={})
    assert (tmp_path / "embedding/c/0/0/0").stat().st_size == 4096 * 128 * 2 + 16 * 16 + 4
    expected = making.values_of(spec, 600, 1).astype(np.float16)[:, 0]
    assert np.array_equal(open_cache(tmp_path).slab("embedding", 0), expected)


def test_moments_are_those_of_numpy():
    values = np.random.default_rng(0).normal(5, 2, (1000, 7))
    moments = Moments(7)
    for part in np.split(values, [10, 10, 700]):
        moments.add(part)
    assert np.allclose(moments.arrays()["mean"], values.mean(0), rtol=1e-12)
    assert np.allclose(moments.arrays()["variance"], values.var(0), rtol=1e-12)


def test_killed_at_any_step_on_disk_it_resumes_to_the_same_bytes(tmp_path):
    process = making.child("sweep", tmp_path, 11)
    out, errors = process.communicate(timeout=120)
    assert errors == ""
    assert int(out) > 20


@pytest.mark.slow
@pytest.mark.dist
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(tmp_path, whole):
    times = random.Random(3)
    for _ in range(6):
        process = making.child("make", tmp_path / "other")
        try:
            process.communicate(timeout=0.5 + 2 * times.random())
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    making.make(tmp_path / "other")
    assert making.tree(tmp_path / "other") == making.tree(whole)


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_make_the_bytes_of_one(tmp_path, whole):
    processes = [making.child("part", tmp_path / "other", part, 2) for part in range(2)]
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    making.begin(tmp_path / "other").seal()
    assert making.tree(tmp_path / "other") == making.tree(whole)


def test_disk_full_leaves_a_cache_that_resumes(tmp_path, whole):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if subprocess.run(command, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(OSError, match="No space left"):
            making.make(disk / "cache")
        shutil.copytree(disk / "cache", tmp_path / "cache")  # to where there is space
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert 0 < len(making.begin(tmp_path / "cache").missing()) < 18
    making.make(tmp_path / "cache")
    assert making.tree(tmp_path / "cache") == making.tree(whole)


def test_file_too_large_leaves_a_cache_that_resumes(tmp_path, whole):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            making.make(tmp_path / "other")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert making.begin(tmp_path / "other").missing()
    making.make(tmp_path / "other")
    assert making.tree(tmp_path / "other") == making.tree(whole)
