"""Tar shards in a bucket as images: the same rows, and caches of the same bytes, as from a disk."""

import tarfile

import numpy as np
import obstore
import pytest
from obstore.store import from_url
from small import make_cache, tree_of

from kdcache.errors import DataError, PlaceError
from kdcache.images import open_images

NUM_SHARDS = 3


@pytest.fixture
def packed(tmp_path, tiny_images):
    """A folder of shards, with classes, whose members are in no order."""
    names = sorted(path for path in tiny_images.rglob("*") if path.is_file())
    order = np.random.default_rng(0).permutation(len(names))
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / f"t-{shard:03}.tar", "w") as tar:
            for number in order[shard::NUM_SHARDS]:
                path = names[number]
                tar.add(path, arcname=f"{number:05}{path.suffix}")
                label = tmp_path / "label"
                label.write_text(path.parent.name[-1])
                tar.add(label, arcname=f"{number:05}.cls")
    return folder


@pytest.fixture
def uploaded(packed, s3):
    """The URL of a folder with the same shards and something else."""
    store = from_url(s3, client_options={"allow_http": True})
    for path in packed.iterdir():
        obstore.put(store, path.name, path.read_bytes())
    obstore.put(store, "notes.txt", b"not a shard")
    obstore.put(store, "deeper/t-009.tar", b"not a tar")
    return s3


@pytest.mark.parametrize("pattern", ["t-{000..002}.tar", "t-*.tar", "t-00[012].tar"])
def test_patterns_of_urls_stand_for_the_same_rows(uploaded, packed, pattern):
    near, far = open_images(packed), open_images(f"{uploaded}/{pattern}")
    assert list(far.paths) == list(near.paths)
    assert far.labels.tolist() == near.labels.tolist()
    assert far.classes == near.classes == ("0", "1", "2", "3")
    rows = [5, 4, 40, 3, 3]
    assert far.read_rows(rows) == near.read_rows(rows) == [near.read(row) for row in rows]


def test_a_single_shard_and_a_folder_are_taken_too(uploaded, packed):
    one = open_images(f"{uploaded}/t-001.tar")
    assert list(one.paths) == list(open_images(packed / "t-001.tar").paths)
    with pytest.raises(DataError, match=r"deeper/t-009.tar` is cut off, or not"):
        open_images(uploaded)
    obstore.delete(from_url(uploaded, client_options={"allow_http": True}), "deeper/t-009.tar")
    assert list(open_images(uploaded + "/").paths) == list(open_images(packed).paths)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_from_a_bucket_has_the_bytes_of_one_from_a_disk(
    uploaded, packed, tiny_weights, tmp_path, workers
):
    make_cache(packed, tiny_weights, tmp_path / "near")
    make_cache(f"{uploaded}/t-*.tar", tiny_weights, tmp_path / "far", workers=workers)
    assert tree_of(tmp_path / "far") == tree_of(tmp_path / "near")


def test_near_members_are_fetched_by_one_request(uploaded, counted, packed):
    near = open_images(packed)
    images = open_images(f"{uploaded}/t-{{000..002}}.tar")
    gets = [seen for seen in counted.seen if seen[0] == "GET"]
    assert len(gets) == NUM_SHARDS  # each was gone through once, in steps of 4 MiB
    counted.seen.clear()
    assert images.read_rows(range(8)) == near.read_rows(range(8))
    assert [seen[0] for seen in counted.seen] == ["HEAD", "GET"]


def test_what_is_not_there_is_named(uploaded, s3):
    with pytest.raises(DataError, match=r"there is no `.*t-003.tar`"):
        open_images(f"{uploaded}/t-{{000..003}}.tar")
    with pytest.raises(DataError, match="no tar files at"):
        open_images(f"{uploaded}/x-*.tar")
    with pytest.raises(DataError, match="names no tar files"):
        open_images("s3://bucket")
    with pytest.raises(PlaceError, match="no bucket"):
        open_images("s3://nosuchbucketatall/t-*.tar")


def test_a_shard_that_was_changed_since_is_refused(uploaded, packed):
    images = open_images(f"{uploaded}/t-000.tar")
    store = from_url(uploaded, client_options={"allow_http": True})
    obstore.put(store, "t-000.tar", (packed / "t-000.tar").read_bytes() + b"\0" * 512)
    with pytest.raises(DataError, match="was changed since"):
        images.read(0)
    images = open_images(f"{uploaded}/t-000.tar")
    obstore.delete(store, "t-000.tar")
    with pytest.raises(DataError, match="is gone since"):
        images.read(0)
