"""Whatever is damaged is noticed, and repair brings the very bytes back or leaves all as it is."""

import json
import os
import random
import shutil
import signal
import threading

import pytest
from small import tree_of
from store import making
from verify import damage

from kdcache.errors import CacheCorrupt, CacheMismatch, ConfigError
from kdcache.files import canonical_json, exclusive
from kdcache.store import grow_cache, open_cache
from kdcache.verify import copy_at, repair_cache, verify_cache

DAMAGES = {
    "bit flip": (damage.flip_bit, 100),
    "noise": (damage.overwrite_with_noise, 40),
    "truncated shard": (damage.truncate, 30),
    "missing file": (damage.remove, 30),
    "swapped shards": (damage.swap, 30),
}


def without_lock(root):
    return {name: data for name, data in tree_of(root).items() if name != "manifests/.lock"}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_always_noticed_and_a_copy_brings_the_bytes_back(
    small_once, small_shards, tmp_path, case
):
    """230 trials, of one damage each or (in every third) of several."""
    do, trials = DAMAGES[case]
    rng = random.Random(case)
    whole, copy = tree_of(small_once), copy_at(str(small_once))
    for trial in range(trials):
        path = damage.linked_copy(small_once, tmp_path / str(trial))
        hit = [do(path, rng) for _ in range(rng.choice((1, 1, 3)))]
        assert not verify_cache(path).whole, f"trial {trial}: {hit}"
        verdict, report = repair_cache(path, copy=copy)
        assert verdict.whole, (trial, hit, report.lines())
        assert without_lock(path) == whole, f"trial {trial}: {hit}"
    assert tree_of(small_once) == whole


def test_stale_manifest_of_another_cache_is_noticed_and_mended(small, small_once, tmp_path):
    other = damage.make_small(tmp_path / "other", recipe={**damage.RECIPE, "seed": 2})
    data = (other / "manifest.json").read_bytes()
    damage.replace(small, "manifest.json", data)
    found = {finding.kind for finding in verify_cache(small).problems}
    assert found == {"bytes"}  # of the recipe, which is the one file that differs
    verdict, report = repair_cache(small, copy=copy_at(str(small_once)))
    assert verdict.whole
    assert report.mended == {"manifest.json": "fetched"}
    assert without_lock(small) == tree_of(small_once)


def test_stale_manifest_of_the_younger_self_is_noticed_and_mended(small, tmp_path):
    old = (small / "manifest.json").read_bytes()
    grow_cache(open_cache(small), making.graph(num_rows=300))
    whole = without_lock(small)
    copy = shutil.copytree(small, tmp_path / "copy")
    damage.replace(small, "manifest.json", old)
    assert not verify_cache(small).whole
    verdict, _ = repair_cache(small, copy=copy_at(str(copy)))
    assert verdict.whole
    assert without_lock(small) == whole


def test_copy_of_another_cache_is_refused_and_nothing_written(small, tmp_path):
    other = damage.make_small(tmp_path / "other", recipe={**damage.RECIPE, "seed": 2})
    damage.flip_bit(small, random.Random(0), "embedding/c/0/0/0")
    before = without_lock(small)
    with pytest.raises(CacheMismatch, match="holds the cache"):
        repair_cache(small, copy=copy_at(str(other)))
    assert without_lock(small) == before


def test_grown_cache_is_not_turned_back_by_an_older_copy(small, small_once):
    grow_cache(open_cache(small), making.graph(num_rows=300))
    damage.flip_bit(small, random.Random(0), "embedding/c/0/0/0")
    with pytest.raises(CacheMismatch):
        repair_cache(small, copy=copy_at(str(small_once)))


def test_broken_manifest_needs_a_copy(small, small_once):
    damage.replace(small, "manifest.json", b"{")
    with pytest.raises(CacheCorrupt, match="nothing else says") as caught:
        repair_cache(small)
    assert "--from" in caught.value.hint
    verdict, _ = repair_cache(small, copy=copy_at(str(small_once)))
    assert verdict.whole


DERIVED = [
    "zarr.json",
    "embedding/zarr.json",
    "receipts/embedding/3.1.json",
    "statistics/zarr.json",
    "statistics/embedding/zarr.json",
    "statistics/embedding/mean/zarr.json",
    "statistics/embedding/mean/c/0",
    "statistics/embedding/variance/c/0",
    "index/readable/zarr.json",
    "index/readable/c/0",
    "index/image_id/zarr.json",
    "index/label/zarr.json",
    "index/path_offsets/zarr.json",
    "index/path_bytes/zarr.json",
    "witness/zarr.json",
]


def test_what_follows_from_the_rest_is_worked_out_without_a_copy(small, small_once):
    """All at once, and so each needs others that are broken as well."""
    whole = tree_of(small_once)
    assert set(DERIVED) <= whole.keys()
    for name in DERIVED:
        damage.flip_bit(small, random.Random(name), name)
    verdict, report = repair_cache(small)
    assert verdict.whole
    assert set(report.mended) == set(DERIVED)
    assert set(report.mended.values()) == {"worked out"}
    assert without_lock(small) == whole


