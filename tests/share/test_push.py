"""Push: whole or not there; one cache a place, and what it was is kept."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from store import making

from kdcache.errors import CacheCorrupt, CacheMismatch, CacheUnfinished, PlaceError
from kdcache.files import canonical_json
from kdcache.progress import silent_bar
from kdcache.share import find_published, lineage, open_place, pull_cache, push_cache
from kdcache.store import check_digests, grow_cache, open_cache

SMALL = {"num_rows": 150, "num_views": 2, "unreadable": {5: "empty"}}


@pytest.fixture
def small(tmp_path, small_shards):
    """A small finished cache."""
    making.make(tmp_path / "small", **SMALL)
    return tmp_path / "small"


def push(path, url):
    return push_cache(open_cache(path), url, bar=silent_bar)


def pull(url, out, **options):
    return pull_cache(url, out, bar=silent_bar, **options)


def puts(seen):
    """The names of what was put, in order."""
    return [path.split("/one/")[1] for method, path, _, _ in seen if method == "PUT"]


def other_cache(path, **changes):
    """A cache of other images."""
    making.make(path, **{**SMALL, "unreadable": {}, **changes})
    return path


@pytest.fixture(params=["s3", "folder"])
def place(request, tmp_path):
    """The URL of a place of each kind that can be written to."""
    if request.param == "folder":
        return str(tmp_path / "shared" / "one")
    return request.getfixturevalue("s3")


def test_manifest_comes_last_and_shards_first(small, s3, counted):
    push(small, s3)
    names = puts(counted.seen)
    values = [n for n in names if n.split("/")[0] in ("feature", "embedding") and "/c/" in n]
    assert names[0] == "pushing.json"
    first_small = next(i for i, n in enumerate(names[2:], 2) if n not in values)
    assert set(names[2:first_small]) == set(values)
    assert names[-1] == "manifest.json"
    assert open_place(s3).read("pushing.json") is None


def test_a_second_push_of_the_same_sends_nothing(small, place):
    assert push(small, place).num_sent == len(open_cache(small).manifest.files)
    again = push(small, place)
    assert (again.num_sent, again.replaced) == (0, None)


def test_what_has_arrived_is_not_sent_again(small, s3, counted):
    left = iter(range(12))

    def broken(handler, body):
        return handler.command == "PUT" and next(left, None) is None and handler.refuse(500)

    counted.fault = broken
    with pytest.raises(PlaceError, match="500"):
        push(small, s3)
    assert find_nothing(s3)
    before = set(puts(counted.seen)) - {"pushing.json"}
    assert before
    counted.fault = None
    counted.seen.clear()
    push(small, s3)
    assert not before & set(puts(counted.seen))
    assert find_published(open_place(s3)).identity == open_cache(small).identity


def find_nothing(url):
    return open_place(url).read("manifest.json") is None


def test_another_cache_is_refused_with_both_identities(small, place, tmp_path):
    push(small, place)
    other = open_cache(other_cache(tmp_path / "other"))
    with pytest.raises(CacheMismatch) as caught:
        push(other.path, place)
    assert open_cache(small).identity in str(caught.value)
    assert other.identity in str(caught.value)
    assert pull(place, tmp_path / "out").identity == open_cache(small).identity


def test_a_place_that_is_being_filled_is_refused_and_no_cache(small, place, tmp_path):
    claim = canonical_json({"identity": "f" * 64})
    assert open_place(place).swap("pushing.json", claim, None)
    with pytest.raises(CacheMismatch, match="f" * 64):
        push(small, place)
    with pytest.raises(CacheUnfinished, match="being pushed"):
        pull(place, tmp_path / "out")


def test_a_broken_file_is_not_sent(small, place):
    name = next(n for n in open_cache(small).manifest.files if n.startswith("feature/c/"))
    data = bytearray((small / name).read_bytes())
    data[100] ^= 1
    (small / name).write_bytes(data)
    with pytest.raises(CacheCorrupt, match="was not sent"):
        push(small, place)
    assert open_place(place).read(name) is None
    data[100] ^= 1
    (small / name).write_bytes(data)
    push(small, place)


def test_a_grown_cache_follows_and_the_old_one_stays(small, place, tmp_path):
    old = open_cache(small)
    push(small, place)
    grown = grow_cache(old, making.graph(num_rows=150))
    done = push(small, place)
    assert done.replaced == old.identity
    assert list(lineage(open_place(place))) == [grown.identity, old.identity]
    assert pull(place, tmp_path / "new").identity == grown.identity
    assert pull(f"{place}@{old.identity}", tmp_path / "old").identity == old.identity
    assert check_digests(tmp_path / "old") == []
    assert open_cache(tmp_path / "old").neighbours() is None
    with pytest.raises(CacheMismatch, match="which has followed it"):
        push(tmp_path / "old", place)


def first_views(spec, num_rows=150, num_views=2):
    """Values of which the first views are the same for any number of views."""
    random = np.random.default_rng(spec.dim)
    views = [random.normal(size=(num_rows, spec.dim)) for _ in range(num_views)]
    return np.stack(views, axis=1).astype(np.float32)


def test_more_views_of_the_same_share_the_shards(place, small_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(making, "values_of", first_views)
    making.make(tmp_path / "old", **SMALL)
    making.make(tmp_path / "more", **{**SMALL, "num_views": 3})
    old, new = open_cache(tmp_path / "old"), open_cache(tmp_path / "more")
    push(old.path, place)
    pull(place, tmp_path / "part", num_views=1)
    done = push(new.path, place)
    assert done.replaced == old.identity
    shards = sum(f.num_bytes for n, f in new.manifest.files.items() if is_shard(n) and "/2/0" in n)
    others = sum(
        f.num_bytes
        for n, f in new.manifest.files.items()
        if old.manifest.files.get(n) != f and not is_shard(n)
    )
    assert done.sent_bytes == shards + others
    assert set(lineage(open_place(place))) >= {new.identity} | (
        {old.identity} if place.startswith(("s3", "/")) else set()
    )
    for identity, folder in ((old.identity, old.path), (new.identity, new.path)):
        pull(f"{place}@{identity}", tmp_path / identity)
        expected = making.promises(folder)
        assert making.promises(tmp_path / identity) == expected
    # What was begun before goes on with the cache that it was begun with.
    pull(open_cache(tmp_path / "part").copy.source, tmp_path / "part")
    assert making.promises(tmp_path / "part") == making.promises(old.path)
    with pytest.raises(CacheMismatch, match="holds another cache"):
        pull(place, tmp_path / "part")
    with pytest.raises(CacheMismatch, match="which has followed it"):
        push(old.path, place)


def is_shard(name):
    return "/c/" in name and name.startswith(("feature", "embedding"))


def test_a_lost_answer_is_no_refusal(small, s3, counted):
    """The manifest is put, the answer gets lost, and what is sent again meets its own object."""
    lost = []

    def lose(handler, body):
        if handler.command != "PUT" or not handler.path.endswith("/manifest.json") or lost:
            return False
        lost.append(True)
        import http.client

        connection = http.client.HTTPConnection(handler.target.removeprefix("http://"))
        connection.request("PUT", handler.path, body=body, headers=dict(handler.headers))
        assert connection.getresponse().status == 200
        connection.close()
        return handler.refuse(503)

    counted.fault = lose
    push(small, s3)
    assert lost
    assert find_published(open_place(s3)).identity == open_cache(small).identity


def test_of_racing_pushers_exactly_one_wins(small, place, tmp_path):
    other = other_cache(tmp_path / "other")
    identities = {open_cache(small).identity, open_cache(other).identity}
    winners = set()
    for turn in range(6):
        url = f"{place}/{turn}"
        told = {}
        start = threading.Barrier(2)

        def race(path, url=url, told=told, start=start):
            start.wait()
            try:
                told[open_cache(path).identity] = push(path, url)
            except CacheMismatch as error:
                told[open_cache(path).identity] = error

        threads = [threading.Thread(target=race, args=(path,)) for path in (small, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lost = [name for name, found in told.items() if isinstance(found, CacheMismatch)]
        assert len(lost) == 1
        (winner,) = identities - set(lost)
        assert winner in str(told[lost[0]])
        assert pull(url, tmp_path / f"out{turn}").identity == winner
        winners.add(winner)
    assert winners <= identities


def test_the_same_cache_pushed_twice_at_once_is_no_trouble(small, place, tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(push(small, place))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert check_digests(tmp_path / "out" if pull(place, tmp_path / "out") else Path()) == []


def test_a_server_that_ignores_conditions_is_refused(small, s3, counted):
    def forget(handler, body):
        del handler.headers["If-None-Match"]
        return False

    counted.fault = forget
    with pytest.raises(PlaceError, match="both would win"):
        push(small, s3)
    assert open_place(s3).sizes() == {}


def test_a_part_is_not_pushed(small, place, tmp_path):
    push(small, place)
    pull(place, tmp_path / "part", num_views=1)
    with pytest.raises(CacheMismatch, match="copy of a part") as caught:
        push(tmp_path / "part", f"{place}2")
    assert "--views 2" in caught.value.hint


def test_claims_say_who(small, s3, counted):
    seen = []

    def look(handler, body):
        if handler.path.endswith("pushing.json") and handler.command == "PUT":
            seen.append(body)
        return False

    counted.fault = look
    push(small, s3)
    assert json.loads(seen[0]) == {"identity": open_cache(small).identity}
