"""Quantised caches and copies of a part are verified and repaired like any other."""

import random
import shutil

import numpy as np
import pytest
from store import making
from verify import damage

from kdcache.progress import silent_bar
from kdcache.share import look_at, open_place, pull_cache, push_cache
from kdcache.store import ArraySpec, load_copy, open_cache
from kdcache.verify import copy_at, repair_cache, verify_cache

EIGHT_BITS = {
    "recipe": {**making.RECIPE, "arrays": {"embedding": {"dim": 8, "dtype": "uint8"}}},
    "specs": (ArraySpec("embedding", 8, "uint8"),),
}


@pytest.fixture
def quantised(tmp_path, small_shards):
    return damage.make_small(tmp_path / "uint8", **EIGHT_BITS)


def problems(path, **options):
    return [str(problem) for problem in verify_cache(path, **options).problems]


def test_quantised_cache_is_whole(quantised):
    assert problems(quantised) == []
    assert problems(quantised, quick=True) == []


@pytest.mark.parametrize(
    "name",
    ["embedding/c/1/0/0", "embedding_scale/c/1/0", "embedding_min/c/2/1", "fidelity/zarr.json"],
)
def test_every_part_of_a_quantised_cache_is_looked_at(quantised, tmp_path, name):
    whole = shutil.copytree(quantised, tmp_path / "whole")
    damage.flip_bit(quantised, random.Random(3), name)
    found = verify_cache(quantised)
    assert {problem.file for problem in found.problems} == {name}
    verdict, _ = repair_cache(quantised, copy=copy_at(str(whole)))
    assert verdict.whole
    assert (quantised / name).read_bytes() == (whole / name).read_bytes()


def test_statistics_and_receipts_of_a_quantised_cache_are_worked_out(quantised):
    names = ["statistics/embedding/mean/c/0", "receipts/embedding_scale/1.0.json"]
    before = [(quantised / name).read_bytes() for name in names]
    for name in names:
        (quantised / name).unlink()
    verdict, report = repair_cache(quantised)
    assert verdict.whole
    assert report.mended == dict.fromkeys(names, "worked out")
    assert [(quantised / name).read_bytes() for name in names] == before


def test_scale_that_is_not_finite_and_a_row_of_equal_values_are_found(quantised):
    first = open_cache(quantised)
    assert first.arrays["embedding"].is_quantised
    path = quantised / "embedding_scale/c/0/0"
    data = bytearray(path.read_bytes())
    data[4:8] = np.float32(np.nan).tobytes()
    damage.replace(quantised, "embedding_scale/c/0/0", bytes(data))
    rows = quantised / "embedding/c/0/0/0"
    data = bytearray(rows.read_bytes())
    data[2 * 8 : 3 * 8] = bytes(8)
    damage.replace(quantised, "embedding/c/0/0/0", bytes(data))
    kinds = {(p.file, p.kind) for p in verify_cache(quantised).problems}
    assert ("embedding_scale/c/0/0", "not finite") in kinds
    assert ("embedding/c/0/0/0", "constant") in kinds


@pytest.mark.parametrize("is_quantised", [False, True])
def test_copy_of_a_part_is_verified_and_repaired_as_what_it_is(
    request, tmp_path, small_shards, is_quantised
):
    whole = request.getfixturevalue("quantised" if is_quantised else "small")
    place = tmp_path / "place"
    push_cache(open_cache(whole), str(place), bar=silent_bar)
    part = tmp_path / "part"
    pull_cache(str(place), part, num_views=1, rows=((70, 130),), bar=silent_bar)
    assert load_copy(part) is not None
    assert problems(part) == []
    opened, there = open_cache(part), open_cache(whole)
    assert opened.identity == there.identity
    here, all_of_it = opened.slab("embedding", 0), there.slab("embedding", 0)
    np.testing.assert_array_equal(here[70:130], all_of_it[70:130])
    before = damage.files_of(part)
    for name in ["embedding/c/1/0/0", "index/label/c/0", "zarr.json"]:
        (part / name).unlink()
    verdict, report = repair_cache(part, copy=copy_at(str(place)))
    assert verdict.whole, report.refused
    assert damage.files_of(part) == before


def test_a_look_at_a_quantised_cache_far_away_reads_descriptions_alone(quantised, tmp_path):
    place = tmp_path / "place"
    push_cache(open_cache(quantised), str(place), bar=silent_bar)
    seen = look_at(open_place(str(place)), None, tmp_path / "look")
    assert seen.arrays["embedding"].dtype == "uint8"
    assert seen.fidelity().keys() == {"embedding"}
    assert not [name for name in damage.files_of(tmp_path / "look") if "/c/" in name]


def test_damaged_copy_json_is_told(quantised, tmp_path):
    place = tmp_path / "place"
    push_cache(open_cache(quantised), str(place), bar=silent_bar)
    part = tmp_path / "part"
    pull_cache(str(place), part, num_views=1, bar=silent_bar)
    damage.replace(part, "copy.json", b"[]")
    with pytest.raises(Exception, match=r"copy\.json` does not say"):
        open_cache(part)