def test_what_only_a_copy_has_is_refused_and_said(small):
    damage.flip_bit(small, random.Random(0), "embedding/c/2/0/0")
    damage.flip_bit(small, random.Random(0), "recipe.json")
    damage.flip_bit(small, random.Random(0), "receipts/embedding/1.1.json")
    before = without_lock(small)
    verdict, report = repair_cache(small)
    assert verdict.broken_files == ["embedding/c/2/0/0", "recipe.json"]
    assert report.mended == {"receipts/embedding/1.1.json": "worked out"}
    assert "--from COPY" in report.refused["recipe.json"][-1]
    assert "--data" in report.refused["embedding/c/2/0/0"][-1]
    changed = {name for name, data in without_lock(small).items() if before[name] != data}
    assert changed == {"receipts/embedding/1.1.json"}


def test_copy_that_is_broken_itself_gives_what_it_can(small, small_once, tmp_path):
    copy = shutil.copytree(small_once, tmp_path / "copy")
    names = ["embedding/c/2/0/0", "embedding/c/3/0/0", "index/label/c/0"]
    for name in names:
        damage.flip_bit(small, random.Random(0), name)
    damage.flip_bit(copy, random.Random(1), names[0])
    (copy / names[2]).unlink()
    verdict, report = repair_cache(small, copy=copy_at(str(copy)))
    assert verdict.broken_files == [names[0], names[2]]
    assert report.mended == {names[1]: f"fetched from `{copy}`"}
    assert "has the SHA-256" in report.refused[names[0]][0]
    assert "is missing" in report.refused[names[2]][0]


def test_bad_rows_that_are_promised_are_not_mended(small):
    """The manifest says that they are right, so no copy has others."""
    damage.set_rows(small, 2, 1, lambda rows: rows[3].fill(0))
    damage.flip_bit(small, random.Random(0), "statistics/zarr.json")
    verdict, _ = repair_cache(small)
    assert "hole" in {finding.kind for finding in verdict.problems}


def test_whole_cache_is_left_alone(small, small_once):
    verdict, report = repair_cache(small, copy=copy_at(str(small_once)))
    assert verdict.whole
    assert report.lines() == []
    assert tree_of(small) == tree_of(small_once)  # without even a lock


def test_repair_waits_for_nobody(small, small_once):
    damage.flip_bit(small, random.Random(0), "embedding/c/2/0/0")
    (small / "manifests").mkdir()
    with exclusive(small / "manifests"), pytest.raises(ConfigError, match="another process"):
        repair_cache(small, copy=copy_at(str(small_once)))


def test_two_repairs_whose_lock_was_lost_do_no_harm(small, small_once):
    """Both believe that they are alone: somebody took the file of the lock away."""
    for name in damage.shards_of(small):
        damage.flip_bit(small, random.Random(name), name)
    copy, failed = copy_at(str(small_once)), []

    def repair():
        try:
            repair_cache(small, copy=copy)
        except Exception as error:
            failed.append(error)

    entered = threading.Event()
    fetch = copy.fetch

    def slow_fetch(*arguments):
        entered.set()
        fetch(*arguments)

    first = threading.Thread(target=repair)
    object.__setattr__(copy, "fetch", slow_fetch)
    first.start()
    assert entered.wait(60)
    (small / "manifests/.lock").unlink()
    repair()
    first.join()
    # Whoever lost a staged file to the other's tidying may have stopped; again, and all is well.
    assert repair_cache(small, copy=copy)[0].whole
    assert without_lock(small) == tree_of(small_once)


def test_repair_that_is_killed_at_any_step_is_completed(small_once, small_shards, tmp_path):
    """It dies at each third of its changes on disk; every file is the old or the right one."""
    whole = tree_of(small_once)
    copy, deaths = copy_at(str(small_once)), 0
    while True:
        path = damage.linked_copy(small_once, tmp_path / str(deaths))
        rng = random.Random(7)
        for name in ("embedding/c/2/0/0", "embedding/c/4/1/0", "zarr.json", *DERIVED[1:8:3]):
            damage.flip_bit(path, rng, name)
        (path / "index/label/c/0").unlink()
        before = without_lock(path)
        process = os.fork()
        if process == 0:
            making._die_at(3 * deaths)
            repair_cache(path, copy=copy)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        for name, data in without_lock(path).items():
            if not name.startswith(".work/"):
                assert data in (before.get(name), whole[name]), f"death {deaths}: {name}"
        verdict, _ = repair_cache(path, copy=copy)
        assert verdict.whole
        assert without_lock(path) == whole
        deaths += 1
    assert deaths >= 5


def test_report_names_each_file_and_how(small, small_once):
    damage.flip_bit(small, random.Random(0), "embedding/c/2/0/0")
    damage.flip_bit(small, random.Random(0), "recipe.json")
    (small / "zarr.json").unlink()
    verdict, report = repair_cache(small, copy=copy_at(str(small_once)))
    assert verdict.whole
    assert report.lines() == [
        f"embedding/c/2/0/0: fetched from `{small_once}`",
        f"recipe.json: fetched from `{small_once}`",
        "zarr.json: worked out",
    ]


def test_manifest_with_unknown_keys_of_a_later_kdcache_is_whole(small):
    """FORMAT.md: new keys do not raise the version."""
    manifest = json.loads((small / "manifest.json").read_bytes())
    damage.replace(small, "manifest.json", canonical_json({**manifest, "card": "README.md"}))
    assert verify_cache(small).whole
