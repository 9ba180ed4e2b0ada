"""The teacher is asked again: other views, other images and other weights are told apart."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from conftest import make_folder
from PIL import Image
from small import CPU, make_cache, recipe_for, run, tree_of
from verify import damage

from kdcache.errors import CacheMismatch, DataError, TeacherError
from kdcache.extract import teacher_of
from kdcache.files import canonical_json
from kdcache.images import open_images
from kdcache.progress import silent_bar
from kdcache.store import layout, open_cache
from kdcache.verify import (
    Means,
    check_images,
    check_teacher,
    copy_at,
    repair_cache,
    verify_cache,
)
from kdcache.views import render


@pytest.fixture(scope="module")
def made_once(tiny_images, tiny_weights, tmp_path_factory):
    """A finished cache of 48 images in 2 views, in three pieces; not to be changed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(layout, "PIECE_ROWS", 16)
        out = tmp_path_factory.mktemp("cache") / "tiny.zarr"
        make_cache(tiny_images, tiny_weights, out)
    return out


@pytest.fixture
def made(made_once, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "PIECE_ROWS", 16)
    return shutil.copytree(made_once, tmp_path / "c")


def look(path, data, weights, *, quick=False, teacher=True, seed=0):
    """The verdict of bytes, images and teacher."""
    verdict = verify_cache(path, quick=quick)
    cache, images = open_cache(path), open_images(data)
    matched = check_images(verdict, cache, images, thorough=not quick, bar=silent_bar)
    if teacher:
        asked = teacher_of(cache.recipe, weights, path)
        check_teacher(verdict, cache, images, matched, asked, seed=seed, device=CPU, bar=silent_bar)
    return verdict


def kinds(verdict):
    return {finding.kind for finding in verdict.problems}


@pytest.fixture
def data(tiny_images, tmp_path):
    """The images, to be changed."""
    return shutil.copytree(tiny_images, tmp_path / "data")


@pytest.mark.parametrize("quick", [False, True])
def test_same_teacher_says_the_same(made, tiny_images, tiny_weights, quick):
    verdict = look(made, tiny_images, tiny_weights, quick=quick)
    assert verdict.whole
    assert verdict.measured["pixels"] == {"views": 64, "differ": 0, "by stage": {}}
    for name in ("feature", "embedding"):
        found = verdict.measured["teacher"][name]
        assert found["views"] >= 64
        assert found["lowest cosine"] > 1 - 1e-6
        assert found["length"] == pytest.approx([1, 1], abs=1e-5)
    json.dumps(verdict.to_dict())


def test_small_crops_are_shown_at_their_own_side(tiny_images, tiny_weights, tmp_path):
    make_cache(
        tiny_images, tiny_weights, tmp_path / "c", policy="multicrop", num_views=7, image_size=64
    )
    assert look(tmp_path / "c", tiny_images, tiny_weights).whole


def test_half_precision_is_within_its_tolerance(tiny_images, tiny_weights, tmp_path):
    make_cache(tiny_images, tiny_weights, tmp_path / "c", precision="bf16", dtype="float16")
    verdict = look(tmp_path / "c", tiny_images, tiny_weights)
    assert verdict.whole
    assert verdict.measured["teacher"]["feature"]["tolerance"] < 0.999


def other_weights(weights, tmp_path):
    """Those of a teacher of the same architecture that has learnt something else."""
    state = torch.load(weights, weights_only=True)["state_dict"]
    torch.manual_seed(8)
    other = {
        name: torch.randn_like(values) * values.std() if values.ndim > 1 else values
        for name, values in state.items()
    }
    torch.save({"state_dict": other}, tmp_path / "other.pth")
    return tmp_path / "other.pth"


def test_weights_that_are_not_the_named_ones_are_refused(made, tiny_images, tiny_weights, tmp_path):
    with pytest.raises(TeacherError, match="was made by a teacher with the weights"):
        look(made, tiny_images, other_weights(tiny_weights, tmp_path))


def test_cache_of_other_weights_than_it_names_is_found(made, tiny_images, tiny_weights, tmp_path):
    """Every digest is right: whoever made it had swapped the weights."""
    weights = other_weights(tiny_weights, tmp_path)
    make_cache(tiny_images, weights, tmp_path / "other")
    recipe = (made / "recipe.json").read_bytes()
    damage.replace(tmp_path / "other", "recipe.json", recipe)
    damage.reseal(tmp_path / "other")
    verdict = look(tmp_path / "other", tiny_images, tiny_weights)
    assert kinds(verdict) == {"teacher"}
    assert {finding.file for finding in verdict.problems} == {"feature", "embedding"}
    assert all(finding.num_rows for finding in verdict.problems)


