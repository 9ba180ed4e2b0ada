"""A check finds whatever is not what the manifest promises, and rows that nobody can learn from."""

import errno
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from store import making
from verify import damage

from kdcache.errors import CacheError, CacheNotFound, CacheUnfinished
from kdcache.files import canonical_json, sha256_of
from kdcache.store import FORMAT, ArraySpec, grow_cache, open_cache
from kdcache.verify import read as reading
from kdcache.verify import verify_cache


def kinds(path, **options):
    return {finding.kind for finding in verify_cache(path, **options).problems}


def test_whole_cache_is_whole_and_all_of_it_is_read(small):
    verdict = verify_cache(small)
    assert verdict.whole
    assert verdict.notes == []
    assert verdict.identity == open_cache(small).identity
    manifest = open_cache(small).manifest
    assert verdict.num_files == len(manifest.files)
    assert verdict.num_bytes == sum(file.num_bytes for file in manifest.files.values())
    assert verdict.num_rows == 300 * 2


def test_wide_arrays_of_both_types_are_whole(tmp_path, small_shards):
    making.make(tmp_path / "c")
    verdict = verify_cache(tmp_path / "c")
    assert verdict.whole
    assert verdict.num_rows == making.NUM_ROWS * making.NUM_VIEWS * 2


@pytest.mark.parametrize("dim", [1, 3, 8])
def test_rows_of_any_width_are_looked_at(tmp_path, small_shards, dim):
    specs = (ArraySpec("embedding", dim),)
    damage.make_small(tmp_path / "c", specs=specs, recipe=making.RECIPE)
    assert verify_cache(tmp_path / "c").whole


def test_grown_cache_is_whole(small):
    grown = grow_cache(open_cache(small), making.graph(num_rows=300))
    grown = grow_cache(grown, making.fitted_head())
    assert verify_cache(small).whole
    assert verify_cache(small, quick=True).whole


