"""Training from afar: the views that an epoch needs are here when it needs them, and no more."""

import re
import threading

import numpy as np
import pytest
from small import make_cache, recipe_for, run

from kdcache.errors import ConfigError
from kdcache.files import cache_folder
from kdcache.progress import silent_bar
from kdcache.share import push_cache, remote_cache
from kdcache.store import open_cache
from kdcache.train import read_metrics


def view_bytes(path, array="feature"):
    """What the shards of a view take up."""
    files = open_cache(path).manifest.files
    return sum(
        f.num_bytes
        for name, f in files.items()
        if name.startswith(f"{array}/c/") and name.endswith("/1/0")
    )


def there():
    """The shards in the local tier, as (array, view)."""
    found = set()
    for path in cache_folder().glob("caches/*/*/c/*/*/0"):
        found.add((path.parts[-5], int(path.parts[-2])))
    return found


@pytest.fixture
def far(big, s3):
    push_cache(open_cache(big), s3, bar=silent_bar)
    return s3


def test_values_are_those_on_disk_and_only_views_asked_for_come(far, big):
    whole = open_cache(big)
    with remote_cache(far, limit_bytes=10**9, bar=silent_bar) as cache:
        assert (cache.num_views, cache.identity) == (8, whole.identity)
        assert np.array_equal(cache.readable, whole.readable)
        assert there() == set()
        assert np.array_equal(cache.slab("feature", 3), whole.slab("feature", 3))
        assert there() == {("feature", 3)}
        rows, views = np.array([1, 599, 300]), np.array([0, 7, 0])
        assert np.array_equal(
            cache.rows("embedding", rows, views), whole.rows("embedding", rows, views)
        )
        assert there() == {("feature", 3), ("embedding", 0), ("embedding", 7)}


def test_what_is_here_is_not_fetched_again(far, counted):
    for _ in range(2):
        with remote_cache(far, limit_bytes=10**9, bar=silent_bar) as cache:
            cache.slab("feature", 0)
    shards = [path for method, path, _, _ in counted.seen if method == "GET" and "/c/" in path]
    assert len(shards) == len(set(shards))


def test_views_used_longest_ago_make_room_and_held_ones_stay(far, big):
    limit = 2 * view_bytes(big)
    with (
        remote_cache(far, limit_bytes=limit, bar=silent_bar) as cache,
        remote_cache(far, limit_bytes=limit, bar=silent_bar) as other,
    ):
        other.expect("feature", 0)
        other._source._expected["feature", 0].result()
        for view in range(1, 5):
            cache.slab("feature", view)
            assert there() == {("feature", 0), ("feature", view)}
        other.slab("feature", 0)
        cache.slab("feature", 5)
        cache.slab("feature", 6)
        assert there() == {("feature", 5), ("feature", 6)}


def test_a_view_that_was_used_again_is_not_the_oldest(far, big):
    with remote_cache(far, limit_bytes=2 * view_bytes(big), bar=silent_bar) as cache:
        for view in (1, 2, 1, 3):
            cache.slab("feature", view)
        assert there() == {("feature", 1), ("feature", 3)}


def test_a_limit_below_one_view_is_refused(far, big):
    with (
        remote_cache(far, limit_bytes=view_bytes(big) - 1, bar=silent_bar) as cache,
        pytest.raises(ConfigError, match="a view takes") as caught,
    ):
        cache.slab("feature", 0)
    assert "--local-size" in caught.value.hint


def test_a_view_that_is_expected_comes_while_nobody_waits(far, counted):
    with remote_cache(far, limit_bytes=10**9, bar=silent_bar) as cache:
        cache.expect("feature", 2)
        cache._source._expected["feature", 2].result()
        counted.seen.clear()
        cache.slab("feature", 2)
        assert counted.seen == []


def test_trouble_ahead_of_time_is_met_again_when_it_matters(far, big, counted):
    with remote_cache(far, limit_bytes=10**9, bar=silent_bar) as cache:
        counted.fault = lambda handler, body: handler.refuse(500)
        cache.expect("feature", 2)
        assert cache._source._expected["feature", 2].exception() is not None
        counted.fault = None
        assert np.array_equal(cache.slab("feature", 2), open_cache(big).slab("feature", 2))


def test_several_runs_at_once_fetch_a_view_once(far, counted):
    def read():
        with remote_cache(far, limit_bytes=10**9, bar=silent_bar) as cache:
            cache.slab("feature", 1)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shards = [path for method, path, _, _ in counted.seen if "/feature/c/" in path]
    assert len(shards) == len(set(shards)) == 3


@pytest.mark.parametrize(
    ("method", "workers"), [("seed", 0), pytest.param("simreg", 1, marks=pytest.mark.slow)]
)
def test_loss_is_that_from_disk_bit_for_bit(
    method, workers, tiny_images, tiny_weights, s3, tmp_path, counted
):
    make_cache(tiny_images, tiny_weights, tmp_path / "cache", num_views=3)
    push_cache(open_cache(tmp_path / "cache"), s3, bar=silent_bar)
    recipe = recipe_for(method, train={"epochs": 3}, run={"views": 2})
    near = run(recipe, tiny_images, tmp_path / "near", tmp_path / "cache")
    counted.seen.clear()
    with remote_cache(s3, limit_bytes=10**9, bar=silent_bar) as cache:
        # Workers are processes that are forked, and obstore has threads in this one by now.
        afar = run(recipe, tiny_images, tmp_path / "far", caches=[cache], workers=workers)
    losses = [[r["loss"] for r in read_metrics(tmp_path / name)] for name in ("near", "far")]
    assert losses[0] == losses[1]
    assert near.student.read_bytes() == afar.student.read_bytes()
    assert {view for _, view in asked_for(counted.seen)} == {0, 1}


def asked_for(seen):
    """The shards that were asked for, as (array, view)."""
    found = (re.search(r"/one/(feature|embedding)/c/\d+/(\d+)/0", path) for _, path, _, _ in seen)
    return {(match[1], int(match[2])) for match in found if match}
