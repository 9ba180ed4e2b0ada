"""Pull: whole or in part, checked on the way, gone on with after anything."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from share import serving
from share.conftest import BIG
from store import making

from kdcache.errors import (
    CacheCorrupt,
    CacheMismatch,
    CacheNotFound,
    CacheUnfinished,
    ConfigError,
    DataError,
    MissingExtra,
    PlaceError,
)
from kdcache.progress import silent_bar
from kdcache.share import open_place, pull_cache, push_cache
from kdcache.store import check_digests, grow_cache, open_cache


def push(path, url):
    return push_cache(open_cache(path), url, bar=silent_bar)


def pull(url, out, **options):
    return pull_cache(url, out, bar=silent_bar, **options)


def is_shard(name):
    return "/c/" in name and name.startswith(("feature/", "embedding/"))


def shard_bytes(cache):
    return sum(f.num_bytes for name, f in cache.manifest.files.items() if is_shard(name))


def moved(seen):
    """The bytes of shards that requests have brought."""
    return sum(
        got
        for method, path, _, got in seen
        if method == "GET" and ("/one/feature/c/" in path or "/one/embedding/c/" in path)
    )


@pytest.fixture
def far(big, s3):
    """The URL of the cache `big`."""
    push(big, s3)
    return s3


@pytest.fixture
def site(big):
    """The cache `big` behind a server of plain files: its URL, and the server."""
    with serving.running(serving.Static, root=big, seen=[]) as found:
        yield found


def test_what_was_pushed_is_pulled_byte_for_byte(big, far, tmp_path):
    pulled = pull(far, tmp_path / "out")
    assert pulled.identity == open_cache(big).identity
    assert making.promises(tmp_path / "out") == making.promises(big)
    assert check_digests(tmp_path / "out") == []


def test_two_of_eight_views_move_a_quarter_of_the_bytes(big, far, counted, tmp_path):
    whole, out = open_cache(big), tmp_path / "out"
    shards = shard_bytes(whole)
    pull(far, out, num_views=2)
    assert moved(counted.seen) == shards / 4
    copy = open_cache(out)
    assert (copy.identity, copy.num_views) == (whole.identity, 2)
    assert check_digests(out) == []
    for array in ("feature", "embedding"):
        assert np.array_equal(copy.slab(array, 1), whole.slab(array, 1))
    rows = np.array([1, 599])
    assert np.array_equal(
        copy.rows("feature", rows, rows % 2), whole.rows("feature", rows, rows % 2)
    )
    with pytest.raises(CacheMismatch, match="view 2 of `feature`") as caught:
        copy.slab("feature", 2)
    assert f"kdcache pull {far}@{whole.identity} {out} --views 3" in caught.value.hint
    for num_views, more in ((2, 0), (1, 0), (4, shards / 4), (None, shards / 2)):
        counted.seen.clear()
        pull(far, out, num_views=num_views)
        assert moved(counted.seen) == more
    assert making.promises(out) == making.promises(big)


def test_one_array_and_some_rows_move_their_blocks_only(big, far, counted, tmp_path):
    whole, out = open_cache(big), tmp_path / "out"
    pull(far, out, arrays=("feature",), rows=((300, 310),), num_views=1)
    name = "feature/c/1/0/0"  # 256 rows in a shard
    assert moved(counted.seen) == whole.manifest.files[name].num_bytes
    copy = open_cache(out)
    assert list(copy.arrays) == ["feature"]
    assert np.flatnonzero(copy.readable).tolist() == list(range(300, 310))
    rows = np.array([309, 300])
    assert np.array_equal(
        copy.rows("feature", rows, rows * 0), whole.rows("feature", rows, rows * 0)
    )
    assert np.array_equal(copy.slab("feature", 0)[256:512], whole.slab("feature", 0)[256:512])
    assert not copy.slab("feature", 0)[:256].any()
    with pytest.raises(CacheMismatch, match="row 5") as caught:
        copy.rows("feature", np.array([5]), np.array([0]))
    assert "--rows 5:6 --rows 300:310" in caught.value.hint
    assert not (out / "embedding").exists()
    assert check_digests(out) == []
    pull(far, out, rows=((250, 300),))
    copy = open_cache(out)
    assert np.flatnonzero(copy.readable).tolist() == list(range(250, 310))
    assert list(copy.arrays) == ["embedding", "feature"]
    assert copy.num_views == 8


def test_a_copy_of_a_part_is_pulled_from_for_what_it_holds(big, tmp_path):
    pull(str(big), tmp_path / "part", num_views=3)
    pull(str(tmp_path / "part"), tmp_path / "less", num_views=1)
    pull(str(tmp_path / "part"), tmp_path / "same")
    assert open_cache(tmp_path / "same").num_views == 3
    with pytest.raises(CacheMismatch, match="3 of 8 views") as caught:
        pull(str(tmp_path / "part"), tmp_path / "more", num_views=4)
    assert str(big) in caught.value.hint
    assert not (tmp_path / "more").exists()


def test_a_part_does_not_grow(big, tmp_path):
    pull(str(big), tmp_path / "part", num_views=3)
    with pytest.raises(CacheMismatch, match="only a whole one can grow") as caught:
        grow_cache(open_cache(tmp_path / "part"), making.graph(num_rows=600))
    assert "--views 8" in caught.value.hint


def test_what_the_place_has_grown_by_comes_with_the_next_pull(big, tmp_path):
    pull(str(big), tmp_path / "out", num_views=1)
    grown = grow_cache(open_cache(big), making.graph(num_rows=600))
    done = pull(str(big), tmp_path / "out", num_views=1)
    copy = open_cache(tmp_path / "out")
    assert (copy.identity, copy.num_views, done.num_files) == (grown.identity, 1, 6)
    assert np.array_equal(copy.neighbours().index, grown.neighbours().index)
    assert check_digests(tmp_path / "out") == []


@pytest.mark.parametrize("has_range", [True, False])
def test_plain_files_behind_http_are_enough(big, site, tmp_path, has_range):
    url, server = site
    server.has_range = has_range
    assert pull(url, tmp_path / "out").identity == open_cache(big).identity
    assert check_digests(tmp_path / "out") == []
    server.seen.clear()
    pull(url, tmp_path / "part", num_views=2, arrays=("feature",))
    shards = sum(sent for path, sent in server.seen if is_shard(path.lstrip("/")))
    files = open_cache(big).manifest.files
    assert shards == sum(f.num_bytes for n, f in files.items() if n.startswith("feature/c/")) / 4
    with pytest.raises(PlaceError, match="reading only"):
        push(big, url)


@pytest.mark.parametrize("has_range", [True, False])
def test_a_file_that_broke_off_is_gone_on_with_where_the_server_can(
    big, site, tmp_path, monkeypatch, has_range
):
    from kdcache import objects
    from kdcache.share import bucket

    monkeypatch.setattr(objects, "RETRIES", 0)
    monkeypatch.setattr(bucket, "_STREAM_BYTES", 4096)
    url, server = site
    server.has_range = has_range
    name = "feature/c/0/0/0"
    digest = open_cache(big).manifest.files[name]
    whole = digest.num_bytes
    server.cut_after = whole - 5000
    place, counts = open_place(url), []
    with pytest.raises(PlaceError, match="does not answer as it should"):
        place.fetch(name, tmp_path / "f", digest, counts.append)
    assert not (tmp_path / "f").exists()
    (part,) = tmp_path.glob(".f.*.part")
    server.cut_after = None
    server.seen.clear()
    arrived = part.stat().st_size
    place.fetch(name, tmp_path / "f", digest, counts.append)
    assert (tmp_path / "f").read_bytes() == (big / name).read_bytes()
    assert [sent for _, sent in server.seen][-1] == (whole - arrived if has_range else whole)
    assert arrived > 0
    assert list(tmp_path.glob(".f*")) == []


def test_wrong_bytes_never_appear(big, site, tmp_path):
    url, _ = site
    name = "feature/c/1/3/0"
    right = (big / name).read_bytes()
    (big / name).write_bytes(b"?" + right[1:])
    with pytest.raises(CacheCorrupt, match="has the SHA-256"):
        pull(url, tmp_path / "out")
    assert not (tmp_path / "out" / name).exists()
    (big / name).write_bytes(right[:-1])
    with pytest.raises(CacheCorrupt, match="bytes, and the manifest promises"):
        pull(url, tmp_path / "out")
    with pytest.raises(CacheUnfinished, match="has not come to its end") as caught:
        open_cache(tmp_path / "out")
    assert "same pull" in caught.value.hint
    (big / name).write_bytes(right)
    pull(url, tmp_path / "out")
    assert check_digests(tmp_path / "out") == []


def test_a_part_left_by_a_machine_that_lost_power_is_fetched_anew(big, tmp_path):
    name = "feature/c/0/0/0"
    digest = open_cache(big).manifest.files[name]
    part = tmp_path / f".f.{digest.sha256[:16]}.part"
    for wrong in (bytes(1000), bytes(digest.num_bytes), bytes(digest.num_bytes + 1)):
        part.write_bytes(wrong)
        open_place(str(big)).fetch(name, tmp_path / "f", digest, lambda count: None)
        assert (tmp_path / "f").read_bytes() == (big / name).read_bytes()


def test_nothing_that_is_there_already_is_harmed(big, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("...")
    with pytest.raises(ConfigError, match="not empty and no cache"):
        pull(str(big), tmp_path / "home")
    making.make(tmp_path / "other", num_rows=150, num_views=2, unreadable={})
    before = making.tree(tmp_path / "other")
    with pytest.raises(CacheMismatch, match="holds another cache"):
        pull(str(big), tmp_path / "other")
    assert making.tree(tmp_path / "other") == before
    making.begin(tmp_path / "begun")
    with pytest.raises(CacheUnfinished, match="extraction under way"):
        pull(str(big), tmp_path / "begun")


def test_what_is_not_there_is_told(big, s3, environment, tmp_path):
    with pytest.raises(CacheNotFound, match="there is no cache at"):
        pull(s3, tmp_path / "out")
    with pytest.raises(CacheNotFound, match="has not held"):
        pull(f"{big}@{'a' * 64}", tmp_path / "out")
    with pytest.raises(ConfigError, match="--rows 0:601"):
        pull(str(big), tmp_path / "out", rows=((0, 601),))
    with pytest.raises(CacheMismatch, match="9 of 8 views"):
        pull(str(big), tmp_path / "out", num_views=9)
    with pytest.raises(ConfigError, match="no place that is known"):
        open_place("ftp://host/cache")
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_told(monkeypatch):
    monkeypatch.delitem(sys.modules, "kdcache.share.bucket", raising=False)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtra, match="`obstore`, which is not installed") as caught:
        open_place("s3://bucket/one")
    assert "kdcache[remote]" in caught.value.hint
    assert open_place("/some/folder").url == "/some/folder"


def test_trouble_with_a_bucket_is_told_in_its_words(s3, counted, tmp_path, monkeypatch):
    with pytest.raises(PlaceError, match="there is no bucket for"):
        pull("s3://no-such-bucket-here/one", tmp_path / "out")
    counted.fault = lambda handler, body: handler.refuse(403)
    with pytest.raises(PlaceError, match="may not be used with these credentials"):
        pull(s3, tmp_path / "out")
    counted.fault = lambda handler, body: handler.refuse(401)
    with pytest.raises(PlaceError, match="asks for credentials"):
        pull(s3, tmp_path / "out")
    counted.fault = lambda handler, body: handler.refuse(503)
    with pytest.raises(PlaceError, match="503") as caught:
        pull(s3, tmp_path / "out")
    assert "it goes on" in caught.value.hint
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(PlaceError, match="does not answer as it should"):
        pull(s3, tmp_path / "out")


def test_a_bucket_that_falls_silent_is_told(s3, counted, tmp_path, monkeypatch):
    import threading
    from datetime import timedelta

    from kdcache import objects

    monkeypatch.setattr(objects, "SILENCE", timedelta(milliseconds=200))
    monkeypatch.setattr(objects, "RETRIES", 1)
    over = threading.Event()
    counted.fault = lambda handler, body: over.wait(20) and handler.refuse(500)
    try:
        with pytest.raises(PlaceError, match="does not answer as it should"):
            pull(s3, tmp_path / "out")
    finally:
        over.set()


def test_a_page_for_people_is_no_manifest(tmp_path):
    (tmp_path / "manifest.json").write_text("<html>")
    with (
        serving.running(serving.Static, root=tmp_path, seen=[]) as (url, _),
        pytest.raises(CacheCorrupt, match="no manifest of a cache"),
    ):
        pull(url, tmp_path / "out")


def test_full_disk_is_foreseen(big, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="MB free"):
        pull(str(big), tmp_path / "out")


def test_disk_that_fills_on_the_way_loses_nothing(big, tmp_path):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (30_000, 30_000)
        )  # writes fail, as on a full disk

    command = [sys.executable, "-m", "kdcache_cli", "pull", str(big), str(tmp_path / "out")]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, preexec_fn=limit, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "file too large" in done.stderr
    with pytest.raises(CacheUnfinished):
        open_cache(tmp_path / "out")
    pull(str(big), tmp_path / "out")
    assert check_digests(tmp_path / "out") == []


def test_what_a_pull_of_another_cache_has_left_is_not_taken_for_its_own(big, tmp_path):
    making.make(tmp_path / "other", **{**BIG, "unreadable": {}})
    out = tmp_path / "out"
    pull(str(tmp_path / "other"), out)
    (out / ".work").mkdir()
    (out / "manifest.json").rename(out / ".work" / "pulled.json")  # as if it had been killed
    pull(str(big), out)
    assert making.promises(out) == making.promises(big)


def test_a_pull_during_a_push_finds_what_was_moved(big, tmp_path):
    """The place still has the old manifest, and one of its files is that of the next already."""
    expected = making.promises(big)
    place, name = open_place(str(big)), "statistics/feature/mean/c/0"
    place.copy(name, f"superseded/{open_cache(big).manifest.files[name].sha256}")
    place.swap(name, bytes(len(expected[name])), expected[name])
    pull(str(big), tmp_path / "out")
    assert making.promises(tmp_path / "out") == expected


def test_a_folder_on_another_mount(big, tmp_path):
    mount = Path("/dev/shm")
    if not mount.is_dir() or mount.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs /dev/shm on another device than the folder of the tests")
    place = mount / f"kdcache-{os.getpid()}"
    try:
        push(big, f"file://{place}")
        assert pull(str(place), tmp_path / "out").identity == open_cache(big).identity
        assert making.promises(tmp_path / "out") == making.promises(big)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_pull_that_was_killed_before_it_could_say_what_was_coming_goes_on(big, tmp_path):
    out = tmp_path / "out"
    (out / "manifests").mkdir(parents=True)
    (out / "manifests" / ".lock").touch()
    (out / ".work" / "staged").mkdir(parents=True)
    (out / ".work" / "staged" / ".1-2.partial").write_bytes(b"half")
    pull_cache(str(big), out, bar=silent_bar)
    assert making.promises(out) == making.promises(big)
    assert not (out / ".work").exists()