def test_rows_of_other_images_are_found_and_named(made, tiny_images, tiny_weights):
    """Two rows of the cache are swapped, and everything resealed."""
    name = "embedding/c/0/1/0"
    data = bytearray((made / name).read_bytes())
    rows = np.frombuffer(data, "<f4", 48 * 16).reshape(48, 16)
    rows[[3, 40]] = rows[[40, 3]]
    damage.replace(made, name, bytes(data))
    damage.reseal(made)
    (finding,) = look(made, tiny_images, tiny_weights).problems
    assert (finding.kind, finding.file) == ("teacher", "embedding")
    assert set(finding.rows) <= {3, 40}


def test_twice_the_length_is_found_though_the_direction_is_right(made, tiny_images, tiny_weights):
    for view in range(2):
        name = f"feature/c/0/{view}/0"
        data = bytearray((made / name).read_bytes())
        width = open_cache(made).arrays["feature"].dim
        np.frombuffer(data, "<f4", 48 * width)[:] *= 2
        damage.replace(made, name, bytes(data))
    damage.reseal(made)
    assert kinds(look(made, tiny_images, tiny_weights)) == {"teacher"}


class Nearest(render.R1):
    """Resizes without a filter."""

    def geometry(self, pixels, view, size):
        import cv2

        top, left = int(view["top"]), int(view["left"])
        crop = pixels[top : top + int(view["height"]), left : left + int(view["width"])]
        square = cv2.resize(crop, (size, size), interpolation=cv2.INTER_NEAREST)
        return cv2.flip(square, 1) if view["flip"] else square


def test_other_resize_filter_is_found_at_its_stage(made, tiny_images, tiny_weights, monkeypatch):
    monkeypatch.setattr(render, "R1", Nearest)
    verdict = look(made, tiny_images, tiny_weights)
    assert "geometry" in kinds(verdict)
    assert "teacher" not in kinds(verdict)  # it was shown something else
    assert verdict.measured["pixels"]["by stage"]["geometry"] > 1
    with pytest.raises(CacheMismatch, match="`geometry`"):
        run(recipe_for(), tiny_images, made.parent / "run", made)


def test_other_view_seed_is_found_as_another_crop(made, tiny_images, tiny_weights):
    recipe = json.loads((made / "recipe.json").read_bytes())
    recipe["views"]["seed"] += 1
    damage.replace(made, "recipe.json", canonical_json(recipe))
    damage.reseal(made)
    verdict = look(made, tiny_images, tiny_weights)
    assert kinds(verdict) == {"crop"}
    with pytest.raises(CacheMismatch, match="`crop`"):
        run(recipe_for(), tiny_images, made.parent / "run", made)


@pytest.mark.parametrize("said", [{"id": "r1", "version": 2}, {"id": "r0", "version": 1}])
def test_other_renderer_is_refused(said, made, tiny_images, tiny_weights):
    recipe = json.loads((made / "recipe.json").read_bytes())
    recipe["views"]["renderer"] = said
    damage.replace(made, "recipe.json", canonical_json(recipe))
    damage.reseal(made)
    expected = (
        f"/{made.name}` was rendered by `{said['id']}` version {said['version']}; this kdcache "
        "renders by `r1` version 1"
    )
    with pytest.raises(CacheMismatch, match=expected):
        look(made, tiny_images, tiny_weights)
    with pytest.raises(CacheMismatch, match=expected):
        run(recipe_for(), tiny_images, made.parent / "run", made)


def test_other_releases_are_told_and_equal_bits_despite_them_are_fine(
    made, tiny_images, tiny_weights, capsys
):
    versions = {**open_cache(made).manifest.versions, "simplejpeg": "4.1.0", "pillow": "9.0"}
    damage.reseal(made, versions=versions)
    for name in damage.files_of(made):
        if name.startswith("receipts/"):
            receipt = json.loads((made / name).read_bytes())
            damage.replace(made, name, canonical_json({**receipt, "versions": versions}))
    damage.reseal(made, versions=versions)
    verdict = look(made, tiny_images, tiny_weights)
    assert verdict.whole
    told = [note for note in verdict.notes if "other releases" in note]
    assert ", not 4.1.0; " in told[0]
    assert ", not 9.0" in told[0]
    assert "pixels: 64 of 64 views are the same bits" in verdict.notes
    run(recipe_for(train={"epochs": 1}), tiny_images, made.parent / "run", made)
    told = capsys.readouterr().out
    assert "other releases than those of" in told
    assert ", not 4.1.0; " in told
    assert "16 of 16 views are the same bits" in told