def test_a_shard_is_opened_once(small, monkeypatch):
    opened = []
    true = Path.open

    def noted(self, *arguments, **options):
        opened.append(str(self))
        return true(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", noted)
    assert verify_cache(small).whole
    shards = [name for name in opened if "/embedding/c/" in name]
    assert len(shards) == len(set(shards)) == 10


@pytest.mark.parametrize("step", [16, 48, 1 << 20])
def test_reading_in_pieces_gives_the_digest_of_the_whole(small, monkeypatch, step):
    monkeypatch.setattr(reading, "BUFFER_BYTES", step)
    assert verify_cache(small).whole


def nan_at(rows):
    rows[3, 2] = np.nan


def infinity_at(rows):
    rows[3, 2] = -np.inf


def zero_at(rows):
    rows[3] = 0


def minus_zero_at(rows):
    rows[3] = -0.0


def constant_at(rows):
    rows[3] = 0.5


CONTENT = {
    "nan": (nan_at, "not finite"),
    "infinity": (infinity_at, "not finite"),
    "zero": (zero_at, "hole"),
    "minus zero": (minus_zero_at, "hole"),
    "constant": (constant_at, "constant"),
}


@pytest.mark.parametrize("case", CONTENT)
@pytest.mark.parametrize("quick", [False, True])
def test_bad_row_is_named_though_its_digest_is_promised(small, case, quick):
    change, kind = CONTENT[case]
    name = damage.set_rows(small, 2, 1, change)
    (finding,) = verify_cache(small, quick=quick).problems
    assert (finding.file, finding.kind) == (name, kind)
    assert (finding.rows, finding.num_rows, finding.views) == ((2 * 64 + 3,), 1, (1,))


def test_row_of_an_unreadable_image_must_be_empty(small):
    def fill(rows):
        rows[5] = 1, 2, 3, 4, 5, 6, 7, 8

    damage.set_rows(small, 0, 0, fill)
    (finding,) = verify_cache(small).problems
    assert (finding.kind, finding.rows) == ("not empty", (5,))


def test_teacher_that_ignores_its_views_is_told(small):
    for block in range(5):
        data = (small / f"embedding/c/{block}/0/0").read_bytes()
        damage.replace(small, f"embedding/c/{block}/1/0", data)
    damage.reseal(small)
    (finding,) = verify_cache(small).problems
    assert (finding.file, finding.kind, finding.num_rows) == ("embedding", "views alike", 298)


def test_policy_that_draws_nothing_explains_equal_views(small):
    for block in range(5):
        data = (small / f"embedding/c/{block}/0/0").read_bytes()
        damage.replace(small, f"embedding/c/{block}/1/0", data)
    recipe = {"views": {"policy": {"name": "center", "crop": "center"}}}
    damage.replace(small, "recipe.json", canonical_json(recipe))
    damage.reseal(small)
    assert verify_cache(small).whole


def test_few_images_with_one_row_for_all_views_are_noted(small):
    def second(rows):
        data = (small / "embedding/c/0/0/0").read_bytes()
        rows[7] = np.frombuffer(data, "<f2", 8, offset=7 * 16)

    damage.set_rows(small, 0, 1, second)
    verdict = verify_cache(small)
    assert verdict.whole
    assert verdict.notes == ["embedding: 1 images have one row for all views: 7"]


def test_collapsed_teacher_is_told(small):
    def collapse(rows):
        rows[10:40] = np.arange(8) + 1

    name = damage.set_rows(small, 1, 0, collapse)
    (finding,) = verify_cache(small).problems
    assert (finding.file, finding.kind, finding.num_rows) == (name, "images alike", 30)


def test_copies_of_one_image_are_no_collapse(small):
    """The same bytes, so the same views and the same rows: data sets hold such."""

    def copies(rows):
        rows[10:40] = np.arange(8) + 1

    ids = np.frombuffer((small / "index/image_id/c/0/0").read_bytes(), np.uint8)
    ids = ids.reshape(-1, 16).copy()
    ids[64 + 10 : 64 + 40] = ids[64 + 10]
    damage.replace(small, "index/image_id/c/0/0", ids.tobytes())
    damage.set_rows(small, 1, 0, copies)
    assert verify_cache(small).whole


def test_padding_behind_the_last_row_must_be_zero(small):
    name = "embedding/c/4/0/0"
    data = bytearray((small / name).read_bytes())
    assert data[44 * 16 : 64 * 16] == bytes(20 * 16)
    data[44 * 16] = 1
    damage.replace(small, name, bytes(data))
    damage.reseal(small)
    assert kinds(small) == {"padding"}


def test_shard_index_that_points_elsewhere_is_found(small):
    name = "embedding/c/3/0/0"
    data = bytearray((small / name).read_bytes())
    data[64 * 16] ^= 16
    damage.replace(small, name, bytes(data))
    damage.reseal(small)
    assert kinds(small) == kinds(small, quick=True) == {"index"}


def test_shape_that_is_not_the_manifests_is_found(small):
    damage.reseal(small, views=3)
    assert "shape" in kinds(small)
    damage.reseal(small, views=2, rows=299, readable_rows=297)
    assert "shape" in kinds(small, quick=True)


def test_number_type_that_is_not_the_recipes_is_found(small):
    recipe = {"arrays": {"embedding": {"dim": 8, "dtype": "float32"}}}
    damage.replace(small, "recipe.json", canonical_json(recipe))
    damage.reseal(small)
    (finding,) = verify_cache(small).problems
    assert (finding.file, finding.kind) == ("embedding/zarr.json", "dtype")
    assert "float32" in finding.expected


def test_shard_that_nobody_promises_is_a_hole(small):
    manifest = json.loads((small / "manifest.json").read_bytes())
    for name in ("embedding/c/3/1/0", "receipts/embedding/3.1.json"):
        del manifest["files"][name]
        (small / name).unlink()
    damage.replace(small, "manifest.json", canonical_json(manifest))
    found = [finding.found for finding in verify_cache(small).problems]
    assert found == [
        "promises no `embedding/c/3/1/0`",
        "promises no `receipts/embedding/3.1.json`",
    ]


def test_receipt_that_says_otherwise_is_found(small):
    name = "receipts/embedding/2.0.json"
    receipt = json.loads((small / name).read_bytes())
    damage.replace(small, name, canonical_json({**receipt, "view": 1}))
    manifest = json.loads((small / "manifest.json").read_bytes())
    manifest["files"][name]["sha256"] = sha256_of(small / name)
    damage.replace(small, "manifest.json", canonical_json(manifest))
    assert kinds(small) == {"receipt"}


def test_manifest_that_names_other_libraries_is_found(small):
    damage.reseal(small, versions={"numpy": "1.0"})
    (finding,) = verify_cache(small).problems
    assert (finding.file, finding.kind) == ("manifest.json", "receipt")
    assert "1.0" in finding.found


@pytest.mark.parametrize(
    "change",
    [
        {"rows": "300"},
        {"views": 0},
        {"readable_rows": 301},
        {"parent": "abc"},
        {"files": {"a": {"bytes": -1, "sha256": "0" * 64}}},
        {"files": {"a": {"bytes": 1, "sha256": "xyz"}}},
        {"files": []},
        {"versions": {"numpy": 2}},
        {"format": 0},
        {"format": "one"},
    ],
    ids=str,
)
def test_what_is_no_manifest_is_said(small, change):
    manifest = json.loads((small / "manifest.json").read_bytes())
    damage.replace(small, "manifest.json", canonical_json({**manifest, **change}))
    (finding,) = verify_cache(small).problems
    assert (finding.file, finding.kind) == ("manifest.json", "manifest")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_manifest_that_points_out_of_the_cache_is_refused(small, name):
    manifest = json.loads((small / "manifest.json").read_bytes())
    manifest["files"][name] = {"bytes": 0, "sha256": "0" * 64}
    damage.replace(small, "manifest.json", canonical_json(manifest))
    (finding,) = verify_cache(small).problems
    assert finding.kind == "manifest"
    assert "outside" in finding.found


def test_manifest_of_a_newer_format_cannot_be_checked(small):
    manifest = json.loads((small / "manifest.json").read_bytes())
    damage.replace(small, "manifest.json", canonical_json({**manifest, "format": FORMAT + 1}))
    with pytest.raises(CacheError, match=f"format `{FORMAT + 1}`") as caught:
        verify_cache(small)
    assert "upgrade" in caught.value.hint


def test_what_is_no_finished_cache_cannot_be_checked(tmp_path, small_shards):
    with pytest.raises(CacheNotFound):
        verify_cache(tmp_path / "nothing")
    damage.begin_small(tmp_path / "begun")
    with pytest.raises(CacheUnfinished):
        verify_cache(tmp_path / "begun")


def test_manifest_of_an_ancestor_is_noticed(small):
    old = (small / "manifest.json").read_bytes()
    grow_cache(open_cache(small), making.graph(num_rows=300))
    damage.replace(small, "manifest.json", old)
    verdict = verify_cache(small)
    assert [(finding.file, finding.kind) for finding in verdict.problems] == [
        ("zarr.json", "group")
    ]
    assert "are not promised by the manifest" in verdict.notes[0]


def test_ancestor_that_is_not_the_one_it_is_named_after_is_found(small):
    parent = open_cache(small).identity
    grow_cache(open_cache(small), making.graph(num_rows=300))
    damage.flip_bit(small, random.Random(1), f"manifests/{parent}.json")
    assert "bytes" in kinds(small)


def test_file_that_the_disk_cannot_read_is_a_problem_and_the_others_are_checked(small, monkeypatch):
    bad = small / "embedding/c/3/1/0"
    true = Path.open

    def failing(self, *arguments, **options):
        if self == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return true(self, *arguments, **options)

    damage.flip_bit(small, random.Random(1), "embedding/c/4/1/0")
    monkeypatch.setattr(Path, "open", failing)
    found = [(finding.file, finding.kind) for finding in verify_cache(small).problems]
    assert ("embedding/c/3/1/0", "disk") in found
    assert ("embedding/c/4/1/0", "bytes") in found


def test_file_that_may_not_be_read_stops_the_check(small, monkeypatch):
    def refused(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError):
        verify_cache(small)


def test_swapped_shards_are_told_from_each_other(small):
    one, other = "embedding/c/0/0/0", "embedding/c/2/1/0"
    first, second = (small / one).read_bytes(), (small / other).read_bytes()
    damage.replace(small, one, second)
    damage.replace(small, other, first)
    verdict = verify_cache(small)
    assert {finding.file for finding in verdict.problems} == {one, other}
    assert f"`{one}` holds what `{other}` should" in verdict.notes


def test_quick_check_reads_a_sample_that_the_seed_decides(small, monkeypatch):
    from kdcache.verify import check

    monkeypatch.setattr(check, "QUICK_BYTES", 1)
    monkeypatch.setattr(check, "QUICK_SHARDS", 3)
    verdict = verify_cache(small, quick=True, seed=1)
    assert verdict.whole
    assert verdict.num_rows in (64 + 3 * 4, 44 + 3 * 4)
    assert verdict.num_files < verify_cache(small).num_files
    # Of the 10 shards one is read whole: some seeds find a bit that has turned over, some do not.
    damage.flip_bit(small, random.Random(1), "embedding/c/3/1/0")
    found = [bool(verify_cache(small, quick=True, seed=seed).problems) for seed in range(40)]
    assert 0 < sum(found) < 40
    assert found == [
        bool(verify_cache(small, quick=True, seed=seed).problems) for seed in range(40)
    ]


def test_quick_check_finds_what_is_missing_or_short_without_reading_it(small, monkeypatch):
    from kdcache.verify import check

    monkeypatch.setattr(check, "QUICK_BYTES", 1)
    monkeypatch.setattr(check, "QUICK_SHARDS", 0)
    for name in damage.shards_of(small):
        damaged = shutil.copytree(small, small.parent / name.replace("/", "-"))
        (damaged / name).unlink()
        assert kinds(damaged, quick=True) == {"missing"}
        damage.replace(damaged, name, b"short")
        assert kinds(damaged, quick=True) == {"size"}


def test_verdict_is_json(small):
    damage.flip_bit(small, random.Random(0), "embedding/c/0/0/0")
    about = json.loads(json.dumps(verify_cache(small).to_dict()))
    assert about["whole"] is False
    assert about["checked"]["mode"] == "full"
    assert about["problems"][0]["file"] == "embedding/c/0/0/0"
    assert {"kind", "found", "expected", "rows", "views"} <= about["problems"][0].keys()