def test_renamed_image_is_the_same_image(made, data, tiny_weights, tmp_path):
    (data / "class2" / "003.png").rename(data / "class0" / "moved.png")
    for quick in (False, True):
        verdict = look(made, data, tiny_weights, quick=quick)
        assert verdict.whole
        assert any("1 images lie at another path" in note for note in verdict.notes)
    assert run(recipe_for(train={"epochs": 1}), data, tmp_path / "run", made).finished


def test_added_image_is_told(made, data, tiny_weights, tmp_path, capsys):
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(picture).save(data / "class1" / "new.png")
    for quick in (False, True):
        verdict = look(made, data, tiny_weights, quick=quick)
        assert verdict.whole
        assert any("1 images of" in n and "class1/new.png" in n for n in verdict.notes)
    run(recipe_for(train={"epochs": 1}), data, tmp_path / "run", made)
    assert "1 images of" in capsys.readouterr().out


def test_missing_image_is_told(made, data, tiny_weights, tmp_path):
    (data / "class3" / "005.png").unlink()
    for quick in (False, True):
        (finding,) = look(made, data, tiny_weights, quick=quick).problems
        assert (finding.kind, finding.file) == ("image missing", "class3/005.png")
    with pytest.raises(DataError, match=r"class3/005\.png"):
        run(recipe_for(), data, tmp_path / "run", made)


def test_changed_image_is_told(made, data, tiny_weights):
    shutil.copy(data / "class0" / "001.png", data / "class0" / "003.png")
    for quick in (False, True):  # all 48 images are in the sample
        (finding,) = look(made, data, tiny_weights, quick=quick).problems
        assert (finding.kind, finding.file) == ("image changed", "class0/003.png")


def test_two_images_that_have_swapped_their_names_are_found_by_their_bytes(
    made, data, tiny_weights
):
    one, other = data / "class0" / "001.png", data / "class0" / "003.png"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    verdict = look(made, data, tiny_weights)
    assert verdict.whole
    assert any("2 images lie at another path" in note for note in verdict.notes)


def test_image_that_cannot_be_decoded_here_is_named(made, tiny_images, tiny_weights, monkeypatch):
    from kdcache.images import Unreadable
    from kdcache.verify import teacher

    true, victim = teacher.decode, (tiny_images / "class0" / "001.png").read_bytes()

    def failing(data):
        if data == victim:
            raise Unreadable("of a kind that this build does not know")
        return true(data)

    monkeypatch.setattr(teacher, "decode", failing)
    (finding,) = look(made, tiny_images, tiny_weights).problems
    assert (finding.kind, finding.file) == ("decode", "class0/001.png")


def means_of(data, weights, path):
    def ask():
        return teacher_of(json.loads((path / "recipe.json").read_bytes()), weights, path)

    return Means(open_images(data), ask, CPU, 0, silent_bar)


def never():
    raise AssertionError("the teacher was loaded")


MADE_AGAIN = [
    "embedding/c/0/1/0",
    "feature/c/0/0/0",
    "feature/c/0/1/0",
    "feature/zarr.json",
    "head/zarr.json",
    "head/0.weight/c/0/0",
    "head/2.bias/zarr.json",
    "index/zarr.json",
    "index/image_id/c/0/0",
    "index/label/c/0",
    "index/path_bytes/c/0",
    "index/path_offsets/c/0",
    "index/readable/c/0",
    "receipts/feature/0.0.json",
    "statistics/feature/mean/c/0",
    "witness/crop/c/0/0",
    "witness/thumbnail/zarr.json",
    "witness/view/c/0",
]


@pytest.mark.parametrize("trial", range(4))
def test_images_and_teacher_bring_the_bytes_back(made, made_once, tiny_images, tiny_weights, trial):
    whole, rng = tree_of(made_once), random.Random(trial)
    assert set(MADE_AGAIN) <= whole.keys()
    names = MADE_AGAIN if trial == 0 else rng.sample(MADE_AGAIN, trial)
    for name in names:
        rng.choice([damage.flip_bit, lambda root, rng, name: (root / name).unlink()])(
            made, rng, name
        )
    verdict, report = repair_cache(made, means=means_of(tiny_images, tiny_weights, made))
    assert verdict.whole, report.lines()
    assert set(report.mended) == set(names)
    files = tree_of(made)
    files.pop("manifests/.lock")
    assert files == whole


def test_what_needs_no_teacher_does_not_load_it(made, tiny_images):
    damage.flip_bit(made, random.Random(0), "witness/crop/c/0/0")
    damage.flip_bit(made, random.Random(0), "index/label/c/0")
    means = Means(open_images(tiny_images), never, CPU, 0, silent_bar)
    assert repair_cache(made, means=means)[0].whole


def test_other_bits_are_refused_with_their_digest_and_releases(
    made, tiny_images, tiny_weights, monkeypatch
):
    """Another library rounds otherwise: what it makes is not what was promised."""
    from kdcache.extract import engine

    damage.flip_bit(made, random.Random(0), "feature/c/0/1/0")
    before = (made / "feature/c/0/1/0").read_bytes()
    true = engine.ask

    def rounded(*arguments):
        asked = true(*arguments)
        with torch.inference_mode():
            for values in asked.answers().values():
                values += 1e-6
        return asked

    monkeypatch.setattr(engine, "ask", rounded)
    verdict, report = repair_cache(made, means=means_of(tiny_images, tiny_weights, made))
    assert verdict.broken_files == ["feature/c/0/1/0"]
    first, second, *_ = report.refused["feature/c/0/1/0"]
    assert "made again, it has the SHA-256" in first
    assert "the same releases" in second
    assert (made / "feature/c/0/1/0").read_bytes() == before


def test_shard_whose_images_are_gone_is_refused(made, data, tiny_weights):
    (data / "class3" / "005.png").unlink()
    damage.flip_bit(made, random.Random(0), "feature/c/0/1/0")
    verdict, report = repair_cache(made, means=means_of(data, tiny_weights, made))
    assert verdict.broken_files == ["feature/c/0/1/0"]
    assert "class3/005.png" in report.refused["feature/c/0/1/0"][0]


def test_unreadable_image_that_was_thrown_away_is_still_unreadable(
    data, tiny_weights, tmp_path, monkeypatch
):
    victim = data / "class1" / "004.jpg"
    victim.write_bytes(victim.read_bytes()[:-200])
    make_cache(data, tiny_weights, tmp_path / "c", skip_unreadable=True)
    whole = tree_of(tmp_path / "c")
    damage.flip_bit(tmp_path / "c", random.Random(0), "index/unreadable.json")
    means = means_of(data, tiny_weights, tmp_path / "c")
    assert repair_cache(tmp_path / "c", means=means)[0].whole
    victim.unlink()
    damage.flip_bit(tmp_path / "c", random.Random(0), "feature/c/0/1/0")
    verdict, report = repair_cache(
        tmp_path / "c", means=means_of(data, tiny_weights, tmp_path / "c")
    )
    assert verdict.whole, report.lines()
    files = tree_of(tmp_path / "c")
    files.pop("manifests/.lock")
    assert files == whole
    assert look(tmp_path / "c", data, tiny_weights).whole


def test_interrupted_repair_goes_on_where_it_stopped(
    made, made_once, tiny_images, tiny_weights, monkeypatch
):
    from kdcache.extract import engine

    damage.flip_bit(made, random.Random(0), "feature/c/0/1/0")
    true, seen = engine.ask, []

    def counting(job, images, device):
        seen.append(sum(map(len, images)))
        if sum(seen) == 48:
            raise KeyboardInterrupt
        return true(job, images, device)

    monkeypatch.setattr(engine, "ask", counting)
    with pytest.raises(KeyboardInterrupt):
        repair_cache(made, means=means_of(tiny_images, tiny_weights, made))
    seen.clear()
    monkeypatch.setattr(engine, "ask", lambda *a: seen.append(sum(map(len, a[1]))) or true(*a))
    verdict, _ = repair_cache(made, means=means_of(tiny_images, tiny_weights, made))
    assert verdict.whole
    assert sum(seen) == 2 * 32  # the first of three pieces was kept
    assert not (made / ".work").exists()
    files = tree_of(made)
    files.pop("manifests/.lock")
    assert files == tree_of(made_once)


def test_copy_is_asked_before_the_teacher(made, made_once, tiny_images):
    damage.flip_bit(made, random.Random(0), "feature/c/0/1/0")
    means = Means(open_images(tiny_images), never, CPU, 0, silent_bar)
    assert repair_cache(made, copy=copy_at(str(made_once)), means=means)[0].whole


def test_images_of_another_set_are_told(made, tiny_weights, tmp_path):
    other = make_folder(tmp_path / "other", per_class=2, seed=5)
    verdict = look(made, other, tiny_weights)
    assert kinds(verdict) == {"image missing", "image changed"}
    assert any("are not in the cache" in note for note in verdict.notes)
    assert any("the teacher was not asked" in note for note in verdict.notes)
